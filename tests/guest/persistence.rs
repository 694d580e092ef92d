// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest has synced is there: in the file, after a reboot, after a power-off, after a kill.

use guest_harness::{Daemon, Lab};

use crate::filesystem::Filesystem;
use crate::{guest, on_ext4_and_xfs, pages_of, serve};

on_ext4_and_xfs! {
    mounted_with_dax_writes_land_in_the_host_file
    rebooted_within_one_qemu_finds_everything
    powered_off_and_booted_again_finds_everything
    killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem
    eight_writers_with_fsync_at_once_lose_nothing
}

fn mounted_with_dax_writes_land_in_the_host_file(filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let daemon = serve(&file);
    let script = filesystem.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        grep ' /mnt ' /proc/mounts
        xfs_io -fc 'truncate 1m' -c 'mmap 0 1m' -c 'mwrite -S 0xa7 0 256k' -c 'msync -s' /mnt/mapped
        xfs_io -fc 'pwrite -q -S 0xb3 0 128k' -c fsync /mnt/written
        echo MARK synced
        read forever < /dev/ttyS0",
    );
    let vm = guest(&lab, filesystem, &[&daemon]).script(&script).boot().unwrap();
    vm.wait_for("MARK synced").unwrap();
    let serial = vm.serial();
    let mount = serial.lines().find(|line| line.contains(" /mnt ")).unwrap();
    assert!(mount.contains("dax=always"), "{mount}");
    assert_eq!((pages_of(0xa7, &file), pages_of(0xb3, &file)), (64, 32));
    vm.kill().unwrap();
}

/// Writes 8 MiB of noise and its checksum.
const WRITE: &str = "
    mkdir /mnt/dir
    dd if=/dev/urandom of=/mnt/dir/noise bs=1M count=8 conv=fsync status=none
    (cd /mnt && md5sum dir/noise > sums && sync sums)";

/// Checks what [`WRITE`] wrote.
const VERIFY: &str = "(cd /mnt && md5sum -c sums)";

fn rebooted_within_one_qemu_finds_everything(filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("pmem"));
    let script = filesystem.script(&format!(
        "if mount_dax /dev/pmem0 2>/dev/null; then
            {VERIFY}
            if [ -e /mnt/third ]; then exit 0; fi
            : > /mnt/third
            umount /mnt
            echo MARK reset me
            read forever < /dev/ttyS0
        fi
        mkfs /dev/pmem0
        mount_dax /dev/pmem0
        {WRITE}
        umount /mnt
        reboot -f"
    ));
    let vm = guest(&lab, filesystem, &[&daemon]).allow_reboot().script(&script).boot().unwrap();
    vm.wait_for("MARK reset me").unwrap();
    vm.system_reset().unwrap();
    let outcome = vm.wait().unwrap().expect_success().unwrap();
    assert_eq!(outcome.serial.matches("dir/noise: OK").count(), 2);
    assert_eq!(daemon.log().matches("guest activated the device").count(), 3);
}

/// Boots a guest that does `body`, and powers off.
fn run(lab: &Lab, filesystem: Filesystem, daemon: &Daemon, body: &str) -> String {
    let script = filesystem.script(body);
    guest(lab, filesystem, &[daemon]).script(&script).run().unwrap().serial
}

fn powered_off_and_booted_again_finds_everything(filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let daemon = serve(&file);
    let write = format!("mkfs /dev/pmem0; mount_dax /dev/pmem0; {WRITE}; umount /mnt");
    run(&lab, filesystem, &daemon, &write);
    // The next frontend may as well meet the next daemon.
    let (status, _) = daemon.terminate().unwrap();
    assert!(status.success());
    let daemon = serve(&file);
    let verify = format!("mount_dax /dev/pmem0; {VERIFY}; umount /mnt; fsck /dev/pmem0");
    run(&lab, filesystem, &daemon, &verify);
}

fn killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem(filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("pmem"));
    let script = filesystem.script(&format!(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        {WRITE}
        sync
        echo MARK synced
        while :; do dd if=/dev/urandom of=/mnt/unsynced bs=64k count=4 status=none; done"
    ));
    let vm = guest(&lab, filesystem, &[&daemon]).script(&script).boot().unwrap();
    vm.wait_for("MARK synced").unwrap();
    vm.kill().unwrap();
    daemon.wait_for_log("frontend left").unwrap();
    let verify = format!("mount_dax /dev/pmem0; {VERIFY}; umount /mnt; fsck /dev/pmem0");
    run(&lab, filesystem, &daemon, &verify);
}

fn eight_writers_with_fsync_at_once_lose_nothing(filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("pmem"));
    let serial = run(
        &lab,
        filesystem,
        &daemon,
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        writer() {
            for round in 1 2 3 4 5 6 7 8; do
                xfs_io -fc \"pwrite -q -S $1 $((round * 64))k 64k\" -c fsync /mnt/$1
            done
        }
        for id in 1 2 3 4 5 6 7 8; do writer $id & done
        wait
        umount /mnt
        fsck /dev/pmem0
        mount_dax /dev/pmem0
        for id in 1 2 3 4 5 6 7 8; do
            head -c 512k /dev/zero | tr '\\0' \"$(printf '\\\\%03o' $id)\" > expected
            tail -c 512k /mnt/$id | cmp - expected && echo \"RES writer $id intact\"
        done",
    );
    assert_eq!(serial.matches("intact").count(), 8, "{serial}");
}
