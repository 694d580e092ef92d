# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What is done with the package on a Debian 13 that has nothing else: see check.rs.
set -eu
fail() { echo "FAILED: $*"; exit 1; }
# What went wrong is in the journal.
trap '[ $? = 0 ] || journalctl --no-pager --quiet -o cat -n 60 -u "vhost-pmem*"' EXIT
run() { echo "# $*"; "$@"; }
# The property $2 of the unit $1.
of() { systemctl show --value -p "$2" "$1"; }
is() { [ "$(of "$1" "$2")" = "$3" ] || fail "$2 of $1 is $(of "$1" "$2"), not $3"; }

# Its progress is for terminals.
echo "# dpkg --install package.deb"
dpkg --install /brought/package.deb >/run/dpkg || fail "$(cat /run/dpkg)"
for path in bin/vhost-pmemd lib/systemd/system/vhost-pmem.service lib/systemd/system/vhost-pmem@.service \
    lib/systemd/system/vhost-pmem@.socket lib/sysusers.d/vhost-pmem.conf share/man/man1/vhost-pmemd.1.gz \
    share/bash-completion/completions/vhost-pmemd share/fish/vendor_completions.d/vhost-pmemd.fish \
    share/zsh/vendor-completions/_vhost-pmemd share/qemu/vhost-user/50-vhost-pmemd.json \
    share/doc/vhost-pmemd/grafana/vhost-pmem.json share/doc/vhost-pmemd/copyright; do
    dpkg --listfiles vhost-pmemd | grep -qx "/usr/$path" || fail "the package has no /usr/$path"
done
vhost-pmemd --version
id vhost-pmem

# Without OPTIONS= the template is not whole.
echo 'OPTIONS=--file one.img --size 64M --max-syncs 500' >/etc/vhost-pmem/one.env
units="vhost-pmem.service vhost-pmem@one.service vhost-pmem@one.socket"
# Without manual pages, as man-db is not there.
said=$(systemd-analyze verify --man=no $units 2>&1) || fail "systemd-analyze verify: $said"
[ -z "$said" ] || fail "systemd-analyze verify: $said"
echo "systemd-analyze verify: clean"
for unit in vhost-pmem.service vhost-pmem@one.service; do
    echo "$unit $(systemd-analyze security --no-pager $unit | grep 'Overall exposure')"
done

# All devices of a file: one that systemd starts, and one more after a reload.
cat >/etc/vhost-pmem/devices.toml <<'END'
[device.first]
socket-path = "/run/vhost-pmem/first.sock"
file = "first.img"
size = "64M"
window = "served"
END
run systemctl start vhost-pmem
cat >>/etc/vhost-pmem/devices.toml <<'END'
[device.second]
socket-path = "/run/vhost-pmem/second.sock"
file = "second.img"
size = "64M"
END
run systemctl reload vhost-pmem
for device in first second; do
    tries=0
    until vhost-pmemd list --control /run/vhost-pmem/control | grep "^$device .* good$" >/dev/null; do
        [ $((tries += 1)) -le 50 ] || fail "$device is not served"
        sleep 0.1
    done
    [ "$(stat -c '%U %G %a' /run/vhost-pmem/$device.sock)" = "vhost-pmem kvm 770" ] ||
        fail "$device.sock: $(ls -l /run/vhost-pmem)"
done
run vhost-pmemd list --control /run/vhost-pmem/control

# One device, when its VMM comes.
run systemctl start vhost-pmem@one.socket
is vhost-pmem@one.service ActiveState inactive

# The user, the sandbox's filter, and no capability: of each thread of each process.
confined() {
    for thread in $(sed 's,.*,/proc/&/task/*,' "/sys/fs/cgroup$(of "$1" ControlGroup)/cgroup.procs"); do
        state=$(sed -n 's/^\(Uid\|CapEff\|NoNewPrivs\|Seccomp\):[[:space:]]*\([^[:space:]]*\).*/\1=\2/p' "$thread/status" | tr '\n' ' ')
        [ "$state" = "Uid=$(id -u vhost-pmem) CapEff=0000000000000000 NoNewPrivs=1 Seccomp=2 " ] || fail "$thread of $1: $state"
    done
    echo "$1: pid $(of "$1" MainPID) of $(stat -c %U "/proc/$(of "$1" MainPID)"), confined"
}
confined vhost-pmem.service

cat >/run/guest <<'END'
set -eu
for n in 0 1 2; do
    mkfs.ext4 -qF -b 4096 /dev/pmem$n
    mount -o dax=always /dev/pmem$n /mnt
    grep /dev/pmem$n /proc/mounts
    echo "Persistent greetings of pmem$n." >/mnt/hello
    xfs_io -f -c 'truncate 64k' -c 'mmap 0 64k' -c 'mwrite -S 0x5a 0 64k' -c 'msync -s' /mnt/mapped
    sync
    umount /mnt
done
END
cat >/run/start-guest <<'END'
@GUEST@
END
echo "# a guest with three devices"
sh /run/start-guest </run/guest
is vhost-pmem@one.service ActiveState active
confined vhost-pmem@one.service

n=0
for image in first second one; do
    file=/var/lib/vhost-pmem/$image.img
    grep -aq "Persistent greetings of pmem$n\." $file || fail "the guest's words are not in $file"
    [ "$(tr -cd Z <$file | wc -c)" -ge 65536 ] || fail "the guest's stores are not in $file"
    echo "$file has what the guest wrote on /dev/pmem$n"
    n=$((n + 1))
done

# How much a guest brings to the disk in a second is limited by the slice that daemons and VMM are in.
for unit in vhost-pmem.service vhost-pmem@one.service; do
    mkdir -p /run/systemd/system/$unit.d
    printf '[Service]\nSlice=vm1.slice\n' >/run/systemd/system/$unit.d/slice.conf
done
systemctl daemon-reload
run systemctl set-property --runtime vm1.slice "IOWriteBandwidthMax=/var/lib/vhost-pmem 2M"
systemctl stop vhost-pmem vhost-pmem@one.socket vhost-pmem@one.service
# What is in memory already is accounted to those who brought it there.
echo 3 >/proc/sys/vm/drop_caches
systemctl start vhost-pmem vhost-pmem@one.socket
cat >/run/guest <<'END'
set -eu
# Of a direct window the kernel finds out by and by whose stores it writes.
for n in 0 2; do
    mount -o dax=always /dev/pmem$n /mnt
    tries=0 took=0
    until [ $took -ge 4 ]; do
        [ $((tries += 1)) -le 10 ] || { echo "FAILED: no limit"; exit 1; }
        head -c 16777216 /dev/urandom >/mnt/much
        from=$(date +%s)
        sync
        took=$(($(date +%s) - from))
    done
    echo "16 MiB on /dev/pmem$n brought to the disk in $took s, as sync $tries"
    umount /mnt
done
END
echo "# a guest in that slice"
systemd-run --quiet --scope --slice=vm1.slice -p After=vhost-pmem@one.service unshare --mount sh /run/start-guest </run/guest

# Longer than the watchdog's patience, and never started again.
running=$((($(date +%s%6N) - $(date -d "$(of vhost-pmem ActiveEnterTimestamp)" +%s%6N)) / 1000000))
echo "vhost-pmem.service: ready for $running s, watchdog $(of vhost-pmem WatchdogUSec)"
[ $running -gt 30 ] || sleep $((31 - running))
is vhost-pmem NRestarts 0
is vhost-pmem ActiveState active
run systemctl stop vhost-pmem vhost-pmem@one.socket vhost-pmem@one.service
for unit in vhost-pmem vhost-pmem@one.service; do
    is $unit Result success
done

rm /etc/vhost-pmem/one.env
echo "# dpkg --purge vhost-pmemd"
dpkg --purge vhost-pmemd >/run/dpkg || fail "$(cat /run/dpkg)"
left=$(find / -xdev -name '*vhost-pmem*' ! -path '/var/lib/vhost-pmem*' ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' | tr '\n' ' ')
echo "left behind: $left$(ls -d /var/lib/vhost-pmem/*.img | tr '\n' ' ')"
