// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Options that don't go together.

use crate::Place;

#[test]
fn window_that_does_not_fit_is_refused_before_a_file_is_made() {
    let place = Place::new();
    for (args, word) in [
        ("--publish @/window --window direct", "--publish shows a served window"),
        ("--publish @/window --window gpa=4G", "give --socket-path"),
    ] {
        let output = place.run(&format!("{args} --file @/file --size 1M"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(word), "{args}: {stderr}");
        assert_eq!(output.status.code(), Some(1), "{args}");
        assert!(!place.path("file").exists(), "{args}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_refused_by_name() {
    let place = Place::new();
    for (args, word) in [
        ("--socket-path @/socket", "--file"),
        ("--file @/file", "--socket-path"),
        ("--socket-path @/socket --fd 3 --file @/file", "cannot be used with"),
        ("--socket-path @/socket --file @/file --table @/table", "cannot be used with"),
        ("--socket-path @/socket --table @/table --size 1M", "cannot be used with"),
        ("--socket-path @/socket --file @/file --size 1.5G", "such as 256M, 4G or 1T"),
        ("--socket-path @/socket --file @/file --overlay @/cow --read-only", "cannot be used with"),
        ("--socket-path @/socket --table @/table --overlay @/cow", "cannot be used with"),
    ] {
        let output = place.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(word), "{args}: {stderr}");
        assert_eq!(output.status.code(), Some(2), "{args}");
    }
}
