// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the guest has its pages and its answers, and why not, as `status`, `list` and the
//! metrics tell it. Nothing is good that isn't.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use guest_harness::Daemon;
use serde_json::Value;

use super::{Place, assert_same, shown};
use crate::driver::{BUFFERS, NEXT, RAM, RAM_SIZE, WRITE};
use crate::vmm::{Abilities, Vmm};

fn serve(place: &Place) -> Daemon {
    let file = place.file("pmem", 1 << 20);
    place.serve(&[OsStr::new("--file"), file.as_os_str()]).unwrap()
}

/// What is told once `is_so`: the status, `status`' text, and of `list` the line's end.
#[track_caller]
fn told(place: &Place, is_so: impl Fn(&Value) -> bool) -> (Value, String, String) {
    let (status, metrics) = place.both_when(is_so);
    assert_same(&status, &metrics);
    let list = shown(place, "list");
    let line = list.lines().nth(1).unwrap().split_once("direct  ").unwrap().1;
    let words: Vec<_> = line.split("  ").filter(|word| !word.is_empty()).map(str::trim).collect();
    (status, shown(place, "status"), words.join(" | "))
}

/// The text of a status without how long something has been so.
#[track_caller]
fn expect(text: &str, before: &str, after: &str) {
    let line = text.lines().find(|line| line.starts_with(before));
    let line = line.unwrap_or_else(|| panic!("{before:?} is missing in:\n{text}"));
    let (age, rest) = line[before.len()..].split_once(": ").unwrap();
    assert!(age.starts_with(" for "), "{line}");
    assert!(rest.contains(after), "{after:?} is missing in {line}");
}

/// Whether a time of a status is one of this test's.
pub(super) fn is_recent(since_ms: &Value) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let since = since_ms.as_u64().unwrap().into();
    (now - 600_000..=now).contains(&since)
}

#[test]
fn guest_that_is_mapped_is_good_and_one_that_is_not_there_yet_is_waited_for() {
    let place = Place::new();
    let daemon = serve(&place);
    let (status, text, list) = told(&place, |status| status["frontend"] == false);
    assert_eq!((status["pages"]["state"].as_str(), &*list), (Some("idle"), "none | - | good"));
    assert!(!text.contains("pages:"), "{text}");

    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    let (status, text, list) = told(&place, |status| status["frontend"] == true);
    assert_eq!(status["pages"]["state"], "idle");
    assert_eq!(list, "connected | not mapped | waiting for the guest");
    assert!(text.contains("\npages: not mapped, as the guest has not activated the"), "{text}");

    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    let (_, text, list) = told(&place, |status| status["pages"]["state"] == "mapped");
    assert_eq!(list, "connected | mapped | good");
    assert!(text.contains("\npages: mapped\n"), "{text}");

    vmm.reset();
    told(&place, |status| status["pages"]["state"] == "idle");
    drop(vmm);
    told(&place, |status| status["frontend"] == false);
}

#[test]
fn guest_that_is_refused_is_told_of_with_the_reason_also_after_its_driver_has_given_up() {
    let place = Place::new();
    let daemon = serve(&place);
    for (abilities, reason) in [
        (Abilities { shmem: false, ..Abilities::default() }, "didn't negotiate the vhost-user"),
        (
            Abilities { shmem_region: false, ..Abilities::default() },
            "use a guest kernel of Linux 6.8",
        ),
    ] {
        let mut vmm = Vmm::start(daemon.socket(), abilities);
        assert_eq!(vmm.driver.flush(), -1);
        vmm.reset();
        let (status, text, list) = told(&place, |status| status["pages"]["state"] == "unmapped");
        assert!(is_recent(&status["pages"]["since_ms"]), "{status:#}");
        expect(&text, "pages: not mapped, every flush fails", reason);
        assert_eq!(list, "connected | not mapped | every flush fails");
        drop(vmm);
        told(&place, |status| status["frontend"] == false && status["pages"]["state"] == "idle");
    }
    // A guest that can have them is not blamed for the one before it.
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.abilities.shmem_region = false;
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    told(&place, |status| status["pages"]["state"] == "unmapped");
    vmm.reset();
    vmm.abilities.shmem_region = true;
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    told(&place, |status| status["pages"]["state"] == "mapped");
}

#[test]
fn pages_that_the_frontend_would_not_map_are_told_of_until_the_guest_resets_the_device() {
    let place = Place::new();
    let daemon = serve(&place);
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.mapper.refuse.store(true, Ordering::SeqCst);
    vmm.activate();
    assert_eq!(vmm.driver.flush(), -1);
    let (_, text, list) = told(&place, |status| status["pages"]["state"] == "unmapped");
    expect(&text, "pages: not mapped, every flush fails", "the frontend refused to map 1048576");
    assert_eq!(list, "connected | not mapped | every flush fails");
    vmm.reset();
    told(&place, |status| status["pages"]["state"] == "idle");
}

#[test]
fn requests_that_can_not_be_answered_are_told_of_with_the_reason_and_the_mend() {
    let place = Place::new();
    let daemon = serve(&place);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    let request = (BUFFERS, 4, NEXT, 1);
    let outside = RAM + RAM_SIZE;
    for (response, cause, reason) in [
        ((BUFFERS + 8, 3, WRITE, 0), "no_room", "left no room for a status; restart the guest"),
        (
            (outside, 4, WRITE, 0),
            "unshared",
            "doesn't share; give share=on to every memory backend",
        ),
    ] {
        assert_eq!(vmm.driver.flush(), 0);
        vmm.driver.add(&[request, response]);
        vmm.driver.add_flush(1);
        vmm.driver.publish();
        let (status, text, list) = told(&place, |status| !status["waiting"].is_null());
        let waiting = &status["waiting"];
        assert_eq!((&waiting["requests"], &waiting["cause"]), (&2.into(), &cause.into()));
        assert!(is_recent(&waiting["since_ms"]), "{status:#}");
        expect(&text, "requests: 2 can't be answered", reason);
        assert_eq!(list, "connected | mapped | flushes wait");
        vmm.reset();
        told(&place, |status| status["waiting"].is_null());
        vmm.activate();
    }
}

#[test]
fn queue_that_is_unusable_is_told_of_until_it_is_reset() {
    let place = Place::new();
    let daemon = serve(&place);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.driver.publish_bogus_index(0x8000);
    let (status, text, list) = told(&place, |status| !status["waiting"].is_null());
    assert_eq!(status["waiting"]["cause"], "queue");
    expect(&text, "requests: 1 can't be answered", "queue is unusable; restart the guest");
    assert_eq!(list, "connected | mapped | flushes wait");
    vmm.reset();
    let (.., list) = told(&place, |status| status["waiting"].is_null());
    assert_eq!(list, "connected | not mapped | waiting for the guest");
}
