// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image for clouds grows its filesystem when it is first started. What it writes after the end of
//! a base that is only read is in the overlay.

use std::process::Command;

use guest_harness::{Daemon, Lab};

use super::{can_serve, same};
use crate::filesystem::Filesystem;
use crate::{DAEMON, guest, on_ext4_and_xfs, sparse_file};

on_ext4_and_xfs! {
    overlay_that_is_larger_than_its_base_takes_a_filesystem_that_grows
}

/// Not a power of two, and as much as XFS takes.
const BASE: u64 = 320 << 20;

fn overlay_that_is_larger_than_its_base_takes_a_filesystem_that_grows(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [base, copy, cow] = ["base", "copy", "cow"].map(|name| dir.path().join(name));
    sparse_file(&base, BASE);
    filesystem.make(&lab, &base);
    let copied = Command::new("cp").arg("--sparse=always").args([&base, &copy]).status().unwrap();
    assert!(copied.success());
    let serve = |more: &[&str]| {
        let args = ["--file".as_ref(), base.as_os_str(), "--overlay".as_ref(), cow.as_os_str()];
        let more = more.iter().map(std::convert::AsRef::as_ref);
        Daemon::start(DAEMON, args.into_iter().chain(more)).unwrap()
    };
    let grow = match filesystem {
        Filesystem::Ext4 => "resize2fs /dev/pmem0",
        Filesystem::Xfs => "xfs_growfs /mnt",
    };
    // A file that is larger than the base, and its last MiB.
    let script = filesystem.script(&format!(
        "mount_dax /dev/pmem0
        {grow}
        xfs_io -fc 'falloc 0 340m' -c 'pwrite -q -S 0xa7 339m 1m' -c fsync /mnt/file
        umount /mnt"
    ));
    let daemon = serve(&["--size", "512M"]);
    guest(&lab, filesystem, &[&daemon]).script(&script).run().unwrap().expect_success().unwrap();
    daemon.terminate().unwrap();
    assert!(same(&base, &copy), "the base was changed");

    // The size is the overlay's from then on.
    let daemon = serve(&[]);
    let script = filesystem.script(
        "mount_dax /dev/pmem0
        head -c 1m /dev/zero | tr '\\0' '\\247' > expected
        tail -c 1m /mnt/file | cmp - expected
        umount /mnt
        fsck /dev/pmem0
        echo FOUND",
    );
    let outcome = guest(&lab, filesystem, &[&daemon]).script(&script).run().unwrap();
    assert!(outcome.serial.contains("FOUND"), "{}", outcome.serial);
    assert!(same(&base, &copy), "the base was changed");
}
