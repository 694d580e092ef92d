// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Read-only files: a root filesystem that programs run from, and guests that write all the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest_harness::{Daemon, Lab};

use super::{can_serve, same};
use crate::filesystem::Filesystem;
use crate::{DAEMON, guest, on_ext4_and_xfs, serve};

on_ext4_and_xfs! {
    read_only_root_is_run_from_and_a_write_fails_the_flush
}

fn serve_read_only(file: &Path) -> Daemon {
    let args = ["--file".as_ref(), file.as_os_str(), "--read-only".as_ref()];
    Daemon::start(DAEMON, args).unwrap()
}

fn copy_of(file: &Path) -> PathBuf {
    let copy = file.with_extension("copy");
    let copied = Command::new("cp").arg("--sparse=always").args([file, &copy]).status().unwrap();
    assert!(copied.success());
    copy
}

/// Has a guest make a root filesystem of its own in `file`, with an `/init`.
fn make_root(lab: &Lab, filesystem: Filesystem, file: &Path) {
    let daemon = serve(file);
    // The shell is mapped, as are its libraries, and writes to its own copy of some of their pages.
    let script = filesystem.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        cp -a /usr /bin /sbin /lib /lib64 /applets /mnt
        mkdir /mnt/dev /mnt/proc
        cat > /mnt/init << 'END'
#!/bin/sh
set -eu
grep ' / ' /proc/mounts
libc=/usr/lib/x86_64-linux-gnu/libc.so.6
grep -q \" $libc$\" /proc/$$/maps
# STATX_ATTR_DAX.
xfs_io -rc 'statx -r' $libc | grep -qx 'stat.attributes = 0x200000'
echo can read > /dev/null
if (echo can write > /new) 2> /dev/null || (echo can write >> /init) 2> /dev/null; then exit 1; fi
echo MARK init is through
END
        chmod +x /mnt/init
        umount /mnt",
    );
    guest(lab, filesystem, &[&daemon]).script(&script).run().unwrap();
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
}

fn read_only_root_is_run_from_and_a_write_fails_the_flush(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root");
    make_root(&lab, filesystem, &file);
    let copy = copy_of(&file);
    let daemon = serve_read_only(&file);
    let script = filesystem.script(
        "mount -o dax=always,ro,$norecovery /dev/pmem0 /mnt
        mount -t proc proc /mnt/proc
        mount -t devtmpfs dev /mnt/dev
        chroot /mnt /init
        if mount -o remount,rw /mnt; then exit 1; fi
        umount /mnt/proc /mnt/dev /mnt
        # To the device itself, through what is mapped of it.
        if dd if=/dev/urandom of=/dev/pmem0 bs=1M count=4 seek=64 conv=fsync 2>&1; then exit 1; fi
        echo REFUSED",
    );
    let serial = guest(&lab, filesystem, &[&daemon]).script(&script).run().unwrap().serial;
    assert!(serial.contains("MARK init is through") && serial.contains("REFUSED"), "{serial}");
    let mount = serial.lines().find(|line| line.contains(" / ")).unwrap();
    assert!(mount.contains(" ro,") && mount.contains("dax=always"), "{mount}");
    let (_, log) = daemon.terminate().unwrap();
    assert!(log.contains("is read-only"), "{log}");
    assert!(same(&file, &copy), "the file was changed");
}

/// Has a guest flush, do `attack`, which makes the first byte 0xa7 in its eyes, and flush in vain.
fn attacked_file_is_the_same(attack: &str) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, vec![0xb3; 64 << 20]).unwrap();
    let copy = copy_of(&file);
    let daemon = serve_read_only(&file);
    let script = format!(
        "set -eu
        flush() {{ xfs_io -c fsync /dev/pmem0; }}
        first_is() {{
            dd if=/dev/pmem0 iflag=direct bs=4096 count=1 status=none | od -An -tx1 -N1 | grep -q $1
        }}
        first_is b3
        flush
        {attack}
        first_is a7
        if flush; then exit 1; fi
        if flush; then exit 1; fi"
    );
    // Without the argument, the kernel keeps `/dev/mem` from what a driver has claimed.
    guest(&lab, Filesystem::Ext4, &[&daemon])
        .kernel_argument("iomem=relaxed")
        .script(&script)
        .run()
        .unwrap();
    let (_, log) = daemon.terminate().unwrap();
    assert!(log.contains("is read-only"), "{log}");
    assert!(same(&file, &copy), "the file was changed");
}

#[test]
fn read_only_device_written_through_a_mapping_is_the_same() {
    attacked_file_is_the_same(
        "if xfs_io -c 'mmap 0 64k' -c 'mwrite -S 0xa7 0 64k' -c 'msync -s' /dev/pmem0; then exit 1; fi",
    );
}

#[test]
fn read_only_memory_written_at_its_address_is_the_same() {
    attacked_file_is_the_same("devmem $(cat /sys/bus/nd/devices/region0/resource) 8 0xa7");
}
