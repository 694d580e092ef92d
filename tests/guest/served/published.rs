// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's own device on a published window, which can't hold all that its guest writes.

use guest_harness::{Daemon, Lab};

use super::{SECTORS, SIZE, can_publish, operate, word};
use crate::filesystem::Filesystem;
use crate::{DAEMON, guest, sparse_file};

#[test]
fn own_device_fails_all_fsyncs_after_a_write_that_failed() {
    if !can_publish() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [base, cow, table, window] = ["base", "cow", "table", "window"].map(path);
    sparse_file(&base, SIZE);
    sparse_file(&cow, 8 << 20);
    let lines = format!("0 {SECTORS} snapshot {} {} P 32\n", word(&base), word(&cow));
    std::fs::write(&table, lines).unwrap();
    let args = ["--table", "--publish", "--control"].map(AsRef::as_ref).into_iter();
    let control = path("control");
    let values = [&table, &window, &control].map(|path| path.as_os_str());
    let daemon = Daemon::start(DAEMON, args.zip(values).flat_map(|(name, value)| [name, value]));
    let daemon = daemon.unwrap();
    let script = "set -eu
        flush() { xfs_io -c fsync /dev/pmem0; }
        write() { dd if=/dev/urandom of=/dev/pmem0 bs=1M oflag=direct $@ 2>&1; }
        write count=4
        flush
        echo MARK written
        write count=16 seek=16
        if flush; then exit 1; fi
        # Where there is room, and nothing is lost.
        write count=4
        for again in 1 2 3; do
            if flush; then exit 1; fi
        done";
    guest(&lab, Filesystem::Ext4, &[]).own_virtio_pmem(&window, SIZE).script(script).run().unwrap();
    let status = operate(&dir, &["status"]);
    assert!(status.contains("the served window: failed a sync"), "{status}");
    assert!(status.contains("(the snapshot's COW store is full"), "{status}");
    assert!(daemon.log().contains("cannot write back pages of the served window"));

    // The next guest is told, too, until an operator knows of it.
    let flush = "xfs_io -c fsync /dev/pmem0";
    let fails = format!("if {flush}; then exit 1; fi; if {flush}; then exit 1; fi");
    for script in [fails.as_str(), flush] {
        let vm = guest(&lab, Filesystem::Ext4, &[]).own_virtio_pmem(&window, SIZE);
        vm.script(script).run().unwrap();
        operate(&dir, &["clear-failure"]);
    }
    // In order, so that nothing stays mounted.
    daemon.terminate().unwrap();
}
