// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is served, under cloud-hypervisor: `CLOUD_HYPERVISOR` names its executable.
//!
//! It can't map shared memory regions of a vhost-user device. What it can do, a test each: its own
//! pmem device on a published window, and ours in a window at a guest physical address.

use std::path::Path;

use guest_harness::{Accelerator, CloudHypervisor, Daemon, Lab, VmBuilder};

use crate::filesystem::Filesystem;
use crate::{DAEMON, pages_of, sparse_file};

const SIZE: u64 = 256 << 20;

/// The one to test, which takes KVM; else why there is nothing to test.
fn vmm() -> Option<CloudHypervisor> {
    let Some(vmm) = CloudHypervisor::named() else {
        eprintln!("not tested: CLOUD_HYPERVISOR names no cloud-hypervisor");
        return None;
    };
    if Accelerator::in_use().unwrap() != Accelerator::Kvm {
        eprintln!("not tested: cloud-hypervisor needs KVM");
        return None;
    }
    Some(vmm)
}

/// Has `boot` run a guest that writes, to `file` in the end, and one that finds it again.
fn finds_everything_at_the_next_boot(boot: impl Fn(&str) -> String, file: &Path) {
    let serial = boot(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        grep ' /mnt ' /proc/mounts
        xfs_io -fc 'truncate 1m' -c 'mmap 0 1m' -c 'mwrite -S 0xa7 0 256k' -c 'msync -s' /mnt/mapped
        dd if=/dev/urandom of=/mnt/noise bs=1M count=8 conv=fsync status=none
        (cd /mnt && md5sum mapped noise > sums && sync sums)",
    );
    let mount = serial.lines().find(|line| line.contains(" /mnt ")).unwrap();
    assert!(mount.contains("dax=always"), "{mount}");
    assert_eq!(pages_of(0xa7, file), 64);
    let serial = boot(
        "mount_dax /dev/pmem0
        (cd /mnt && md5sum -c sums)
        umount /mnt
        fsck /dev/pmem0",
    );
    assert_eq!(serial.matches(": OK").count(), 2, "{serial}");
}

/// Boots a guest on a daemon, to its end. What the guest said, and what the daemon logged.
fn boot(vm: VmBuilder<'_>, body: &str, daemon: Daemon) -> (String, String) {
    let serial = vm.script(&Filesystem::Ext4.script(body)).run().unwrap().serial;
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
    (serial, log)
}

#[test]
fn own_pmem_on_a_published_window_finds_everything_at_the_next_boot() {
    let Some(vmm) = vmm() else { return };
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [base, cow, window] = ["base", "cow", "window"].map(|name| dir.path().join(name));
    sparse_file(&base, SIZE);
    let args = [("--file", &base), ("--overlay", &cow), ("--publish", &window)];
    let args = args.map(|(arg, path)| [arg.as_ref(), path.as_os_str()]);
    let boot = |body: &str| {
        let daemon = Daemon::start(DAEMON, args.as_flattened()).unwrap();
        boot(lab.vm().cloud_hypervisor(vmm.clone().pmem(&window)), body, daemon).0
    };
    finds_everything_at_the_next_boot(boot, &cow);
    assert_eq!(pages_of(0, &base), 256 << 20 >> 12, "the base was changed");
}

#[test]
fn device_in_a_window_in_guest_memory_finds_everything_at_the_next_boot() {
    let Some(vmm) = vmm() else { return };
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    sparse_file(&file, SIZE);
    let boot = |body: &str| {
        let args = ["--window".as_ref(), "gpa=512M".as_ref(), "--file".as_ref(), file.as_os_str()];
        let daemon = Daemon::start(DAEMON, args).unwrap();
        let vmm = vmm.clone().file_memory(&file, 256).vhost_user_pmem(daemon.socket());
        let vm = lab.vm().memory_mib(512).kernel_argument("memmap=256M$0x20000000");
        let (serial, log) = boot(vm.cloud_hypervisor(vmm), body, daemon);
        assert!(log.contains("the guest has the window as its memory at 0x20000000"), "{log}");
        serial
    };
    finds_everything_at_the_next_boot(boot, &file);
}
