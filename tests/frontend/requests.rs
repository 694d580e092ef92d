// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests, good and bad, and what a flush promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

use crate::driver::{BUFFERS, Descriptor, NEXT, QUEUE_SIZE, RAM, RAM_SIZE, WRITE};
use crate::server::Server;
use crate::store::Control;
use crate::vmm::{Abilities, USER_RAM, Vmm};

const SIZE: u64 = 1 << 20;

#[test]
fn malformed_requests_fail_alone() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    let outside = RAM + RAM_SIZE;
    // A request and a response that the driver has set up; the type is flush.
    let (request, response) = (BUFFERS + 0x100, BUFFERS + 0x200);
    let cases: &[(&str, &[Descriptor])] = &[
        ("too short", &[(request, 3, NEXT, 1), (response, 4, WRITE, 0)]),
        ("no request", &[(response, 4, WRITE, 0)]),
        ("wrong way round", &[(response, 4, NEXT | WRITE, 1), (request, 4, 0, 0)]),
        ("type outside memory", &[(outside, 4, NEXT, 1), (response, 4, WRITE, 0)]),
        ("type at the end of the world", &[(!1, 4, NEXT, 1), (response, 4, WRITE, 0)]),
        ("unknown type", &[(request + 8, 4, NEXT, 1), (response, 4, WRITE, 0)]),
        ("next outside the table", &[(request, 4, NEXT, 1), (response, 4, NEXT | WRITE, 500)]),
        ("loop with room", &[(request, 4, NEXT, 1), (response, 4, NEXT | WRITE, 1)]),
    ];
    for (name, chain) in cases {
        vmm.driver.write_u32(request, 0);
        vmm.driver.write_u32(request + 8, 7);
        vmm.driver.write_u32(response, 0x5555_5555);
        let head = vmm.driver.add(chain);
        vmm.driver.publish();
        assert_eq!(vmm.driver.answer(), (head.into(), 4), "{name}");
        assert_eq!(vmm.driver.read_u32(response), u32::MAX, "{name}");
        assert_eq!(vmm.driver.flush(), 0, "after {name}");
    }
}

#[test]
fn available_index_gone_wild_is_survived() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.driver.publish_bogus_index(1 + QUEUE_SIZE + 1);
    vmm.reset();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn events_on_and_off_lose_no_kick_and_no_call() {
    for event_idx in [true, false] {
        let server = Server::files(&[SIZE]);
        let abilities = Abilities { event_idx, ..Abilities::default() };
        let mut vmm = Vmm::start(&server.socket(), abilities);
        for _ in 0..5000 {
            assert_eq!(vmm.driver.flush(), 0);
        }
        // Several in flight, and more added while they are answered.
        for round in 0..100 {
            for slot in 0..1 + round % 60 {
                vmm.driver.add_flush(slot);
                if slot % 3 == 0 {
                    vmm.driver.publish();
                }
            }
            vmm.driver.publish();
            for slot in 0..1 + round % 60 {
                assert_eq!(vmm.driver.answer().1, 4);
                assert_eq!(vmm.driver.status(slot), 0);
            }
        }
    }
}

#[test]
fn batch_is_synced_once_and_answered_whole() {
    let (server, control) = Server::controlled(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let before = control.syncs();
    for slot in 0..64 {
        vmm.driver.add_flush(slot);
    }
    vmm.driver.publish();
    for _ in 0..64 {
        assert_eq!(vmm.driver.answer().1, 4);
    }
    assert_eq!(control.syncs(), before + 1);
}

/// Of 32768 requests, which all lie in the same place: crosvm has such a queue.
#[test]
fn queue_of_the_largest_size_is_answered_whole() {
    const SIZE_MAX: u16 = 1 << 15;
    const RINGS: [u64; 3] = [RAM, RAM + 0x8_1000, RAM + 0xa_0000];
    let (server, control) = Server::controlled(SIZE);
    let abilities = Abilities { event_idx: false, ..Abilities::default() };
    let mut vmm = Vmm::connect(&server.socket(), abilities);
    vmm.prepare();
    let [desc, avail, used] = RINGS;
    let (request, response) = (RAM + 0x9_8000, RAM + 0x9_8010);
    vmm.driver.write_descriptor(desc, (request, 4, NEXT, 1));
    vmm.driver.write_descriptor(desc + 16, (response, 4, WRITE, 0));
    vmm.driver.write_u32(response, 0x5555_5555);
    let user = RINGS.map(|ring| ring - RAM + USER_RAM);
    let addresses = VringConfigData {
        queue_max_size: SIZE_MAX,
        queue_size: SIZE_MAX,
        flags: 0,
        desc_table_addr: user[0],
        avail_ring_addr: user[1],
        used_ring_addr: user[2],
        log_addr: None,
    };
    vmm.frontend.set_vring_num(0, SIZE_MAX).unwrap();
    vmm.frontend.set_vring_base(0, 0).unwrap();
    vmm.frontend.set_vring_addr(0, &addresses).unwrap();
    vmm.frontend.set_vring_call(0, &vmm.driver.call).unwrap();
    vmm.frontend.set_vring_kick(0, &vmm.driver.kick).unwrap();
    // The index, behind the flags.
    vmm.driver.write_u32(avail, u32::from(SIZE_MAX) << 16);
    vmm.frontend.set_vring_enable(0, true).unwrap();
    vmm.driver.kick.write(1).unwrap();
    while vmm.driver.read_u32(used) >> 16 != u32::from(SIZE_MAX) {
        std::thread::yield_now();
    }
    assert_eq!((vmm.driver.read_u32(response), control.syncs()), (0, 1));
    let counts = server.device.counts();
    assert_eq!(counts.flushes_done, u64::from(SIZE_MAX));
    assert_eq!(counts.batches.bounds.last(), Some(&SIZE_MAX.into()));
    assert_eq!(counts.batches.counts.last(), Some(&0), "a batch is no larger");
}

#[test]
fn driver_that_wants_no_call_gets_none() {
    let server = Server::files(&[SIZE]);
    let abilities = Abilities { event_idx: false, ..Abilities::default() };
    let mut vmm = Vmm::start(&server.socket(), abilities);
    for (slot, wanted) in [(1, false), (2, true)] {
        vmm.driver.want_calls(wanted);
        vmm.driver.add_flush(slot);
        vmm.driver.publish();
        while u64::from(vmm.driver.answers()) < slot {
            std::thread::yield_now();
        }
        // The device asks what is wanted after it has answered.
        drop(server.device.quiesce());
    }
    // The one for the second, which comes behind its answer.
    let calls = loop {
        if let Ok(calls) = vmm.driver.call.read() {
            break calls;
        }
    };
    assert_eq!(calls, 1);
}

/// A flush that was taken, and whose sync doesn't end before it is released.
fn flush_held() -> (Server, Arc<Control>, Vmm) {
    let (server, control) = Server::controlled(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    control.hold();
    vmm.driver.add_flush(0);
    vmm.driver.publish();
    control.wait_for_syncs(1);
    (server, control, vmm)
}

#[test]
fn flush_submitted_while_a_sync_runs_causes_another() {
    let (_server, control, mut vmm) = flush_held();
    // This one's stores may have come too late for the sync that runs.
    vmm.driver.add_flush(1);
    vmm.driver.publish();
    assert_eq!(vmm.driver.answers(), 0);
    control.release();
    assert_eq!((vmm.driver.answer().1, vmm.driver.answer().1), (4, 4));
    assert_eq!(control.syncs(), 2);
}

#[test]
fn queue_stop_waits_for_the_batch_that_was_taken() {
    let (_server, control, mut vmm) = flush_held();
    let stopped = std::thread::scope(|scope| {
        let stop = scope.spawn(|| vmm.stop_queue());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!stop.is_finished(), "the stop did not wait");
        control.release();
        stop.join().unwrap()
    });
    assert_eq!(stopped, 1);
    assert_eq!(vmm.driver.answers(), 1);
    assert_eq!(vmm.driver.status(0), 0);
}

#[test]
fn quiesce_waits_for_the_batch_that_was_taken_and_lets_no_other_start() {
    let (server, control, mut vmm) = flush_held();
    let released = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            released.store(true, Ordering::SeqCst);
            control.release();
        });
        let guard = server.device.quiesce();
        assert!(released.load(Ordering::SeqCst), "what was taken was not answered yet");
        assert_eq!(vmm.driver.answer().1, 4);
        vmm.driver.add_flush(1);
        vmm.driver.publish();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!((vmm.driver.answers(), control.syncs()), (0, 1));
        drop(guard);
    });
    assert_eq!(vmm.driver.answer().1, 4);
}

#[test]
fn failed_sync_fails_every_later_flush() {
    let (server, control) = Server::controlled(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    control.set_failing(true);
    assert_eq!(vmm.driver.flush(), -1);
    control.set_failing(false);
    assert_eq!(vmm.driver.flush(), -1);
    vmm.reset();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    drop(vmm);
    let mut next = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(next.driver.flush(), -1);
}
