#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The first process of a guest that boots a Debian from a disk.
export PATH=/usr/sbin:/usr/bin:/applets
/applets/mount -t proc proc /proc
/applets/mount -t sysfs sysfs /sys
/applets/mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /modules/*.list); do
    [ -d "/sys/module/$module" ] || insmod "/modules/$module.ko" || echo "MARK insmod-failed $module"
done

mount -t ext4 @DEVICE@ /mnt
# Not where it was brought before a reboot.
[ ! -d /brought ] || [ -d /mnt/brought ] || cp -R /brought /mnt/brought
cat >/mnt/script <<'END-OF-SCRIPT'
@SCRIPT@
END-OF-SCRIPT
cat >/mnt/run-script <<'END-OF-SCRIPT'
exec </dev/null >/dev/ttyS0 2>&1
stty -onlcr </dev/ttyS0
echo "MARK boot $(uname -r)"
cd /root && sh /script
status=$?
echo 2 >/proc/sys/kernel/printk
echo "MARK done rc=$status"
# Waits until the serial line has sent all.
stty -onlcr </dev/ttyS0
systemctl poweroff --force --force
END-OF-SCRIPT
cat >/mnt/etc/systemd/system/script.service <<'END-OF-UNIT'
[Service]
Type=exec
ExecStart=/bin/sh /run-script
Environment=HOME=/root
END-OF-UNIT
mkdir -p /mnt/etc/systemd/system/multi-user.target.wants
ln -sf ../script.service /mnt/etc/systemd/system/multi-user.target.wants/script.service
umount /proc /sys /dev
# busybox's, which deletes the initramfs's files.
exec /applets/switch_root /mnt /sbin/init
