// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that is synced once a second at most, and what comes while a flush waits for its turn.

use std::thread;
use std::time::{Duration, Instant};

use guest_harness::Daemon;

use crate::server::Server;
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const SIZE: u64 = 1 << 20;
const INTERVAL: Duration = Duration::from_secs(1);

/// A VMM whose guest's flush, in slot 1, waits for its turn, as one was answered just now.
fn flush_that_waits(socket: &std::path::Path) -> Vmm {
    let mut vmm = Vmm::start(socket, Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.driver.add_flush(1);
    vmm.driver.publish();
    // To be taken note of.
    thread::sleep(INTERVAL / 10);
    vmm
}

/// What `attempt` returns, if it has come to an end before the flush's turn: it waited for nothing
/// then. On a machine that is busy it may take a few.
fn in_time<T>(mut attempt: impl FnMut() -> T) -> T {
    for _ in 0..5 {
        let began = Instant::now();
        let result = attempt();
        if began.elapsed() < INTERVAL {
            return result;
        }
    }
    panic!("it waited for the flush's turn");
}

fn requests(vmm: &Vmm) -> u64 {
    *vmm.mapper.requests.lock().unwrap()
}

#[test]
fn stop_leaves_the_flush_that_waits_in_the_queue() {
    let (server, control, mut vmm, base) = in_time(|| {
        let (server, control) = Server::limited(SIZE, 1);
        let mut vmm = flush_that_waits(&server.socket());
        let base = vmm.stop_queue();
        (server, control, vmm, base)
    });
    assert_eq!((base, vmm.driver.answers(), control.syncs()), (1, 0, 1));
    // Who goes on there has it answered.
    vmm.mapper.maps.lock().unwrap().clear();
    vmm.start_queue(1);
    assert_eq!(vmm.driver.answer().1, 4);
    assert_eq!((vmm.driver.status(1), control.syncs()), (0, 2));
    drop(server);
}

#[test]
fn stop_while_a_flush_waits_has_nothing_mapped_afterwards() {
    let (server, _control) = Server::limited(SIZE, 1);
    let mut vmm = flush_that_waits(&server.socket());
    vmm.stop_queue();
    thread::sleep(INTERVAL);
    assert_eq!(requests(&vmm), 1);
    vmm.mapper.maps.lock().unwrap().clear();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(vmm.mapper.maps.lock().unwrap().len(), 1);
}

#[test]
fn activation_after_a_flush_that_waited_maps_at_once() {
    in_time(|| {
        let (server, _control) = Server::limited(SIZE, 1);
        let mut vmm = flush_that_waits(&server.socket());
        vmm.reset();
        vmm.activate();
        while requests(&vmm) < 2 {
            thread::yield_now();
        }
    });
}

#[test]
fn frontend_that_leaves_while_its_flush_waits_makes_room() {
    in_time(|| {
        let (server, _control) = Server::limited(SIZE, 1);
        drop(flush_that_waits(&server.socket()));
        let next = Vmm::start(&server.socket(), Abilities::default());
        while requests(&next) == 0 {
            thread::yield_now();
        }
    });
}

#[test]
fn daemon_ends_while_a_flush_waits() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let args = ["--max-syncs", "1", "--size", "1M", "--file"];
    let args = args.map(AsRef::as_ref).into_iter().chain([file.as_os_str()]);
    let (vmm, status) = in_time(|| {
        let daemon = Daemon::start(DAEMON, args.clone()).unwrap();
        let vmm = flush_that_waits(daemon.socket());
        (vmm, daemon.terminate().unwrap().0)
    });
    assert!(status.success());
    assert_eq!(vmm.driver.answers(), 0);
}
