// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The records that the tests leave; `tests/suites/record.rs` writes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// What a suite said on one filesystem in one window.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Record {
    pub(crate) suite: String,
    pub(crate) filesystem: String,
    pub(crate) window: String,
    pub(crate) kernel: String,
    pub(crate) qemu: String,
    pub(crate) passed: usize,
    pub(crate) operations: Option<u64>,
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) known_failures: BTreeMap<String, String>,
    pub(crate) failed: BTreeMap<String, String>,
}

/// All in `dir`, ordered by suite.
pub(crate) fn read_all(dir: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let record: Record = serde_json::from_str(&fs::read_to_string(&path)?)
                .with_context(|| format!("{} is no record", path.display()))?;
            records.push(record);
        }
    }
    records.sort_by(|one, other| one.suite.cmp(&other.suite));
    Ok(records)
}
