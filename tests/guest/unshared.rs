// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest with memory that its VMM doesn't share, as one `share=on` was forgotten: QEMU leaves
//! such memory out of the memory table and says nothing.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use guest_harness::{Daemon, Lab};

use crate::filesystem::Filesystem;
use crate::{DAEMON, guest};

/// What the guest says of each fsync that succeeds.
const SUCCEEDED: &str = "MARK fsync succeeded";

#[test]
fn flush_of_a_guest_whose_memory_is_not_all_shared_waits_and_says_why() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [file, control] = ["pmem", "control"].map(|name| dir.path().join(name));
    let args = ["--size", "512M", "--file"].map(AsRef::as_ref).into_iter();
    let args = args.chain([file.as_os_str(), "--control".as_ref(), control.as_os_str()]);
    let daemon = Daemon::start(DAEMON, args).unwrap();
    let ask = |command: &str| {
        let mut ask = Command::new(DAEMON);
        let output = ask.args(command.split(' ')).arg("--control").arg(&control).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    // What is sent by the CPU of the unshared node lies in its memory, though the first few
    // requests may not: the kernel has spread what it had at boot.
    let script = format!(
        "set -eu
        echo 1 > /sys/devices/system/cpu/cpu1/online
        grep -qx 0-1 /sys/devices/system/node/online
        for at in $(seq 100); do
            taskset 2 dd if=/dev/zero of=/dev/pmem0 bs=4k seek=$at count=1 conv=fsync status=none
            echo {SUCCEEDED}
        done
        echo MARK the end"
    );
    let vm = guest(&lab, Filesystem::Ext4, &[&daemon])
        .unshared_memory(256)
        .script(&script)
        .boot()
        .unwrap();
    let cause = "the guest keeps requests in memory that the VMM doesn't share";
    while !daemon.log().contains(cause) {
        assert!(!vm.serial().contains("MARK the end"), "all fsyncs succeeded");
        assert!(daemon.log().lines().all(|line| !line.contains("frontend left")), "it has ended");
        sleep(Duration::from_millis(20));
    }
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains(cause)).unwrap();
    for word in ["ERROR", "its flushes wait", "give share=on to every memory backend of the VMM"] {
        assert!(line.contains(word), "{line}");
    }
    let (list, text) = (ask("list"), ask("status"));
    assert!(list.trim_end().ends_with("flushes wait"), "{list}");
    assert!(text.contains("\nrequests: 1 can't be answered for "), "{text}");
    assert!(text.contains("; give share=on to every memory backend of the VMM"), "{text}");
    // Nothing more is answered, and nothing else was done.
    let status: serde_json::Value = serde_json::from_str(&ask("status --json")).unwrap();
    let outcome = vm.kill().unwrap();
    let succeeded = outcome.serial.matches(SUCCEEDED).count();
    assert_eq!(status[0]["counters"]["flushes"]["done"], succeeded, "{status:#}");
}
