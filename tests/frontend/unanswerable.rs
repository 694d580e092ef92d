// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that can't be answered. A driver takes one that is returned without a status for what
//! its memory held before, which is success as often as not: so it stays, and all after it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::{Random, patience};
use vhost_pmem::Unanswerable::{self, NoRoom, Queue, Unshared};

use crate::driver::{
    AVAIL, BUFFERS, DESC, Descriptor, INDIRECT, NEXT, QUEUE_SIZE, RAM, RAM_SIZE, USED, WRITE,
};
use crate::server::Server;
use crate::store::Control;
use crate::vmm::{Abilities, Vmm};

const SIZE: u64 = 1 << 20;
/// How long a device may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: u64 = 0x1000;
/// Pages of their own for what a request consists of.
const TYPE: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x3000;
const TABLE: u64 = BUFFERS + 0x5000;
/// What a driver's memory may hold before.
const STALE: u32 = 0;

/// Waits for the device to have found that so many requests can't be answered.
#[track_caller]
fn expect_waiting(server: &Server, requests: u16, obstacle: Unanswerable, context: &str) {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        let waiting = server.device.waiting().map(|waiting| (waiting.requests, waiting.obstacle));
        if waiting == Some((requests, obstacle)) {
            return;
        }
        assert!(Instant::now() < deadline, "{context}: {waiting:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A flush in the pages above, through an indirect table or not. Its head.
fn add_flush(vmm: &mut Vmm, indirect: bool) -> u16 {
    vmm.driver.write_u32(TYPE, 0);
    vmm.driver.write_u32(STATUS, STALE);
    let chain = [(TYPE, 4, NEXT, 1), (STATUS, 4, WRITE, 0)];
    if !indirect {
        return vmm.driver.add(&chain);
    }
    for (at, descriptor) in (TABLE..).step_by(16).zip(chain) {
        vmm.driver.write_descriptor(at, descriptor);
    }
    vmm.driver.add(&[(TABLE, 32, INDIRECT, 0)])
}

fn status(vmm: &Vmm) -> u32 {
    vmm.driver.read_u32(STATUS)
}

fn start(event_idx: bool) -> (Server, Arc<Control>, Vmm) {
    let (server, control) = Server::controlled(SIZE);
    let vmm = Vmm::start(&server.socket(), Abilities { event_idx, ..Abilities::default() });
    (server, control, vmm)
}

#[test]
fn flush_in_memory_that_is_not_shared_waits_until_it_is() {
    for (name, unshared, indirect) in [
        ("status", STATUS..STATUS + PAGE, false),
        ("status of an indirect chain", STATUS..STATUS + PAGE, true),
        ("half of the status", STATUS + 2..STATUS + PAGE, false),
        ("indirect table", TABLE..TABLE + PAGE, true),
        ("a descriptor of an indirect table", TABLE + 16..TABLE + PAGE, true),
    ] {
        for event_idx in [true, false] {
            let (server, control, mut vmm) = start(event_idx);
            assert_eq!(vmm.driver.flush(), 0, "{name}");
            vmm.share_all_but(unshared.clone());
            let head = add_flush(&mut vmm, indirect);
            vmm.driver.publish();
            expect_waiting(&server, 1, Unshared, name);
            assert_eq!((vmm.driver.answers(), control.syncs()), (0, 1), "{name}");
            // Without another kick.
            vmm.share_all();
            assert_eq!(vmm.driver.answer(), (head.into(), 4), "{name}");
            assert_eq!((status(&vmm), control.syncs()), (0, 2), "{name}");
            assert_eq!(vmm.driver.flush(), 0, "{name}");
            assert_eq!(server.device.waiting(), None, "{name}");
        }
    }
}

#[test]
fn rings_that_are_not_shared_any_more_wait_until_they_are() {
    for (ring, obstacle) in [(DESC, Unshared), (AVAIL, Queue), (USED, Queue)] {
        let (server, _control, mut vmm) = start(true);
        assert_eq!(vmm.driver.flush(), 0);
        vmm.share_all_but(ring..ring + PAGE);
        let head = add_flush(&mut vmm, false);
        vmm.driver.publish();
        expect_waiting(&server, 1, obstacle, &format!("{ring:#x}"));
        assert_eq!(vmm.driver.answers(), 0, "{ring:#x}");
        vmm.share_all();
        assert_eq!(vmm.driver.answer(), (head.into(), 4), "{ring:#x}");
        assert_eq!(status(&vmm), 0, "{ring:#x}");
        assert_eq!(vmm.driver.flush(), 0, "{ring:#x}");
        assert_eq!(server.device.waiting(), None, "{ring:#x}");
    }
}

#[test]
fn type_in_memory_that_is_not_shared_fails_the_request() {
    let (server, control, mut vmm) = start(true);
    vmm.share_all_but(TYPE..TYPE + PAGE);
    let head = add_flush(&mut vmm, false);
    vmm.driver.publish();
    assert_eq!(vmm.driver.answer(), (head.into(), 4));
    assert_eq!((status(&vmm), control.syncs()), (u32::MAX, 0));
    vmm.share_all();
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(server.device.waiting(), None);
}

#[test]
fn requests_before_one_that_can_not_be_answered_are_answered_and_those_after_it_wait() {
    for event_idx in [true, false] {
        let (server, control, mut vmm) = start(event_idx);
        assert_eq!(vmm.driver.flush(), 0);
        vmm.share_all_but(STATUS..STATUS + PAGE);
        vmm.driver.add_flush(1);
        vmm.driver.add_flush(2);
        add_flush(&mut vmm, false);
        vmm.driver.add_flush(3);
        vmm.driver.publish();
        assert_eq!((vmm.driver.answer().1, vmm.driver.answer().1), (4, 4));
        assert_eq!((vmm.driver.status(1), vmm.driver.status(2)), (0, 0));
        expect_waiting(&server, 2, Unshared, "two of four");
        assert_eq!((vmm.driver.answers(), control.syncs()), (0, 2));
        // One that comes later is seen, and waits as well.
        vmm.driver.add_flush(4);
        vmm.driver.publish();
        expect_waiting(&server, 3, Unshared, "and another");
        vmm.share_all();
        for _ in 0..3 {
            assert_eq!(vmm.driver.answer().1, 4);
        }
        assert_eq!((status(&vmm), vmm.driver.status(3), vmm.driver.status(4)), (0, 0, 0));
    }
}

#[test]
fn request_without_room_for_a_status_stops_the_queue_until_it_is_reset() {
    let outside = RAM + RAM_SIZE;
    let (request, response) = (BUFFERS + 0x100, BUFFERS + 0x200);
    let cases: &[(&str, &[Descriptor], Unanswerable)] = &[
        ("no response", &[(request, 4, 0, 0)], NoRoom),
        ("response too short", &[(request, 4, NEXT, 1), (response, 3, WRITE, 0)], NoRoom),
        ("both readable", &[(request, 4, NEXT, 1), (response, 4, 0, 0)], NoRoom),
        ("loop", &[(request, 4, NEXT, 1), (request, 4, NEXT, 0)], NoRoom),
        ("empty", &[(request, 0, 0, 0)], NoRoom),
        ("response outside memory", &[(request, 4, NEXT, 1), (outside, 4, WRITE, 0)], Unshared),
        ("response over the edge", &[(request, 4, NEXT, 1), (outside - 2, 4, WRITE, 0)], Unshared),
    ];
    let (server, control, mut vmm) = start(true);
    for (name, chain, obstacle) in cases {
        vmm.driver.add(chain);
        vmm.driver.add_flush(1);
        vmm.driver.publish();
        expect_waiting(&server, 2, *obstacle, name);
        let syncs = control.syncs();
        assert_eq!(vmm.driver.answers(), 0, "{name}");
        assert_eq!(vmm.stop_queue(), 0, "{name}");
        assert_eq!(server.device.waiting(), None, "{name}");
        vmm.mapper.maps.lock().unwrap().clear();
        vmm.activate();
        assert_eq!(vmm.driver.flush(), 0, "after {name}");
        assert_eq!(control.syncs(), syncs + 1);
        vmm.reset();
        vmm.activate();
    }
}

#[test]
fn head_outside_the_table_stops_the_queue_until_it_is_reset() {
    for event_idx in [true, false] {
        let (server, _control, mut vmm) = start(event_idx);
        assert_eq!(vmm.driver.flush(), 0);
        for head in [QUEUE_SIZE, u16::MAX] {
            vmm.driver.add_head(head);
            vmm.driver.add_flush(1);
            vmm.driver.publish();
            expect_waiting(&server, 2, NoRoom, "a head that isn't one");
            assert_eq!(vmm.driver.answers(), 0);
            vmm.reset();
            vmm.activate();
            // The device must want to be kicked again as well.
            for _ in 0..3 {
                assert_eq!(vmm.driver.flush(), 0);
            }
        }
    }
}

/// A flush that is synced until it is released; one was answered before.
fn hold_flush() -> (Server, Arc<Control>, Vmm) {
    let (server, control, mut vmm) = start(true);
    assert_eq!(vmm.driver.flush(), 0);
    control.hold();
    add_flush(&mut vmm, false);
    vmm.driver.publish();
    control.wait_for_syncs(2);
    (server, control, vmm)
}

/// A flush whose status goes while it is synced. Returns once the sync has come to its end.
fn status_goes_while_synced(fails: bool) -> (Server, Arc<Control>, Vmm) {
    let (server, control, mut vmm) = hold_flush();
    vmm.share_all_but(STATUS..STATUS + PAGE);
    control.set_failing(fails);
    control.release();
    expect_waiting(&server, 1, Unshared, "the status went");
    assert_eq!((vmm.driver.answers(), control.syncs()), (0, 2));
    control.set_failing(false);
    vmm.share_all();
    assert_eq!(vmm.driver.answer().1, 4);
    (server, control, vmm)
}

#[test]
fn sync_that_failed_while_the_status_went_is_answered_when_it_is_back() {
    let (_server, control, mut vmm) = status_goes_while_synced(true);
    assert_eq!((status(&vmm), control.syncs()), (u32::MAX, 2));
    assert_eq!(vmm.driver.flush(), -1);
}

#[test]
fn sync_that_succeeded_while_the_status_went_is_done_again_when_it_is_back() {
    let (server, control, mut vmm) = status_goes_while_synced(false);
    assert_eq!((status(&vmm), control.syncs()), (0, 3));
    // The one before it, and this one, once.
    assert_eq!(server.device.counts().flushes_done, 2);
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn status_in_memory_that_shrank_while_synced_is_not_returned() {
    let (server, control, vmm) = hold_flush();
    // The rings are there still.
    vmm.shrink_memory_to(STATUS - RAM);
    control.release();
    let deadline = Instant::now() + patience(PATIENCE);
    while server.device.is_connected() {
        assert!(Instant::now() < deadline, "the connection is kept");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(vmm.driver.answers(), 0);
}

#[test]
fn ring_that_is_started_again_looks_at_what_waits_again() {
    let (server, _control, mut vmm) = start(true);
    assert_eq!(vmm.driver.flush(), 0);
    // Too short for a status: until its driver sees that.
    let head = vmm.driver.add(&[(TYPE, 4, NEXT, 1), (STATUS, 3, WRITE, 0)]);
    vmm.driver.write_u32(TYPE, 0);
    vmm.driver.publish();
    expect_waiting(&server, 1, NoRoom, "three bytes");
    assert_eq!(vmm.stop_queue(), 1);
    vmm.driver.write_descriptor(DESC + 16 * u64::from(head + 1), (STATUS, 4, WRITE, 0));
    vmm.mapper.maps.lock().unwrap().clear();
    vmm.start_queue(2);
    assert_eq!(vmm.driver.answer(), (head.into(), 4));
    assert_eq!(status(&vmm), 0);
}

/// A flush of a random life.
struct Sent {
    head: u16,
    status: u64,
    /// Whether its status lies where memory comes and goes.
    is_private: bool,
}

/// A guest that flushes, with statuses in memory that is shared and in memory that comes and goes,
/// and whose ring is stopped and started with any base.
struct Life {
    server: Server,
    vmm: Vmm,
    sent: VecDeque<Sent>,
    is_hidden: bool,
}

impl Life {
    fn send(&mut self, number: u64, is_private: bool) {
        let place = if is_private { STATUS } else { TABLE };
        let status = place + number % 256 * 8;
        self.vmm.driver.write_u32(TYPE, 0);
        self.vmm.driver.write_u32(status, 0x5555_5555);
        let head = self.vmm.driver.add(&[(TYPE, 4, NEXT, 1), (status, 4, WRITE, 0)]);
        self.vmm.driver.publish();
        self.sent.push_back(Sent { head, status, is_private });
    }

    /// All that can be answered is, once and in order, and nothing else.
    fn settle(&mut self) {
        let waits = |sent: &Sent| self.is_hidden && sent.is_private;
        let count = self.sent.iter().take_while(|sent| !waits(sent)).count();
        for Sent { head, status, .. } in self.sent.drain(..count) {
            assert_eq!(self.vmm.driver.answer(), (head.into(), 4));
            assert_eq!(self.vmm.driver.read_u32(status), 0);
        }
        if let Ok(left @ 1..) = u16::try_from(self.sent.len()) {
            expect_waiting(&self.server, left, Unshared, "a private status");
        }
        assert_eq!(self.vmm.driver.answers(), 0);
    }

    fn toggle(&mut self) {
        self.is_hidden = !self.is_hidden;
        match self.is_hidden {
            true => self.vmm.share_all_but(STATUS..STATUS + PAGE),
            false => self.vmm.share_all(),
        }
    }

    fn restart(&mut self, base: u16) {
        self.vmm.stop_queue();
        self.vmm.mapper.maps.lock().unwrap().clear();
        self.vmm.start_queue(base);
    }
}

#[test]
fn flushes_of_random_lives_are_answered_once_and_in_order_with_their_status() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let (server, _control, vmm) = start(seed % 2 == 0);
        let mut life = Life { server, vmm, sent: VecDeque::new(), is_hidden: false };
        for number in 0..60 {
            match random.below(8) {
                0..3 => life.send(number, false),
                3..5 => life.send(number, true),
                5 | 6 => life.toggle(),
                _ => life.restart(u16::try_from(random.below(1 << 16)).unwrap()),
            }
            life.settle();
        }
        if life.is_hidden {
            life.toggle();
        }
        life.settle();
        assert!(life.sent.is_empty(), "seed {seed}");
    }
}
