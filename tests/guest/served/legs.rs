// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mirror's legs that come and go while guests run, and between them.

use std::fs;

use guest_harness::Lab;

use super::live::{SYNC_FILES, check_files};
use super::{SECTORS, SIZE, can_serve, last_mark, operate, wait_for_more, word};
use crate::filesystem::Filesystem;
use crate::{guest, on_ext4_and_xfs, serve_table, sparse_file};

on_ext4_and_xfs! {
    mirror_whose_leg_is_replaced_keeps_what_was_synced_without_a_log
}

fn mirror_whose_leg_is_replaced_keeps_what_was_synced_without_a_log(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [one, other, new] = ["one", "other", "new"].map(|name| dir.path().join(name));
    [&one, &other, &new].into_iter().for_each(|leg| sparse_file(leg, SIZE));
    let table = |first, second| {
        format!("0 {SECTORS} mirror core 1 1024 2 {} 0 {} 0\n", word(first), word(second))
    };
    let daemon = serve_table(&dir, &table(&one, &other));
    let script = filesystem.script(&format!("mkfs /dev/pmem0\nmount_dax /dev/pmem0\n{SYNC_FILES}"));
    let vm = guest(&lab, filesystem, &[&daemon]).script(&script).boot().unwrap();
    vm.wait_for("MARK 2").unwrap();
    // The first leg is the one that would be believed for its place.
    let shown = operate(&dir, &["replace", one.to_str().unwrap(), new.to_str().unwrap()]);
    assert!(shown.contains("/new healthy, "), "{shown}");
    wait_for_more(&vm);
    let serial = vm.kill().unwrap().serial;
    assert!(!serial.contains("MARK done"), "{serial}");
    let last = last_mark(&serial);
    drop(daemon);

    let verify = filesystem.script(&format!(
        "mount_dax /dev/pmem0
        {}umount /mnt
        fsck /dev/pmem0",
        check_files("/mnt", last)
    ));
    // With the table of before: the old leg is where it was, and old.
    let daemon = serve_table(&dir, &table(&one, &other));
    guest(&lab, filesystem, &[&daemon]).script(&verify).run().unwrap();
    operate(&dir, &["resync"]);
    daemon.terminate().unwrap();
    // One of them is gone.
    fs::remove_file(&other).unwrap();
    let daemon = serve_table(&dir, &table(&other, &one));
    assert!(operate(&dir, &["status"]).contains("/other missing, "));
    guest(&lab, filesystem, &[&daemon]).script(&verify).run().unwrap();
}
