# A guest of guests.sh, named $vm by its kernel's command line: it writes and syncs until its power button is pressed, and
# then once more.
set -eu
stop=
trap 'stop=1' TERM
[ "$(blkid -o value -s TYPE /dev/pmem0)" = ext4 ] || mkfs.ext4 -qF -b 4096 /dev/pmem0
mount -o dax=always /dev/pmem0 /mnt
[ ! -e /mnt/synced ] || echo "FOUND $(cat /mnt/synced)"
count=0
until [ "$stop" ]; do
    count=$((count + 1))
    echo $count >/mnt/count
    # The signal is for all processes.
    sync && echo "SYNCED $count" || [ "$stop" ]
    sleep 0.5 || true
done
echo "Last words of $vm." >/mnt/last
sync
# The proof is in the image, as nobody may listen to the serial line by then.
echo "The last sync of $vm succeeded." >/mnt/synced
umount /mnt
