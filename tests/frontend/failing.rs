// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Storage that really fails: a block device that has no room for what is written to it.

use std::path::Path;
use std::process::Command;

use guest_harness::Daemon;

use crate::loop_device::LoopDevice;
use crate::tmpfs::Tmpfs;
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const SIZE: u64 = 32 << 20;

fn operate(control: &Path, command: &str) -> (bool, String) {
    let output = Command::new(DAEMON).args([command, "--control"]).arg(control).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn fails_until_it_is_cleared(window: &str) {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Tmpfs::new(dir.path().join("small"), "8m") else {
        eprintln!("skipped: cannot mount a tmpfs; run as root");
        return;
    };
    let backing = small.path().join("backing");
    std::fs::File::create(&backing).unwrap().set_len(SIZE).unwrap();
    let Some(device) = LoopDevice::over(&backing) else {
        eprintln!("skipped: cannot make a loop device; run as root");
        return;
    };
    let control = dir.path().join("control");
    let args = ["--window".as_ref(), window.as_ref(), "--file".as_ref(), device.path().as_os_str()];
    let args = args.into_iter().chain(["--control".as_ref(), control.as_os_str()]);
    let Some(daemon) = Daemon::start_served(DAEMON, args).unwrap() else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    for page in 0..SIZE / 4096 {
        vmm.store(page * 4096, &[7; 4096]);
    }
    assert_eq!(vmm.driver.flush(), -1);
    let (_, status) = operate(&control, "status");
    assert!(status.contains(": failed a sync ") && status.contains(" ago ("), "{status}");
    // There is room again; and no flush succeeds by itself.
    small.resize("64m");
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), -1);
    }
    daemon.wait_until_logged("flush failed").unwrap();
    assert_eq!(daemon.log().matches("flush failed").count(), 1, "{}", daemon.log());

    let (cleared, said) = operate(&control, "clear-failure");
    assert!(cleared && !said.contains("failed a sync"), "{said}");
    for page in 0..SIZE / 4096 {
        vmm.store(page * 4096, &[8; 4096]);
    }
    assert_eq!(vmm.driver.flush(), 0);
    let held = std::fs::read(&backing).unwrap();
    assert!(held.iter().all(|byte| *byte == 8));
}

#[test]
fn device_without_room_fails_flushes_until_it_is_cleared() {
    fails_until_it_is_cleared("direct");
}

#[test]
fn device_without_room_behind_a_served_window_fails_flushes_until_it_is_cleared() {
    fails_until_it_is_cleared("served");
}
