// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a window in guest memory is there, as `status`, `list` and the metrics tell it.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::{Value, json};

use super::{DAEMON, Place, assert_same};
use crate::gpa::{SIZE, Vmm, open, window};

/// What a command shows to people.
fn shown(place: &Place, command: &str) -> String {
    let mut ask = Command::new(DAEMON);
    ask.args([command, "--control"]).arg(place.path("control"));
    String::from_utf8(ask.output().unwrap().stdout).unwrap()
}

/// The placement and what is mapped, once a frontend is connected or none is, as all say who tell of
/// it.
fn told(place: &Place, frontend: bool) -> (Value, Value) {
    let (status, metrics) = place.both_when(|status| status["frontend"] == frontend);
    assert_same(&status, &metrics);
    let placement = status["placement"].clone();
    let text = shown(place, "status");
    let expected = match placement["state"].as_str().unwrap() {
        "unknown" => "window: no frontend has told of its guest's memory yet\n".to_owned(),
        "found" => "window: found in the guest's memory\n".to_owned(),
        _ => format!("window: every flush fails: {}\n", placement["reason"].as_str().unwrap()),
    };
    assert!(text.contains(&expected), "{expected:?} is missing in:\n{text}");
    let is_bad = shown(place, "list").contains("window misplaced");
    assert_eq!(is_bad, placement["state"] == "misplaced");
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
