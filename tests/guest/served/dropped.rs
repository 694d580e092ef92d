// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest whose VMM has lost its connection: its memory stays, and must stay what it was.

use std::process::Command;

use guest_harness::{Daemon, Lab};
use serde_json::json;

use super::{can_serve, last_mark, operate, wait_for_more};
use crate::filesystem::Filesystem;
use crate::{DAEMON, guest};

#[test]
fn drop_beneath_a_guest_whose_connection_is_lost_is_refused() {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [file, control, cow] = ["file", "control", "cow"].map(|name| dir.path().join(name));
    let args = ["--size", "64M", "--window", "served", "--file"].map(AsRef::as_ref).into_iter();
    let args = args.chain([file.as_os_str(), "--control".as_ref(), control.as_os_str()]);
    let daemon = Daemon::start(DAEMON, args).unwrap();
    // The first page has a number, and what was flushed last is said; and what is found, for longer.
    let script = "set -eu
        page() { dd if=/dev/pmem0 iflag=direct bs=4096 count=1 2> /dev/null | tr -cd 0-9; }
        count() {
            number=100
            while :; do
                number=$((number + 1))
                printf %04096d $number |
                    dd of=/dev/pmem0 oflag=direct bs=4096 iflag=fullblock 2> /dev/null
                xfs_io -c fsync /dev/pmem0
                echo MARK $number
            done
        }
        count &
        while sleep 1; do echo FOUND $(page | sed 's/^0*//'); done";
    let vm = guest(&lab, Filesystem::Ext4, &[&daemon]).script(script).boot().unwrap();
    vm.wait_for("MARK 102").unwrap();
    operate(&dir, &["snapshot", cow.to_str().unwrap()]);
    wait_for_more(&vm);
    vm.qmp("yank", &json!({ "instances": [{ "type": "chardev", "id": "c0" }] })).unwrap();
    daemon.wait_for_log("frontend left").unwrap();
    let flushed = last_mark(&vm.serial());
    let drop_changes = || {
        let mut command = Command::new(DAEMON);
        command.args(["drop", "--control"]).arg(&control).output().unwrap()
    };
    for _ in 0..2 {
        let output = drop_changes();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("a VMM still has the window mapped"), "{said}");
    }
    // The guest goes on, on the ground that it had.
    let found = |serial: &str| {
        let found = serial.lines().filter_map(|line| line.trim().strip_prefix("FOUND "));
        found.map(|number| number.parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    let last = found(&vm.serial()).len() + 3;
    while found(&vm.serial()).len() < last {
        vm.wait_for("FOUND ").unwrap();
    }
    let numbers = found(&vm.serial());
    assert!(numbers.is_sorted() && numbers[last - 1] >= flushed, "{numbers:?}, {flushed}");
    vm.kill().unwrap();
    // The kernel tells of the mapping's end in its own time, and each attempt waits for it a while.
    assert!((0..60).any(|_| drop_changes().status.success()), "{}", daemon.log());
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
    let held = std::fs::read(&file).unwrap();
    let number: u32 = std::str::from_utf8(&held[..4096]).unwrap().parse().unwrap();
    assert!((102..flushed).contains(&number), "{number}");
}
