// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--log-format`: what is logged, line by line.

use guest_harness::Daemon;
use serde_json::Value;

use crate::{DAEMON, Place};

/// What a daemon logs that serves a file, until it is told to end.
fn log(place: &Place, format: &str) -> Vec<String> {
    let args = format!("--log-format {format} --log-level debug --name vm\\1 --size 1M --file @/f");
    let args = place.expand(&args);
    let daemon = Daemon::start(DAEMON, args.split_whitespace()).unwrap();
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success());
    log.lines().map(str::to_owned).collect()
}

#[test]
fn json_is_an_object_a_line_with_the_device() {
    let place = Place::new();
    let lines = log(&place, "json");
    let parsed: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, of) in parsed.iter().zip(&lines) {
        assert!(of.starts_with("{\"timestamp\":\"2"), "{of}");
        assert_eq!(line["device"], "vm\\1", "{of}");
        assert!(line["message"].is_string() && line["level"].is_string(), "{of}");
    }
    let said = |message: &str| parsed.iter().find(|line| line["message"] == message);
    let created = said("created, sparse").unwrap();
    assert_eq!(
        (&created["level"], &created["size"]),
        (&"INFO".into(), &"1 MiB (1048576 bytes)".into())
    );
    assert_eq!(said("ending").unwrap()["signal"], 15);
}

#[test]
fn json_has_the_reason_of_an_end_too() {
    let place = Place::new();
    let output = place.run("--log-format json --name vm --socket-path @/socket --file @/none");
    let line: Value = serde_json::from_slice(&output.stderr).unwrap();
    let expected = place.expand("cannot serve @/none: no such file; give --size SIZE to create it");
    assert_eq!((&line["message"], &line["level"]), (&expected.into(), &"ERROR".into()));
    assert_eq!(line["device"], "vm");
    // What is logged nowhere is said all the same.
    let output =
        place.run("--log-format json --log-level off --socket-path @/socket --file @/none");
    assert!(output.stderr.starts_with(b"vhost-pmemd: cannot serve "));
}

#[test]
fn journald_is_told_each_lines_priority() {
    let place = Place::new();
    let lines = log(&place, "journald");
    assert!(lines.iter().all(|line| line.ends_with(" device=\"vm\\\\1\"")), "{lines:#?}");
    let created = lines.iter().find(|line| line.contains("created, sparse")).unwrap();
    assert!(created.starts_with("<6>created, sparse path="), "{created}");
    let output = place.run("--log-format journald --socket-path @/socket --file @/none");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("<3>cannot serve "), "{said}");
}
