# A guest's life, after the commands of its filesystem and ATTEMPTS. Nothing of the kernel's may end up in a line.
echo 2 > /proc/sys/kernel/printk
boot=$(cut -c 1-8 /proc/sys/kernel/random/boot_id)
stty -F /dev/ttyS1 raw -echo
(while read -r order; do echo "$order" > order.new; mv order.new order; done < /dev/ttyS1) &

# Waits until the serial line has sent all.
say() {
    echo "MARK $*"
    stty -F /dev/ttyS0 -onlcr
}

# The first mount may come before QEMU has mapped the pages, where the host is busy: docs/design/0001.
mount_soon() {
    for attempt in $(seq $ATTEMPTS); do
        mount_dax /dev/pmem0 2>/dev/null && return
        say "finds no filesystem yet, $attempt"
        sleep 1
    done
    mount_dax /dev/pmem0
}

# Finds a clean filesystem, once its log is replayed, and says what is in it.
open_device() {
    mount_soon
    umount /mnt
    fsck /dev/pmem0
    mount_dax /dev/pmem0
    mkdir -p /mnt/kept
    say finds
    (cd /mnt/kept && for name in *; do
        [ -e "$name" ] || continue
        sum=$(md5sum < "$name")
        echo "MARK has $name ${sum%% *} ."
    done)
    say checked
    # It is to go on for ever, in 512 MiB.
    if [ "$(ls /mnt/kept | wc -l)" -gt 60 ]; then
        say drops
        rm -rf /mnt/kept
        mkdir /mnt/kept
    fi
}

flood() {
    say flooding
    floods=
    for number in 1 2 3 4; do
        xfs_io -fs -c 'pwrite -q -b 4k 0 400k' "/mnt/flood$number" &
        floods="$floods $!"
    done
    wait $floods
    say flooded
}

replug() {
    umount /mnt
    fsck /dev/pmem0
    say unmounted
    while [ -e /dev/pmem0 ]; do sleep 0.1; done
    while ! [ -e /dev/pmem0 ]; do sleep 0.1; done
    open_device
}

# Syncs one more file, by system calls or by a mapping.
sync_one() {
    kib=$((16 << (number * 5 % 6)))
    name=$boot-$number-$kib
    if [ $((number % 3)) = 0 ]; then
        xfs_io -fc "truncate ${kib}k" -c "mmap 0 ${kib}k" -c "mwrite -S $((number % 256)) 0 ${kib}k" \
            -c 'msync -s' "/mnt/kept/$name"
    else
        head -c ${kib}k /dev/urandom > "/mnt/kept/$name"
    fi
    sync "/mnt/kept/$name" /mnt/kept
    sum=$(md5sum < "/mnt/kept/$name")
    echo "MARK synced $name ${sum%% *} ."
}

open_device
number=0
while :; do
    number=$((number + 1))
    # Something dirty at any time.
    dd if=/dev/urandom of=/mnt/unsynced bs=64k count=4 status=none
    sync_one
    [ -e order ] || continue
    order=$(cat order)
    rm order
    case $order in
        flood) flood ;;
        replug) replug ;;
        reboot) say reboots; reboot -f ;;
        end) umount /mnt; fsck /dev/pmem0; exit 0 ;;
    esac
done
