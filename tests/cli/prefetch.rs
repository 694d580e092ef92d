// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--prefetch`.

use std::fs;

use guest_harness::Daemon;

use crate::{DAEMON, Place};

#[test]
fn prefetch_reads_every_file_of_a_table() {
    let place = Place::new();
    let [one, other, table] = ["one", "other", "table"].map(|name| place.path(name));
    for file in [&one, &other] {
        fs::write(file, vec![7; 1 << 20]).unwrap();
    }
    let line =
        |start, file: &std::path::Path| format!("{start} 2048 linear {} 0\n", file.display());
    fs::write(&table, line(0, &one) + &line(2048, &other)).unwrap();
    let args = ["--table".as_ref(), table.as_os_str(), "--prefetch".as_ref()];
    let (status, log) = Daemon::start(DAEMON, args).unwrap().terminate().unwrap();
    assert!(status.success());
    let told: Vec<_> =
        log.lines().filter(|line| line.contains("read into the page cache")).collect();
    assert_eq!(told.len(), 2, "{log}");
    for file in [one, other] {
        let name = file.display().to_string();
        assert!(told.iter().any(|line| line.contains(&name)), "{log}");
    }
}
