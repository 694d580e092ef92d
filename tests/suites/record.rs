// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run leaves in `target/suites`: a record that `cargo xtask suites` makes a table of, and all
//! that the guest printed.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use guest_harness::{Lab, Outcome, target_dir};
use serde::Serialize;

use crate::known;
use crate::place::Place;
use crate::results::{Case, Verdict};

#[derive(Serialize)]
struct Record<'a> {
    suite: &'a str,
    filesystem: &'a str,
    window: &'a str,
    kernel: &'a str,
    qemu: String,
    passed: usize,
    /// How many operations that were, where the suite counts them.
    operations: Option<u64>,
    /// The reason of each.
    skipped: BTreeMap<&'a str, &'a str>,
    /// The reason of each.
    known_failures: BTreeMap<&'a str, &'a str>,
    /// Why each.
    failed: BTreeMap<&'a str, &'a str>,
}

/// Writes both.
pub(crate) fn write(
    lab: &Lab,
    suite: &str,
    place: Place,
    outcome: &Outcome,
    cases: &[Case],
    operations: Option<u64>,
) -> Result<()> {
    let kernel = outcome.serial.lines().find_map(|line| line.strip_prefix("MARK boot "));
    let mut record = Record {
        suite,
        filesystem: place.filesystem.name(),
        window: place.window.name(),
        kernel: kernel.context("the guest didn't boot")?,
        qemu: lab.qemu().version().to_string(),
        passed: 0,
        operations,
        skipped: BTreeMap::new(),
        known_failures: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    for Case { name, verdict } in cases {
        match verdict {
            Verdict::Passed => record.passed += 1,
            Verdict::Skipped(why) => drop(record.skipped.insert(name, why)),
            Verdict::Failed(why) => match known::reason(suite, place, name) {
                Some(reason) => drop(record.known_failures.insert(name, reason)),
                None => drop(record.failed.insert(name, why)),
            },
        }
    }
    let dir = target_dir().join("suites");
    fs::create_dir_all(&dir)?;
    let name = format!("{suite}-{place}");
    fs::write(dir.join(format!("{name}.json")), serde_json::to_string_pretty(&record)?)?;
    fs::write(dir.join(format!("{name}.log")), &outcome.serial)?;
    Ok(())
}
