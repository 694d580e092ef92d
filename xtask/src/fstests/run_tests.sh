# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs in the guest's root, by bash. Set before: FSTYP, MKFS, MKFS_OPTIONS, DAX, LIMIT and the array
# TESTS.
# Lines that begin with MARK or CHECK are for the host.
export PATH=/usr/sbin:/usr/bin HOME=/root TERM=dumb LC_ALL=C
cd /xfstests || exit

mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug
mkdir -p /run/lock
hostname fstests

# What maintainer scripts would have made.
ln -sf dash /usr/bin/sh
ln -sf gawk /usr/bin/awk
ln -sf which.debianutils /usr/bin/which
ln -sf /proc/self/mounts /etc/mtab
: >/etc/fstab
printf '127.0.0.1 localhost fstests\n' >/etc/hosts
cat >/etc/passwd <<'END'
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
fsgqa:x:1000:1000:xfstests:/home/fsgqa:/bin/bash
fsgqa2:x:1001:1001:xfstests:/home/fsgqa2:/bin/bash
123456-fsgqa:x:1002:1002:xfstests:/home/123456-fsgqa:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
END
cat >/etc/group <<'END'
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
tty:x:5:
disk:x:6:
fsgqa:x:1000:
fsgqa2:x:1001:
123456-fsgqa:x:1002:
nogroup:x:65534:
END
for user in fsgqa fsgqa2 123456-fsgqa; do
    install -d -o "$user" -g "$user" "/home/$user"
done
# root becomes anybody, without a password.
for service in su su-l runuser runuser-l other; do
    printf '%s required pam_permit.so\n' auth account password session >"/etc/pam.d/$service"
done

cat >/etc/fstests.config <<END
export FSTYP=$FSTYP
export TEST_DEV=/dev/pmem0 TEST_DIR=/test
export SCRATCH_DEV=/dev/pmem1 SCRATCH_MNT=/scratch
export MKFS_OPTIONS="$MKFS_OPTIONS"
export LOGWRITES_DEV=/dev/vdd
export MOUNT_OPTIONS="-o $DAX" TEST_FS_MOUNT_OPTS="-o $DAX"
export RESULT_BASE=/results
END
export HOST_OPTIONS=/etc/fstests.config

missing=$(ldd ltp/fsstress 2>&1 | grep 'not found')
if [ "$missing" ]; then
    echo "MARK unusable" $missing
    exit 1
fi
$MKFS $MKFS_OPTIONS /dev/pmem0 || exit

# The console is for the marks: the kernel's messages would get in between.
dmesg -n 1
dmesg --follow >/results/kernel.log &
mkfifo /run/begun
exec 3<>/run/begun

# check calls this, with these words, right before each test. It prints to where check does, so that
# the mark is between what check says of one test and of the next.
rm /usr/bin/logger
cat >/usr/bin/logger <<'END'
#!/bin/bash
[[ "$*" == "run xfstest "* ]] || exit 0
echo "MARK begin ${*##* }"
echo >/run/begun
END
chmod +x /usr/bin/logger

(
    # Each test that begins has its time from then on.
    while read -rt "$LIMIT" -u 3; do :; done
    echo "-- the last of the kernel's messages, the stacks of blocked tasks, and all tasks:"
    dmesg | tail -n 50
    dmesg -n 8
    echo w >/proc/sysrq-trigger
    # The last, as it may have to wait for a task that is blocked.
    ps -e -o pid,stat,wchan:32,args
    echo "MARK hung"
) &
./check "${TESTS[@]}" </dev/null 2>&1 3>&- | sed -u 's/^/CHECK /'
echo "MARK end ${PIPESTATUS[0]}"
kill $(jobs -p)
wait
umount /results
