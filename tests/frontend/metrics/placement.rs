// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a window in guest memory is there, as `status`, `list` and the metrics tell it.

use std::ffi::OsStr;

use serde_json::{Value, json};

use super::{Place, assert_same, shown};
use crate::gpa::{SIZE, Vmm, open, window};

/// The placement and what is mapped, once a frontend is connected or none is, as all say who tell of
/// it.
fn told(place: &Place, frontend: bool) -> (Value, Value) {
    let (status, metrics) = place.both_when(|status| status["frontend"] == frontend);
    assert_same(&status, &metrics);
    let placement = status["placement"].clone();
    let text = shown(place, "status");
    let expected = match placement["state"].as_str().unwrap() {
        "unknown" if frontend => "pages: not mapped, as the guest has not activated".to_owned(),
        "unknown" => "frontend: none".to_owned(),
        "found" => "pages: mapped\n".to_owned(),
        _ => format!(": {}\n", placement["reason"].as_str().unwrap()),
    };
    assert!(text.contains(&expected), "{expected:?} is missing in:\n{text}");
    let is_bad = placement["state"] == "misplaced";
    assert_eq!(text.contains("pages: not mapped, every flush fails for "), is_bad, "{text}");
    assert_eq!(shown(place, "list").contains("every flush fails"), is_bad);
    (placement, status["mapped"].clone())
}

#[test]
fn window_in_guest_memory_is_told_of_until_its_frontend_leaves() {
    let place = Place::new();
    let [path, other] = ["pmem", "other"].map(|name| place.file(name, SIZE));
    let args = ["--window", "gpa=0x20000000", "--file"].map(OsStr::new);
    let args: Vec<_> = args.into_iter().chain([path.as_os_str()]).collect();
    let daemon = place.serve(&args).unwrap();
    let unknown = (json!({"state": "unknown"}), json!(0));
    let found = (json!({"state": "found"}), json!(SIZE));
    let text = shown(&place, "status");
    assert!(text.contains(", gpa=0x20000000, frontend: none\n"), "{text}");
    assert_eq!(told(&place, false), unknown);

    // Its guest may never have a driver that asks for anything.
    let (file, other) = (open(&path), open(&other));
    let vmm = Vmm::connect(&daemon);
    assert_eq!(told(&place, true), unknown);
    vmm.share(&[window(&file)]);
    assert_eq!(told(&place, true), found);

    vmm.share(&[window(&other)]);
    let (placement, mapped) = told(&place, true);
    let reason = placement["reason"].as_str().unwrap();
    assert_eq!((&placement["state"], mapped), (&json!("misplaced"), json!(0)));
    assert!(reason.starts_with("the guest's memory at 0x20000000 is inode "), "{reason}");
    assert!(reason.ends_with("say with --window gpa=ADDR where it maps it"), "{reason}");

    vmm.share(&[window(&file)]);
    assert_eq!(told(&place, true), found);
    drop(vmm);
    assert_eq!(told(&place, false), unknown);
}
