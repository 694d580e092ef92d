# What the package does to running guests, on a Debian 13 with QEMU and libvirt: see check.rs. The machine reboots, and this
# runs a second time.
set -eu
fail() { echo "FAILED: $*"; exit 1; }
# What went wrong is in the journal.
trap '[ $? = 0 ] || { journalctl --no-pager --quiet -o cat -n 60 | grep -v apparmor; tail -n 5 /var/lib/vm*/serial /var/log/libvirt/qemu/*; }' EXIT
run() { echo "# $*"; "$@"; }
quietly() { "$@" >/run/output 2>&1 || fail "$* says $(cat /run/output)"; }
# The property $2 of the unit $1.
of() { systemctl show --value -p "$2" "$1"; }
is() { [ "$(of "$1" "$2")" = "$3" ] || fail "$2 of $1 is $(of "$1" "$2"), not $3"; }
# The program that the unit runs.
program() { readlink "/proc/$(of "$1" MainPID)/exe"; }
await() {
    tries=0
    until "$@"; do
        [ $((tries += 1)) -le 240 ] || fail "in vain: $*"
        sleep 0.5
    done
}

# vm1 has a device of the service for all, vm2 one of a unit of its own, vm3 is libvirt's.
guests="vm1 vm2 vm3"
serial() { [ "$1" = vm3 ] && echo /var/log/libvirt/qemu/vm3.serial || echo "/var/lib/$1/serial"; }
# How often the guest has synced.
count() { cat "$(serial "$1")" 2>/dev/null | grep -c ^SYNCED || true; }
has_synced() { [ "$(count "$1")" -ge "$2" ]; }
# The guest $2 on the image of $1 has shut down in order: its last sync succeeded, and it wrote once more.
shut_down() {
    for words in "Last words of $2\." "The last sync of $2 succeeded\."; do
        grep -aq "$words" "/var/lib/vhost-pmem/$1.pmem" || fail "$2 was not shut down in order"
    done
    echo "$1: $(grep -aom 1 "The last sync of $2 succeeded\." "/var/lib/vhost-pmem/$1.pmem")"
}

if [ -e /upgraded ]; then
    # After the reboot.
    journalctl --no-pager -b -1 -o cat _PID=1 >/run/journal
    line() { grep -nF "$1" /run/journal | tail -n 1 | sed 's/:.*//'; }
    before() {
        [ -n "$(line "$1")" ] && [ -n "$(line "$2")" ] && [ "$(line "$1")" -lt "$(line "$2")" ] ||
            fail "'$1' isn't before '$2': $(grep -F vm /run/journal)"
        echo "$1 … $2"
    }
    before "Stopped vm1.service" "Stopping vhost-pmem.service"
    before "Stopped vm2.service" "Stopping vhost-pmem@vm2.service"
    before "Stopped libvirt-guests.service" "Stopping vhost-pmem.service"
    for guest in $guests; do
        shut_down $guest $guest
    done
    ! grep -F "vhost-pmem" /run/journal | grep -iE "fail|timed out|kill" || fail "the daemons didn't stop in order"

    echo "# guests that start at boot"
    for guest in vm1 vm3; do
        await grep -qs "^FOUND The last sync of $guest" "$(serial $guest)"
        echo "$guest: $(grep ^FOUND "$(serial $guest)")"
    done
    journalctl --no-pager -b -o cat _PID=1 >/run/journal
    before "Started vhost-pmem.service" "Starting libvirtd.service"
    [ "$(program vhost-pmem)" = /usr/bin/vhost-pmemd ] || fail "the service runs $(program vhost-pmem)"
    quietly virsh destroy vm3

    echo "# a restart of the service under its guest"
    rm "$(serial vm1)"
    run systemctl restart vhost-pmem
    shut_down vm1 rebooted
    await grep -qs "^FOUND The last sync of rebooted" "$(serial vm1)"
    echo "vm1: $(grep ^FOUND "$(serial vm1)")"
    await has_synced vm1 1

    # Another name, as its image has the last one's words already.
    sed -i 's/ vm=vm2/ vm=another/' /etc/systemd/system/vm2.service
    systemctl daemon-reload
    rm "$(serial vm2)"
    run systemctl start vm2
    # Before, it doesn't hear its power button.
    await has_synced vm2 1
    echo "# dpkg --remove vhost-pmemd"
    quietly dpkg --remove vhost-pmemd
    for unit in vm1.service vm2.service vhost-pmem.service vhost-pmem@vm2.service vhost-pmem@vm2.socket; do
        is $unit ActiveState inactive
    done
    shut_down vm2 another
    exit 0
fi

echo "# dpkg --install package.deb"
quietly dpkg --install /brought/package.deb
cat >/etc/vhost-pmem/devices.toml <<'END'
[device.vm1]
socket-path = "/run/vhost-pmem/vm1.sock"
file = "vm1.pmem"
size = "64M"
window = "served"

[device.vm3]
socket-path = "/run/vhost-pmem/vm3.sock"
file = "vm3.pmem"
size = "64M"
END
echo 'OPTIONS=--file vm2.pmem --size 64M' >/etc/vhost-pmem/vm2.env

# The pages' unit and domain, but for a kernel in place of what a disk would boot, and one CPU, as the machine has.
kernel=$(cat /brought/command-line)
for guest in vm1 vm2; do
    mkdir -p /var/lib/private/$guest
    truncate -s 1M /var/lib/private/$guest/disk.img
    boot="-kernel /brought/kernel -initrd /brought/initramfs -append \"$kernel vm=$guest\" -serial file:/var/lib/$guest/serial"
    sed "s,-smp 2,-smp 1,; s,-drive [^ ]*,& $boot," /brought/vm1.service >/etc/systemd/system/$guest.service
done
sed -i 's,vm1,vm2,g; s,vhost-pmem\.service,vhost-pmem@vm2.service,; s,/run/vhost-pmem/vm2.sock,/run/vhost-pmem-vm2.sock,' \
    /etc/systemd/system/vm2.service
boot="<kernel>/brought/kernel</kernel><initrd>/brought/initramfs</initrd><cmdline>$kernel vm=vm3</cmdline>"
sed "s,vm1,vm3,g; s,<vcpu>2,<vcpu>1,; s,</type>,&$boot,; s,<serial type='pty'/>,<serial type='file'><source path='$(serial vm3)'/></serial>," \
    /brought/domain.xml >/run/domain.xml
truncate -s 1M /var/lib/libvirt/images/vm3.img

systemctl daemon-reload
run systemctl enable --quiet --now vhost-pmem
run systemctl enable --quiet --now vm1
run systemctl start vm2
quietly virsh define /run/domain.xml
quietly virsh autostart vm3
run virsh start vm3
for guest in $guests; do
    await has_synced $guest 1
    echo "$guest runs"
done
echo "$(virsh version --daemon | grep -E '^Running' | tr '\n' ' ')$(virsh dumpxml vm3 | grep '<seclabel' | tr '\n' ' ')"
! virsh managedsave vm3 >/run/output 2>&1 || fail "a guest with such a device can be saved, which the page denies"
grep -q "non-migratable device" /run/output || fail "the page has another reason than $(cat /run/output)"

echo "# an upgrade under them"
dpkg-deb --raw-extract /brought/package.deb /run/package
sed -i 's/^Version: .*/&+upgrade/' /run/package/DEBIAN/control
sed -i 's/^Description=.*/& (upgraded)/' /run/package/usr/lib/systemd/system/vhost-pmem*.service
dpkg-deb --build -Znone /run/package /run/upgrade.deb >/run/output
services="vhost-pmem.service vhost-pmem@vm2.service"
pids() { for unit in $services; do of $unit MainPID; of $unit NRestarts; done; }
pids=$(pids)
quietly dpkg --install /run/upgrade.deb
grep ^vhost-pmemd: /run/output || fail "dpkg doesn't say what still runs: $(cat /run/output)"
for unit in $services; do
    is $unit NeedDaemonReload no
    of $unit Description | grep -q upgraded || fail "the units are old"
    case $(program $unit) in *deleted*) ;; *) fail "$unit runs $(program $unit)" ;; esac
done
# What Debian has to restart services whose programs are old.
quietly needrestart -q -l -r a
grep -q vhost-pmem.service /run/output || fail "needrestart doesn't name the service: $(cat /run/output)"
printf '[device.more]\nsocket-path = "/run/vhost-pmem/more.sock"\nfile = "more.pmem"\nsize = "4M"\n' >>/etc/vhost-pmem/devices.toml
run systemctl reload vhost-pmem
is_served() { vhost-pmemd list --control /run/vhost-pmem/control | grep -q "^more .* good$"; }
await is_served
[ "$(pids)" = "$pids" ] || fail "a service was restarted"
for guest in $guests; do
    await has_synced $guest $(($(count $guest) + 3))
    echo "$guest: $(tail -n 1 "$(serial $guest)")"
done

echo "# a shutdown under them"
# Journals that stay, for the second run.
mkdir -p /var/log/journal
journalctl --flush
touch /upgraded
# The next boot needn't load the rules for programs that aren't here.
find /etc/apparmor.d -maxdepth 1 -type f ! -name '*libvirt*' -delete
# The next one has a name of its own for its last words.
sed -i 's/ vm=vm1/ vm=rebooted/' /etc/systemd/system/vm1.service
run systemctl reboot
# Until the shutdown ends this.
sleep infinity
