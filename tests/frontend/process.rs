// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a process: what it costs its host, what it inherits, and what it says.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, fds, patience};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::driver::{BUFFERS, USED, WRITE};
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

/// The daemon, serving a new file of `size`.
fn serve(dir: &TempDir, size: &str) -> (Daemon, PathBuf) {
    let file = dir.path().join("pmem");
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), size.as_ref()];
    (Daemon::start(DAEMON, args).unwrap(), file)
}

/// The daemon's own memory in KiB, with a frontend that has mapped and flushed a region of `size`.
fn memory_serving(size: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, file) = serve(&dir, size);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let bytes = fs::metadata(&file).unwrap().len();
    vmm.store(bytes - 1, b"x");
    assert_eq!(vmm.driver.flush(), 0);
    let own = daemon.held().unwrap().kib;
    println!("region {size}: {own} KiB");
    own
}

#[test]
fn memory_is_small_and_the_same_for_any_region_size() {
    let small = memory_serving("256M");
    let large = memory_serving("1T");
    assert!(small.max(large) < 2 * 1024, "{small} and {large} KiB");
    assert!(small.abs_diff(large) * 20 <= small.min(large), "{small} and {large} KiB");
}

#[test]
fn inherited_connection_serves_as_well_as_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let mut daemon = Command::new(DAEMON)
        .args(["--log-level", "off", "--size", "1M", "--file"])
        .arg(&file)
        .args(["--fd", &theirs.as_raw_fd().to_string()])
        .spawn()
        .unwrap();
    drop(theirs);
    // Memory, eventfds and the channel for maps all come as fds through the relay.
    let mut vmm = Vmm::over(ours, Abilities::default());
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    vmm.store(4096, b"x");
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(fs::read(&file).unwrap()[4096], b'x');
    drop(vmm);
    assert!(daemon.wait().unwrap().success());
}

/// A handler would not find its own fds in a thread that has others.
#[test]
fn threads_with_fds_of_their_own_take_no_signals() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let args = ["--size", "1M", "--window", "served", "--file"];
    let args = args.map(AsRef::as_ref).into_iter().chain([file.as_os_str()]);
    let Some(daemon) = Daemon::start_served(DAEMON, args).unwrap() else { return };
    let tasks = PathBuf::from(format!("/proc/{}/task", daemon.pid()));
    let mut count = 0;
    for task in fs::read_dir(tasks).unwrap() {
        let task = task.unwrap().path();
        let fds = match fs::read_dir(task.join("fd")) {
            // Confined, it shows them to root alone.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: cannot see a daemon's fds: {error}");
                return;
            }
            fds => fds.unwrap(),
        };
        let device = Path::new("/dev/fuse");
        if fds.flatten().all(|fd| fs::read_link(fd.path()).ok().as_deref() != Some(device)) {
            continue;
        }
        count += 1;
        let status = fs::read_to_string(task.join("status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
        for signal in [Signal::TERM, Signal::INT] {
            assert_ne!(blocked & (1 << (signal.as_raw() - 1)), 0, "{signal:?} in {status}");
        }
    }
    assert!(count >= 2, "the workers were not found");
}

#[test]
fn connections_leave_no_fd_and_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = serve(&dir, "1M");
    let tasks = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    // One that had pages mapped has said so, and may be there a moment longer.
    let stays = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name != "map\n")
    };
    let mut after_first = None;
    for _ in 0..100 {
        let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
        assert_eq!(vmm.driver.flush(), 0);
        let now = (fds(daemon.pid()).unwrap(), tasks().filter(stays).count());
        assert_eq!(*after_first.get_or_insert(now), now);
    }
}

#[test]
fn refusals_are_logged_once_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = serve(&dir, "1M");
    let refused = [
        (Abilities { shmem: false, ..Abilities::default() }, "SHMEM; use QEMU 11.1 or later"),
        (
            Abilities { shmem_region: false, ..Abilities::default() },
            "use a guest kernel of Linux 6.8",
        ),
    ];
    for (abilities, mend) in refused {
        let mut vmm = Vmm::start(daemon.socket(), abilities);
        for _ in 0..3 {
            assert_eq!(vmm.driver.flush(), -1);
            vmm.reset();
            vmm.activate();
        }
        drop(vmm);
        daemon.wait_for_log("frontend left").unwrap();
        assert_eq!(daemon.log().matches(mend).count(), 1, "{}", daemon.log());
    }

    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.mapper.refuse.store(true, Ordering::SeqCst);
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    let line = daemon.wait_for_log("every flush of this guest fails").unwrap();
    assert!(line.contains("refused to map 1048576 bytes of"), "{line}");
}

#[test]
fn daemon_that_polls_answers_without_a_kick() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let args = ["--poll-us", "8000000", "--size", "1M", "--file"];
    let args = args.map(AsRef::as_ref).into_iter().chain([file.as_os_str()]);
    let daemon = Daemon::start(DAEMON, args).unwrap();
    let abilities = Abilities { event_idx: false, ..Abilities::default() };
    let mut vmm = Vmm::start(daemon.socket(), abilities);
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), 0);
    }
    // It has seen that requests come soon, looks for the next one, and wants no kick.
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    while vmm.driver.read_u32(USED) & 1 == 0 {
        assert!(Instant::now() < deadline, "kicks are wanted for ever");
    }
    assert_eq!(vmm.driver.flush(), 0);
    vmm.reset();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn guest_that_floods_fills_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = serve(&dir, "1M");
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    for _ in 0..5000 {
        vmm.driver.add(&[(BUFFERS, 4, WRITE, 0)]);
        vmm.driver.publish();
        assert_eq!(vmm.driver.answer().1, 4);
    }
    for _ in 0..200 {
        vmm.reset();
        vmm.activate();
        assert_eq!(vmm.driver.flush(), 0);
    }
    drop(vmm);
    daemon.wait_for_log("frontend left").unwrap();
    assert!(daemon.log().lines().count() < 40, "{}", daemon.log());
}

#[test]
fn map_that_takes_long_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _) = serve(&dir, "1M");
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    *vmm.mapper.delay.lock().unwrap() = Duration::from_millis(150);
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    daemon.wait_for_log("it took long to map the guest's pages").unwrap();
}
