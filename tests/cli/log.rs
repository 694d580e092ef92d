// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--log-format`: what is logged, line by line.

use std::process::Command;

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

/// Paths, marks and the like may have anything in them, and are nobody's way into a log or a
/// terminal.
#[test]
fn text_of_others_neither_ends_a_line_nor_reaches_the_terminal() {
    const EVIL: &str = "f\n2026-11-27T00:00:00Z  WARN all is well \x1b[2J\x07\u{9b}";
    const SHOWN: &str = r"/f\n2026-11-27T00:00:00Z  WARN all is well \u{1b}[2J\u{7}\u{9b}";
    let is_plain = |text: &str| !text.chars().any(|one| one.is_control() && one != '\n');

    let place = Place::new();
    let (file, control) = (place.path(EVIL), place.path("control"));
    for (format, begin) in [("text", "20"), ("journald", "<")] {
        let mut args = vec!["--log-format", format, "--size", "1M", "--file"];
        args.extend([file.to_str().unwrap(), "--control", control.to_str().unwrap()]);
        let daemon = Daemon::start(DAEMON, &args).unwrap();
        let output = place.run("status --control @/control");
        let status = String::from_utf8(output.stdout).unwrap();
        assert!(status.contains(SHOWN) && is_plain(&status), "{status:?}");
        let (_, log) = daemon.terminate().unwrap();
        assert!(log.contains(SHOWN) && is_plain(&log), "{log:?}");
        assert!(log.lines().all(|line| line.starts_with(begin)), "{log:?}");
        std::fs::remove_file(&file).unwrap();
    }

    let mut command = Command::new(DAEMON);
    let output = command.arg("--socket-path").arg(place.path("s")).arg("--file").arg(&file);
    let said = String::from_utf8(output.output().unwrap().stderr).unwrap();
    assert!(said.contains(SHOWN) && is_plain(&said), "{said:?}");
    assert_eq!(said.lines().count(), 1, "{said:?}");

    std::fs::write(&file, [0; 4096]).unwrap();
    std::fs::write(
        place.path("table"),
        format!("0 8 linear {}\u{1b} 0\n", place.path("t").display()),
    )
    .unwrap();
    std::fs::write(place.path("t\u{1b}"), [0; 4096]).unwrap();
    let output = place.run("check --table @/table");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains(r"/t\u{1b} from") && is_plain(&shown), "{shown:?}");
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
