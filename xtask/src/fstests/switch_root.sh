# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs in the initramfs. The disks are: the root file system, xfstests, the results, and one for the
# tests' logs of writes. The first two are only read; what is written over them is gone with the guest.
set -e
mkdir /lower /suite /upper /new
mount -t ext4 -o ro /dev/vda /lower
mount -t ext4 -o ro /dev/vdb /suite
mount -t tmpfs -o size=50% tmpfs /upper
mkdir /upper/root /upper/root-work /upper/suite /upper/suite-work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/root,workdir=/upper/root-work overlay /new
mkdir -p /new/xfstests /new/results /new/test /new/scratch
mount -t overlay -o lowerdir=/suite,upperdir=/upper/suite,workdir=/upper/suite-work overlay /new/xfstests
# What a test wrote must be there when the guest is killed.
mount -t ext4 -o sync,noinit_itable /dev/vdc /new/results
for dir in dev proc sys; do
    mount --bind /$dir /new/$dir
done
mv /run-tests /new/run-tests
# When the kernel misses a module it calls this, in here; /.. is what will be mounted over /.
printf '#!/bin/sh\nexec /applets/chroot /.. /usr/sbin/modprobe "$@"\n' >/usr/sbin/modprobe
chmod +x /usr/sbin/modprobe
# A chroot alone may not make user namespaces, which some tests do.
cd /new
mount --move . /
exec chroot . /bin/bash /run-tests
