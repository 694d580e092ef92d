#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The guest's first process. Programs of their own come before busybox's applets of the same name.
export PATH=/usr/sbin:/usr/bin:/applets HOME=/tmp

/applets/mount -t proc proc /proc
/applets/mount -t sysfs sysfs /sys
/applets/mount -t devtmpfs devtmpfs /dev 2>/dev/null
stty -onlcr

# base.list sorts before the VM's own extra.list; both may name the same module.
for module in $(cat /modules/*.list); do
    [ -d "/sys/module/$module" ] && continue
    insmod "/modules/$module.ko" || echo "MARK insmod-failed $module"
done

# The power button ends the script, which may trap that to shut down in order.
for event in /sys/class/input/event*; do
    if grep -qs 'Power Button' "$event/device/name"; then
        (dd if="/dev/input/${event##*/}" of=/dev/null bs=64 count=1 2>/dev/null && kill -TERM -1) &
    fi
done

echo "MARK boot $(uname -r)"
cd /tmp && /bin/sh /script </dev/null
status=$?

# Lets through nothing below an alert, which could end up in the middle of the line.
echo 2 >/proc/sys/kernel/printk
echo "MARK done rc=$status"
# Waits until the serial line has sent all.
stty -onlcr
poweroff -f
