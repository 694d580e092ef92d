// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What no VMM can map: copy-on-write and mirrored memory, with DAX all the same.

mod dropped;
mod grown;
mod killed;
mod legs;
mod live;
mod published;
mod read_only;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_harness::{Accelerator, Daemon, Lab, Vm};
use tempfile::TempDir;

use crate::filesystem::Filesystem;
use crate::{DAEMON, guest, on_ext4_and_xfs, pages_of, serve};

on_ext4_and_xfs! {
    snapshot_keeps_what_is_written_and_its_origin_is_not_touched
}

const SIZE: u64 = 512 << 20;
const SECTORS: u64 = SIZE / 512;

/// Whether this machine lets us serve windows; else why not, and the test has nothing to test.
pub(crate) fn can_serve() -> bool {
    starts(|_| ["--window".into(), "served".into()])
}

/// Whether it lets us publish them, too, which takes more.
pub(crate) fn can_publish() -> bool {
    starts(|dir| ["--publish".into(), dir.join("window").into()])
}

fn starts(how: impl FnOnce(&Path) -> [OsString; 2]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = ["--size".into(), "1M".into(), "--file".into(), dir.path().join("file").into()];
    Daemon::start_served(DAEMON, how(dir.path()).into_iter().chain(file)).unwrap().is_some()
}

/// Has the daemon that was started with `--control` do something, and returns what it says.
fn operate(dir: &TempDir, args: &[&str]) -> String {
    let control = dir.path().join("control");
    let output = Command::new(DAEMON).args(args).arg("--control").arg(control).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The number of the last file, or page, that a guest has said to be synced.
fn last_mark(serial: &str) -> u32 {
    let marks = serial.lines().filter_map(|line| line.trim().strip_prefix("MARK "));
    marks.filter_map(|number| number.parse().ok()).next_back().unwrap()
}

/// Waits for the guest to have synced a few more.
fn wait_for_more(vm: &Vm) {
    let wanted = last_mark(&vm.serial()) + 4;
    vm.wait_for(&format!("MARK {wanted}")).unwrap();
}

/// A word of a table.
fn word(path: &Path) -> String {
    path.to_str().unwrap().replace(' ', "\\ ")
}

/// Whether two files hold the same.
pub(crate) fn same(one: &Path, other: &Path) -> bool {
    let mut files = [one, other].map(|path| File::open(path).unwrap());
    let mut chunks = [vec![0; 1 << 20], vec![0; 1 << 20]];
    loop {
        let lens = [0, 1].map(|at| files[at].read(&mut chunks[at]).unwrap());
        if lens[0] != lens[1] || chunks[0][..lens[0]] != chunks[1][..lens[1]] {
            return false;
        }
        if lens[0] == 0 {
            return true;
        }
    }
}

/// A base that a guest has made a filesystem on and written a file to, and a copy of it.
fn base(lab: &Lab, filesystem: Filesystem, dir: &TempDir) -> (PathBuf, PathBuf) {
    let (base, copy) = (dir.path().join("base"), dir.path().join("copy"));
    let daemon = serve(&base);
    let script = filesystem.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        xfs_io -fc 'pwrite -q -S 0xb3 0 1m' -c fsync /mnt/base
        umount /mnt",
    );
    guest(lab, filesystem, &[&daemon]).script(&script).run().unwrap();
    daemon.terminate().unwrap();
    let copied = Command::new("cp").arg("--sparse=always").args([&base, &copy]).status().unwrap();
    assert!(copied.success());
    (base, copy)
}

/// The daemon, serving what was changed of `base`.
fn serve_overlay(base: &Path, cow: &Path) -> Daemon {
    let args = ["--file".as_ref(), base.as_os_str(), "--overlay".as_ref(), cow.as_os_str()];
    Daemon::start(DAEMON, args).unwrap()
}

fn snapshot_keeps_what_is_written_and_its_origin_is_not_touched(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (base, copy) = base(&lab, filesystem, &dir);
    // A machine whose CPU is emulated takes milliseconds for a page.
    let mib = match Accelerator::in_use().unwrap() {
        Accelerator::Tcg => 100,
        Accelerator::Kvm => 8,
    };
    let cows = ["one", "other"].map(|name| dir.path().join(name));
    // Two guests at once, on one base.
    let daemons = cows.each_ref().map(|cow| serve_overlay(&base, cow));
    let write = filesystem.script(&format!(
        "mount_dax /dev/pmem0
        grep ' /mnt .*dax=always' /proc/mounts
        head -c 1m /dev/zero | tr '\\0' '\\263' | cmp - /mnt/base
        xfs_io -fc 'pwrite -q -S 0xa7 0 {mib}m' -c fsync /mnt/file
        xfs_io -fc 'truncate 1m' -c 'mmap 0 1m' -c 'mwrite -S 0xc5 0 256k' -c 'msync -s' /mnt/mapped
        umount /mnt",
    ));
    let vms = daemons
        .each_ref()
        .map(|daemon| guest(&lab, filesystem, &[daemon]).script(&write).boot().unwrap());
    for vm in vms {
        vm.wait().unwrap().expect_success().unwrap();
    }
    assert!(same(&base, &copy), "the base was changed");
    for cow in &cows {
        assert!(pages_of(0xa7, cow) >= mib << 20 >> 12 && pages_of(0xc5, cow) >= 64);
    }

    // A second boot, of the next daemon, finds it; a fresh snapshot finds the base.
    for daemon in daemons {
        daemon.terminate().unwrap();
    }
    let again = serve_overlay(&base, &cows[0]);
    let fresh = serve_overlay(&base, &dir.path().join("fresh"));
    let verify = filesystem.script(&format!(
        "head -c {mib}m /dev/zero | tr '\\0' '\\247' > expected
        for device in 0 1; do
            mkdir -p /mnt/$device
            mount_copy /dev/pmem$device /mnt/$device
            head -c 1m /dev/zero | tr '\\0' '\\263' | cmp - /mnt/$device/base
            if [ -e /mnt/$device/file ]; then
                cmp expected /mnt/$device/file
                echo FOUND
            fi
            umount /mnt/$device
            fsck /dev/pmem$device
        done",
    ));
    let outcome = guest(&lab, filesystem, &[&again, &fresh]).script(&verify).run().unwrap();
    assert_eq!(outcome.serial.matches("FOUND").count(), 1, "{}", outcome.serial);
    assert!(same(&base, &copy), "the base was changed");
}
