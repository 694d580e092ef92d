// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that QEMU asks its guest for, and plugs in again. What becomes of the connection is
//! QEMU's doing, and pinned here: it stays for as long as the character device does.

use std::fs;
use std::path::Path;
use std::process;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, Lab, patience};

use crate::filesystem::Filesystem;
use crate::serve;

const PATIENCE: Duration = Duration::from_secs(60);

const UNPLUGGED_AND_BACK: &str = "
    mkfs /dev/pmem0
    mount_dax /dev/pmem0
    xfs_io -fc 'pwrite -q -S 0xb3 0 1m' -c fsync /mnt/kept
    echo MARK mounted
    umount /mnt
    echo MARK ready
    while [ -e /dev/pmem0 ]; do sleep 0.1; done
    echo MARK gone
    while ! [ -e /dev/pmem0 ]; do sleep 0.1; done
    mount_dax /dev/pmem0
    head -c 1m /dev/zero | tr '\\0' '\\263' | cmp - /mnt/kept
    xfs_io -fc 'pwrite -q -S 0xa7 0 1m' -c fsync /mnt/back
    umount /mnt
    fsck /dev/pmem0";

/// Whether a process other than the daemon and this one maps `file`: the VMM.
fn is_mapped(file: &Path, daemon: &Daemon) -> bool {
    let ours = [process::id(), daemon.pid()].map(|pid| pid.to_string());
    let file = file.to_str().unwrap();
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|entry| {
        // Processes end meanwhile, and some aren't ours to look at.
        !ours.iter().any(|pid| **pid == *entry.file_name())
            && fs::read_to_string(entry.path().join("maps")).is_ok_and(|maps| maps.contains(file))
    })
}

#[test]
fn device_unplugged_by_qemu_lets_its_pages_go_and_comes_back_over_a_new_connection() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let daemon = serve(&file);
    let vm = lab
        .vm()
        .pluggable_vhost_user_pmem("goes", daemon.socket())
        .script(&Filesystem::Ext4.script(UNPLUGGED_AND_BACK))
        .boot()
        .unwrap();
    vm.wait_for("MARK mounted").unwrap();
    assert!(is_mapped(&file, &daemon));
    vm.wait_for("MARK ready").unwrap();

    vm.unplug("goes").unwrap();
    vm.wait_for("MARK gone").unwrap();
    // QEMU lets go of memory when none of its threads can be at it any more.
    let deadline = Instant::now() + patience(PATIENCE);
    while is_mapped(&file, &daemon) {
        assert!(Instant::now() < deadline, "the pages are mapped still");
        std::thread::sleep(Duration::from_millis(10));
    }
    // It begins the protocol anew, on a connection that has it behind itself.
    let error = vm.plug_vhost_user_pmem("goes").unwrap_err();
    assert!(error.to_string().contains("Protocol error"), "{error}");
    daemon.wait_for_log("already claimed").unwrap();

    for _ in 0..2 {
        vm.remove_chardev("goes").unwrap();
        vm.add_chardev("goes", daemon.socket()).unwrap();
        daemon.wait_for_log("frontend connected").unwrap();
    }
    assert!(daemon.log().contains("frontend left"), "{}", daemon.log());
    vm.plug_vhost_user_pmem("goes").unwrap();
    vm.wait().unwrap().expect_success().unwrap();
    daemon.wait_for_log("frontend left").unwrap();
}
