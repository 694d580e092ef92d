// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frontends that mean harm. Whatever one does, the daemon lives, and the next one is served.

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};
use rustix::fs::MemfdFlags;
use rustix::process::Signal;
use rustix::time::{TimerfdClockId, TimerfdFlags};
use tempfile::TempDir;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::{EFD_SEMAPHORE, EventFd};

use crate::driver::{AVAIL, BUFFERS, RAM, RAM_SIZE};
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
/// How long a daemon may take on a loaded machine to serve somebody.
const PATIENCE: Duration = Duration::from_secs(20);

fn serve(dir: &TempDir) -> Daemon {
    let file = dir.path().join("pmem");
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), "1M".as_ref()];
    Daemon::start(DAEMON, args).unwrap()
}

/// Has a frontend that means well served, before long.
fn serves_the_next(socket: &Path) {
    let socket = socket.to_owned();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut vmm = Vmm::start(&socket, Abilities::default());
        sender.send(vmm.driver.flush()).unwrap();
    });
    assert_eq!(
        receiver.recv_timeout(patience(PATIENCE)),
        Ok(0),
        "the next frontend was not served"
    );
}

fn start_queue(vmm: &mut Vmm) -> Result<(), vhost::Error> {
    let kick = vmm.driver.kick.try_clone().unwrap();
    vmm.try_start_queue(0, AVAIL, &kick)
}

#[allow(unsafe_code, reason = "an eventfd that is none is made of a number")]
fn as_eventfd(fd: impl Into<OwnedFd>) -> EventFd {
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns, as this one was.
    unsafe { EventFd::from_raw_fd(fd.into().into_raw_fd()) }
}

#[test]
fn memory_that_shrinks_drops_the_frontend_and_not_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    for round in 1..=3 {
        let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
        assert_eq!(vmm.driver.flush(), 0);
        vmm.shrink_memory();
        // The driver's own stores would end this process.
        vmm.driver.kick.write(1).unwrap();
        daemon.wait_for_log("it shrank the file that is its guest's memory").unwrap();
        let deadline = Instant::now() + patience(PATIENCE);
        while vmm.frontend.get_features().is_ok() {
            assert!(Instant::now() < deadline, "the connection is kept");
        }
        drop(vmm);
        serves_the_next(daemon.socket());
        assert_eq!(daemon.log().matches("it shrank").count(), round, "{}", daemon.log());
    }
}

#[test]
fn memory_that_shrinks_before_the_queue_is_set_up_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.prepare();
    vmm.shrink_memory();
    // The request thread reads the used ring's index here.
    let _ = start_queue(&mut vmm);
    drop(vmm);
    serves_the_next(daemon.socket());
}

#[test]
fn bus_error_of_another_kind_still_ends_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    // The handler is installed when there is memory to be watched.
    serves_the_next(daemon.socket());
    daemon.wait_for_log("frontend left").unwrap();
    daemon.signal(Signal::BUS).unwrap();
    let deadline = Instant::now() + patience(PATIENCE);
    let stat = format!("/proc/{}/stat", daemon.pid());
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(Instant::now() < deadline, "the daemon lives on");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn frontend_that_hangs_up_in_the_midst_of_a_map_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    let mut vmm = Vmm::over(stream.try_clone().unwrap(), Abilities::default());
    // It never answers, and keeps the socket that the answer would come on.
    *vmm.mapper.delay.lock().unwrap() = Duration::from_secs(3600);
    vmm.activate();
    while *vmm.mapper.requests.lock().unwrap() == 0 {
        thread::yield_now();
    }
    stream.shutdown(Shutdown::Both).unwrap();
    serves_the_next(daemon.socket());
    std::mem::forget(vmm);
}

/// Fds that are no eventfd.
fn strange_fds() -> Vec<(&'static str, OwnedFd)> {
    let memfd = File::from(rustix::fs::memfd_create("memfd", MemfdFlags::CLOEXEC).unwrap());
    memfd.set_len(4096).unwrap();
    let (empty, empty_writer) = rustix::pipe::pipe().unwrap();
    let (full, full_writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&full_writer, &[1; 5]).unwrap();
    let (ended, _) = rustix::pipe::pipe().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(&[1; 8]).unwrap();
    // They are kept open, so that nothing ends by itself.
    std::mem::forget((empty, full_writer, peer));
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty());
    vec![
        ("memfd", memfd.into()),
        ("file", tempfile::tempfile().unwrap().into()),
        ("pipe's write end", empty_writer),
        ("pipe with half a message", full),
        ("pipe without a writer", ended),
        ("socket", socket.into()),
        ("null", File::options().read(true).write(true).open("/dev/null").unwrap().into()),
        ("directory", File::open("/").unwrap().into()),
        ("timer", timer.unwrap()),
    ]
}

#[test]
fn kick_that_is_no_eventfd_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    for (name, fd) in strange_fds() {
        println!("kick: {name}");
        let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
        vmm.prepare();
        let is_timer = name == "timer";
        let started = vmm.try_start_queue(0, AVAIL, &as_eventfd(fd));
        // A timer is as good as an eventfd.
        assert_eq!(started.is_ok(), is_timer, "{name}");
        drop(vmm);
        serves_the_next(daemon.socket());
    }
    let log = daemon.log();
    assert!(log.contains("its kick is not an eventfd"), "{log}");
}

#[test]
fn call_that_is_no_eventfd_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    for (name, fd) in strange_fds() {
        println!("call: {name}");
        let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
        vmm.prepare();
        vmm.driver.call = as_eventfd(fd);
        if start_queue(&mut vmm).is_ok() {
            vmm.driver.add_flush(0);
            vmm.driver.publish();
        }
        drop(vmm);
        serves_the_next(daemon.socket());
    }
}

#[test]
fn eventfds_of_all_kinds_kick() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    for flags in [0, EFD_SEMAPHORE] {
        let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
        vmm.prepare();
        vmm.driver.kick = EventFd::new(flags).unwrap();
        // More than it could ever wake up for.
        vmm.driver.kick.write(u64::MAX - 2000).unwrap();
        start_queue(&mut vmm).unwrap();
        for _ in 0..100 {
            assert_eq!(vmm.driver.flush(), 0);
        }
        drop(vmm);
        serves_the_next(daemon.socket());
    }
}

#[test]
fn call_that_is_full_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.prepare();
    vmm.driver.call = EventFd::new(0).unwrap();
    vmm.driver.call.write(u64::MAX - 1).unwrap();
    start_queue(&mut vmm).unwrap();
    vmm.driver.add_flush(0);
    vmm.driver.publish();
    let deadline = Instant::now() + patience(PATIENCE);
    while vmm.driver.answers() == 0 {
        assert!(Instant::now() < deadline, "no answer");
    }
    assert_eq!(vmm.stop_queue(), 1);
    std::mem::forget(vmm.driver.call.try_clone().unwrap());
    drop(vmm);
    serves_the_next(daemon.socket());
}

#[test]
fn kick_that_is_changed_while_the_queue_runs_drops_the_frontend() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.prepare();
    // Nobody is told of the mappings, as the connection may be gone when they are made.
    *vmm.mapper.frontend.lock().unwrap() = None;
    let former = EventFd::new(0).unwrap();
    vmm.try_start_queue(0, AVAIL, &former).unwrap();
    let empty = EventFd::new(0).unwrap();
    let changed = vmm.frontend.set_vring_kick(0, &empty);
    // A thread that is woken by the one and reads the other would wait for ever.
    former.write(1).unwrap();
    assert!(changed.is_err(), "the kick was changed");
    drop(vmm);
    serves_the_next(daemon.socket());
}

#[test]
fn ring_that_leaves_memory_keeps_no_thread_busy() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.prepare();
    // There is room for its index, 1, and for no head.
    let ring = RAM + RAM_SIZE - 4;
    vmm.driver.write_u32(ring, 1 << 16);
    let kick = vmm.driver.kick.try_clone().unwrap();
    vmm.try_start_queue(0, ring, &kick).unwrap();
    daemon.wait_for_log("the guest keeps requests in memory that the VMM doesn't share").unwrap();
    expect_rest(daemon.pid());
    drop(vmm);
    serves_the_next(daemon.socket());
}

#[test]
fn ring_in_memory_that_is_not_shared_drops_the_frontend_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.prepare();
    vmm.share_all_but(AVAIL..AVAIL + 0x1000);
    assert!(start_queue(&mut vmm).is_err());
    let line = daemon.wait_for_log("keeps its queue in memory that the VMM doesn't share").unwrap();
    assert!(line.contains("ERROR") && line.contains("give share=on"), "{line}");
    drop(vmm);
    serves_the_next(daemon.socket());
}

#[test]
fn request_that_can_not_be_answered_keeps_no_thread_busy() {
    for event_idx in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = serve(&dir);
        let abilities = Abilities { event_idx, ..Abilities::default() };
        let mut vmm = Vmm::start(daemon.socket(), abilities);
        assert_eq!(vmm.driver.flush(), 0);
        vmm.driver.add(&[(BUFFERS, 4, 0, 0)]);
        vmm.driver.publish();
        let line = daemon.wait_for_log("the guest's driver left no room for a status").unwrap();
        assert!(line.contains("ERROR") && line.contains("hint="), "{line}");
        expect_rest(daemon.pid());
        drop(vmm);
        serves_the_next(daemon.socket());
    }
}

/// Waits for the thread that answers requests to sleep, and do nothing for a while.
fn expect_rest(pid: u32) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let is_queue = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "vring_worker\n")
    };
    let queue = tasks.into_iter().find(is_queue).expect("a queue's thread").path();
    let status = || std::fs::read_to_string(queue.join("status")).unwrap();
    let switches = |status: &str| status.lines().filter(|line| line.contains("ctxt")).count();
    assert_eq!(switches(&status()), 2);
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        let before = status();
        thread::sleep(Duration::from_millis(100));
        // As the number of its context switches is the same, it has not run.
        if before.contains("S (sleeping)") && status() == before {
            return;
        }
        assert!(Instant::now() < deadline, "it never rests: {before}");
    }
}

#[test]
fn flood_of_any_kind_fills_neither_log_nor_memory() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let before = daemon.held().unwrap().kib;
    // Kicks without requests.
    for _ in 0..100_000 {
        vmm.driver.kick.write(1).unwrap();
    }
    // Flushes, as many as the queue holds at a time.
    for _ in 0..200 {
        for slot in 0..60 {
            vmm.driver.add_flush(slot);
        }
        vmm.driver.publish();
        for _ in 0..60 {
            assert_eq!(vmm.driver.answer().1, 4);
        }
    }
    // Heads that are in no table, which can't be answered.
    for _ in 0..200 {
        (0..100).for_each(|_| vmm.driver.add_head(u16::MAX));
        vmm.driver.publish();
        vmm.reset();
        vmm.activate();
        assert_eq!(vmm.driver.flush(), 0);
    }
    // An index that can't be.
    for index in 0..1000 {
        vmm.driver.publish_bogus_index(0x8000 + index);
    }
    let after = daemon.held().unwrap().kib;
    drop(vmm);
    daemon.wait_for_log("frontend left").unwrap();
    assert!(after < before + 256, "{before} KiB, then {after}");
    assert!(daemon.log().lines().count() < 40, "{}", daemon.log());
    assert!(daemon.log().len() < 10_000);
}
