// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots guests on QEMU's own virtio-pmem device: what holds here is the harness's, not the
//! project's doing.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use guest_harness::{Kernel, Lab, Version};

const SIZE: u64 = 256 << 20;
/// mkfs.xfs refuses less than 300 MiB.
const XFS_SIZE: u64 = 320 << 20;

fn sparse_file(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

#[test]
fn own_pmem_with_dax_keeps_stores_in_host_file() {
    let lab = Lab::open().unwrap();
    assert!(lab.qemu().version() >= Version::NEEDED);
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("pmem,with a comma");
    sparse_file(&disk, SIZE);

    let outcome = lab
        .vm()
        .own_virtio_pmem(&disk, SIZE)
        .script(
            "set -e
            mkfs.ext4 -qF -b 4096 /dev/pmem0
            mount -o dax /dev/pmem0 /mnt
            grep ' /mnt ' /proc/mounts
            truncate -s 1M /mnt/file
            xfs_io -c 'mmap 0 1m' -c 'mwrite -S 0x5a 4096 8192' -c 'msync -s' /mnt/file
            umount /mnt",
        )
        .run()
        .unwrap();
    let mount = outcome.serial.lines().find(|line| line.contains(" /mnt ")).unwrap();
    assert!(mount.contains("dax"), "{mount}");

    let check = lab.host_tool("e2fsck").unwrap().arg("-fn").arg(&disk).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    let dump =
        lab.host_tool("debugfs").unwrap().args(["-R", "bmap /file 1"]).arg(&disk).output().unwrap();
    let block: u64 = String::from_utf8(dump.stdout).unwrap().trim().parse().unwrap();
    let mut file = File::open(&disk).unwrap();
    file.seek(SeekFrom::Start(block * 4096)).unwrap();
    let mut page = [0; 4096];
    file.read_exact(&mut page).unwrap();
    assert_eq!(page, [0x5a; 4096]);
}

#[test]
fn fio_on_dax_mount_writes_every_page() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("pmem");
    sparse_file(&disk, SIZE);
    lab.vm()
        .program("fio")
        .own_virtio_pmem(&disk, SIZE)
        .script(
            "set -e
            mkfs.ext4 -qF -b 4096 /dev/pmem0
            mount -o dax=always /dev/pmem0 /mnt
            head -c 8m /dev/zero | tr '\\0' '\\247' > expected
            for engine in mmap sync; do
                fio --name=$engine --ioengine=$engine --filename=/mnt/$engine --size=8m --bs=4k \
                    --rw=randwrite --fsync=256 --buffer_pattern=0xa7
                cmp /mnt/$engine expected
            done",
        )
        .run()
        .unwrap();
}

#[test]
fn reset_with_reboots_allowed_runs_script_again() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("pmem");
    sparse_file(&disk, XFS_SIZE);

    let (sender, lines) = mpsc::channel();
    let vm = lab
        .vm()
        .module("xfs")
        .own_virtio_pmem(&disk, XFS_SIZE)
        .allow_reboot()
        .on_line(move |line| sender.send(line.to_owned()).unwrap_or_default())
        .script(
            "set -e
            if mount -t xfs -o dax=always /dev/pmem0 /mnt; then cat /mnt/file; exit; fi
            mkfs.xfs -qf /dev/pmem0
            mount -t xfs -o dax=always /dev/pmem0 /mnt
            echo kept >/mnt/file; sync; echo MARK synced; sleep 1000",
        )
        .boot()
        .unwrap();
    vm.wait_for("MARK boot").unwrap();
    vm.wait_for("MARK synced").unwrap();
    vm.system_reset().unwrap();
    vm.wait_for("MARK boot").unwrap();
    vm.wait_for("kept").unwrap();
    let outcome = vm.wait().unwrap().expect_success().unwrap();
    assert_eq!(lines.iter().collect::<Vec<_>>(), outcome.serial.lines().collect::<Vec<_>>());
}

#[test]
fn power_button_ends_script_that_traps_it() {
    let lab = Lab::open().unwrap();
    let vm =
        lab.vm().script("trap 'echo bye; exit 0' TERM; echo MARK up; sleep 1000").boot().unwrap();
    vm.wait_for("MARK up").unwrap();
    vm.system_powerdown().unwrap();
    let outcome = vm.wait().unwrap().expect_success().unwrap();
    assert!(outcome.serial.contains("\nbye\n"), "{}", outcome.serial);
}

#[test]
fn killed_vm_has_signal_and_no_status() {
    let lab = Lab::open().unwrap();
    let vm = lab.vm().script("echo MARK up; sleep 1000").boot().unwrap();
    vm.wait_for("MARK up").unwrap();
    let outcome = vm.kill().unwrap();
    assert_eq!((outcome.script_status, outcome.qemu_status.code()), (None, None));
    assert!(!outcome.timed_out);
}

#[test]
fn panic_of_guest_is_reported() {
    let lab = Lab::open().unwrap();
    let outcome = lab.vm().script("echo c >/proc/sysrq-trigger").boot().unwrap().wait().unwrap();
    assert_eq!(outcome.script_status, None);
    let error = outcome.expect_success().unwrap_err().to_string();
    assert!(error.contains("sysrq triggered crash"), "{error}");
}

#[test]
fn time_limit_ends_vm_and_is_reported() {
    let lab = Lab::open().unwrap();
    let vm = lab.vm().time_limit(Duration::from_secs(1)).script("sleep 1000").boot().unwrap();
    assert!(vm.wait_for("never printed").unwrap_err().to_string().contains("time limit"));
    let outcome = vm.wait().unwrap();
    assert!(outcome.timed_out);
    assert!(outcome.expect_success().unwrap_err().to_string().contains("time limit"));
}

#[test]
fn bookworm_kernel_loads_its_modules() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("pmem");
    sparse_file(&disk, SIZE);
    let outcome = lab
        .vm()
        .kernel(Kernel::Bookworm)
        .module("xfs")
        .own_virtio_pmem(&disk, SIZE)
        .script(
            "set -e
            mkfs.ext4 -qF -b 4096 /dev/pmem0
            mount -o dax /dev/pmem0 /mnt",
        )
        .run()
        .unwrap();
    assert!(outcome.serial.contains("MARK boot 6.1."), "{}", outcome.serial);
    let magic = fs::read(&disk).unwrap()[1024 + 56..][..2].to_owned();
    assert_eq!(magic, [0x53, 0xef]);
}
