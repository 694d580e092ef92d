// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mapping: when it is done, when it is done again, and when it can't be done.

use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_harness::patience;

use crate::server::Server;
use crate::vmm::{Abilities, Vmm};

const SIZE: u64 = 1 << 20;

fn requests(vmm: &Vmm) -> u64 {
    *vmm.mapper.requests.lock().unwrap()
}

#[test]
fn activation_maps_every_extent_where_it_belongs() {
    // VMMs that do as QEMU send a memory table while they map and wait for us to take it: a lock
    // held at the wrong time would hang this test.
    let server = Server::files(&[SIZE / 2, SIZE / 4, SIZE / 4]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let pieces: Vec<_> =
        vmm.mapper.maps.lock().unwrap().iter().map(|map| (map.offset, map.len)).collect();
    assert_eq!(pieces, [(0, SIZE / 2), (SIZE / 2, SIZE / 4), (SIZE / 4 * 3, SIZE / 4)]);

    vmm.store(SIZE / 2 - 1, b"a");
    vmm.store(SIZE / 2, b"b");
    vmm.store(SIZE - 1, b"c");
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(server.file(0).last(), Some(&b'a'));
    assert_eq!(server.file(1).first(), Some(&b'b'));
    assert_eq!(server.file(2).last(), Some(&b'c'));
}

#[test]
fn flush_before_the_mapping_waits_for_it() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::connect(&server.socket(), Abilities::default());
    *vmm.mapper.delay.lock().unwrap() = Duration::from_millis(300);
    vmm.activate();
    // Answered sooner, it would vouch for stores that went nowhere.
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(vmm.mapper.maps.lock().unwrap().len(), 1);
}

#[test]
fn reset_forgets_the_mapping_and_activation_maps_again() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    for round in 1..=3 {
        assert_eq!(vmm.driver.flush(), 0);
        assert_eq!(requests(&vmm), u64::from(round));
        vmm.store(0, &[round]);
        assert_eq!(vmm.driver.flush(), 0);
        assert_eq!(server.file(0)[0], round);
        vmm.reset();
        vmm.activate();
    }
}

#[test]
fn mapping_that_outlives_a_reset_is_replaced() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    // As crosvm does it: the mapping stays, and a second one over it is refused.
    vmm.stop_queue();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(vmm.mapper.maps.lock().unwrap().len(), 1);
    vmm.store(0, b"x");
    assert_eq!(server.file(0)[0], b'x');
}

#[test]
fn refused_map_fails_every_flush_until_the_next_activation() {
    let server = Server::files(&[SIZE / 2, SIZE / 2]);
    let mut vmm = Vmm::connect(&server.socket(), Abilities::default());
    vmm.mapper.refuse.store(true, Ordering::SeqCst);
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    // The frontend might map now; the guest's stores until here went nowhere all the same.
    vmm.mapper.refuse.store(false, Ordering::SeqCst);
    assert_eq!(vmm.driver.flush(), -1);
    assert_eq!(requests(&vmm), 1);
    vmm.reset();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn stop_while_the_frontend_maps_waits_for_nothing() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::connect(&server.socket(), Abilities::default());
    *vmm.mapper.delay.lock().unwrap() = patience(Duration::from_secs(2));
    vmm.activate();
    while requests(&vmm) == 0 {
        std::thread::yield_now();
    }
    // The frontend is in the middle of the map, and wants an answer before it goes on.
    vmm.stop_queue();
    assert!(vmm.mapper.maps.lock().unwrap().is_empty(), "the stop waited for the map");
    *vmm.mapper.delay.lock().unwrap() = Duration::ZERO;
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn stop_while_the_frontend_maps_has_nothing_mapped_afterwards() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::connect(&server.socket(), Abilities::default());
    *vmm.mapper.delay.lock().unwrap() = Duration::from_millis(300);
    vmm.activate();
    while requests(&vmm) == 0 {
        std::thread::yield_now();
    }
    vmm.stop_queue();
    while vmm.mapper.maps.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    // Long enough for another map.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(requests(&vmm), 1);
    // A driver resets the device before it starts, of which a frontend needn't tell: its queue was
    // stopped already.
    vmm.mapper.maps.lock().unwrap().clear();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    vmm.store(0, b"x");
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(server.file(0)[0], b'x');
}

#[test]
fn memory_table_sent_while_running_loses_no_request() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    for slot in 0..60 {
        vmm.driver.add_flush(slot);
        vmm.driver.publish();
        vmm.share_memory();
    }
    for slot in 0..60 {
        assert_eq!(vmm.driver.answer().1, 4);
        assert_eq!(vmm.driver.status(slot), 0);
    }
}

#[test]
fn queue_stopped_and_continued_answers_what_came_between() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let base = vmm.stop_queue();
    assert_eq!(base, 1);
    vmm.driver.add_flush(1);
    vmm.driver.publish();
    vmm.mapper.maps.lock().unwrap().clear();
    vmm.start_queue(u16::try_from(base).unwrap());
    assert_eq!(vmm.driver.answer().1, 4);
    assert_eq!(vmm.driver.status(1), 0);
}

#[test]
fn store_that_is_disabled_is_taken_from_the_guest() {
    let (server, mut space, pfn) = Server::disposable(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.store(0, b"x");
    // This waits for the frontend to have unmapped the pages, without end.
    space.disable(pfn, Duration::MAX).unwrap();
    assert!(vmm.mapper.maps.lock().unwrap().is_empty(), "the guest still has the pages");
    assert_eq!(vmm.driver.flush(), -1);
    vmm.reset();
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    assert!(vmm.mapper.maps.lock().unwrap().is_empty());
}

#[test]
fn store_that_is_disabled_is_taken_from_a_queue_that_never_rests() {
    let (server, mut space, pfn) = Server::disposable_polling(SIZE, Duration::from_secs(36_000));
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), 0);
    }
    // From now on it looks for requests for more than an hour.
    space.disable(pfn, patience(Duration::from_secs(20))).unwrap();
    assert!(vmm.mapper.maps.lock().unwrap().is_empty(), "the guest still has the pages");
    assert_eq!(vmm.driver.flush(), -1);
}

#[test]
fn store_that_the_frontend_keeps_is_not_gone() {
    let (server, mut space, pfn) = Server::disposable(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.mapper.refuse_unmap.store(true, Ordering::SeqCst);
    space.disable(pfn, Duration::from_millis(300)).unwrap_err();
    assert_eq!(vmm.mapper.maps.lock().unwrap().len(), 1);
    assert_eq!(vmm.driver.flush(), -1);
    // With the frontend go its mappings.
    drop(vmm);
    space.disable(pfn, Duration::MAX).unwrap();
}

#[test]
fn store_that_is_disabled_after_a_reset_needs_nobody() {
    let (server, mut space, pfn) = Server::disposable(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.reset();
    space.disable(pfn, Duration::MAX).unwrap();
}

#[test]
fn store_that_is_disabled_under_another_guest_needs_nobody() {
    let (server, mut space, pfn) = Server::disposable(SIZE);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.reset();
    // The next kernel can't have the pages; what the last one had is still to be given up.
    vmm.abilities.shmem_region = false;
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    space.disable(pfn, patience(Duration::from_secs(10))).unwrap();
}
