// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is served, under cloud-hypervisor: `CLOUD_HYPERVISOR` names its executable.
//!
//! It can't map shared memory regions of a vhost-user device. What it can do, a test each: its own
//! pmem device on a published window, and ours in a window at a guest physical address.

use guest_harness::{Accelerator, CloudHypervisor, Daemon, Lab};

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
        let script = Filesystem::Ext4.script(body);
        let vm = lab.vm().cloud_hypervisor(vmm.clone().pmem(&window)).script(&script);
        let serial = vm.run().unwrap().serial;
        let (status, log) = daemon.terminate().unwrap();
        assert!(status.success(), "{log}");
        serial
    };
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
    assert_eq!(pages_of(0xa7, &cow), 64);
    let serial = boot(
        "mount_dax /dev/pmem0
        (cd /mnt && md5sum -c sums)
        umount /mnt
        fsck /dev/pmem0",
    );
    assert_eq!(serial.matches(": OK").count(), 2, "{serial}");
    assert_eq!(pages_of(0, &base), 256 << 20 >> 12, "the base was changed");
}
