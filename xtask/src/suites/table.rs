// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of `docs/suites.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result, ensure};

use super::record::Record;

const FILESYSTEMS: [(&str, &str); 2] = [("ext4", "ext4"), ("xfs", "XFS")];
const WINDOWS: [&str; 3] = ["direct", "served", "baseline"];

/// Suites by filesystem and window, then each case that didn't pass, with its reason.
pub(crate) fn table(records: &[Record]) -> Result<String> {
    let first = records.first().context("there are no records")?;
    let (kernel, qemu) = (&first.kernel, &first.qemu);
    let same = |record: &Record| (&record.kernel, &record.qemu) == (kernel, qemu);
    ensure!(records.iter().all(same), "the records are of several kernels or QEMUs: {AGAIN}");

    let mut text = format!("Guest: Linux {kernel}, under QEMU {qemu}.\n\n| |");
    for (_, filesystem) in FILESYSTEMS {
        for window in WINDOWS {
            write!(text, " {filesystem}, {window} |")?;
        }
    }
    text += "\n|---|---|---|---|---|---|---|\n";
    let suites: BTreeSet<_> = records.iter().map(|record| &record.suite).collect();
    for suite in suites {
        write!(text, "| {suite} |")?;
        for (filesystem, _) in FILESYSTEMS {
            for window in WINDOWS {
                let of_cell = |record: &&Record| {
                    (&record.suite, record.filesystem.as_str(), record.window.as_str())
                        == (suite, filesystem, window)
                };
                let record = records.iter().find(of_cell);
                let record = record.with_context(|| {
                    format!("there is no record of {suite} on {filesystem}, {window}: {AGAIN}")
                })?;
                write!(text, " {} |", cell(record))?;
            }
        }
        text.push('\n');
    }
    let known = |record: &Record| record.known_failures.clone();
    text += &reasons("Failures that are known", records, known)?;
    text += &reasons("Skipped by the suites", records, |record| record.skipped.clone())?;
    Ok(text.trim_end().to_owned())
}

const AGAIN: &str = "run `cargo xtask suites --baseline`, which runs all";

fn cell(record: &Record) -> String {
    let counts = [
        (record.passed, "passed"),
        (record.failed.len(), "FAILED"),
        (record.known_failures.len(), "known to fail"),
        (record.skipped.len(), "skipped"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let mut cell =
        counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ");
    if let Some(operations) = record.operations {
        cell += &format!("; {operations} operations");
    }
    cell
}

/// A table of cases and reasons, each with the places where it is so.
fn reasons(
    title: &str,
    records: &[Record],
    of: impl Fn(&Record) -> BTreeMap<String, String>,
) -> Result<String> {
    let mut rows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for record in records {
        for (case, why) in of(record) {
            let row = rows.entry((&record.suite, case, why)).or_default();
            row.push((record.filesystem.as_str(), record.window.as_str()));
        }
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    let mut text = format!("\n{title}:\n\n| | case | where | why |\n|---|---|---|---|\n");
    for ((suite, case, why), places) in rows {
        let mut all = Vec::new();
        for (filesystem, shown) in FILESYSTEMS {
            let windows: Vec<_> = WINDOWS
                .into_iter()
                .filter(|window| places.contains(&(filesystem, *window)))
                .collect();
            if windows.len() == WINDOWS.len() {
                all.push(shown.to_owned());
            } else if !windows.is_empty() {
                all.push(format!("{shown}: {}", windows.join(" and ")));
            }
        }
        writeln!(text, "| {suite} | `{case}` | {} | {why} |", all.join("; "))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(suite: &str, filesystem: &str, window: &str) -> Record {
        Record {
            suite: suite.to_owned(),
            filesystem: filesystem.to_owned(),
            window: window.to_owned(),
            kernel: "6.12".to_owned(),
            qemu: "11.1".to_owned(),
            passed: 7,
            operations: None,
            skipped: BTreeMap::new(),
            known_failures: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn records() -> Vec<Record> {
        let places = FILESYSTEMS.iter().flat_map(|(filesystem, _)| {
            WINDOWS.iter().map(|window| record("s", filesystem, window))
        });
        places.collect()
    }

    #[test]
    fn table_of_all_places_tells_counts_and_where_cases_are_skipped() {
        let mut records = records();
        for at in [0, 1, 2, 4] {
            records[at].skipped.insert("a".to_owned(), "no such thing".to_owned());
        }
        records[3].operations = Some(1000);
        let table = table(&records).unwrap();
        let skipped = "7 passed, 1 skipped";
        let row = format!(
            "| s | {skipped} | {skipped} | {skipped} | 7 passed; 1000 operations | {skipped} | 7 passed |"
        );
        assert!(table.contains(&row), "{table}");
        assert!(table.contains("| s | `a` | ext4; XFS: served | no such thing |"), "{table}");
        assert!(!table.contains("known"), "{table}");
    }

    #[test]
    fn table_with_a_place_missing_is_refused() {
        let mut records = records();
        records.pop();
        let error = table(&records).unwrap_err().to_string();
        assert!(error.starts_with("there is no record of s on xfs, baseline"), "{error}");
    }

    #[test]
    fn table_of_two_kernels_is_refused() {
        let mut records = records();
        records[5].kernel = "7.2".to_owned();
        assert!(table(&records).is_err());
    }
}
