// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is kept of tests that went bad.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use guest_harness::Lab;

use super::verdict::Ended;

/// The name of the disk that a guest keeps its results on.
pub(crate) const DISK: &str = "results.img";

/// Takes from the results disk, in `dir`, what `check` and the tests left there, and keeps that of bad
/// tests in a directory of `kept` for each, with what `check` and the kernel printed. The disk is
/// removed.
pub(crate) fn keep(lab: &Lab, dir: &Path, ended: &[Ended], kept: &Path) -> Result<()> {
    let disk = dir.join(DISK);
    let results = dir.join("results");
    if ended.iter().any(|ended| ended.verdict.is_bad()) {
        fs::create_dir(&results)?;
        // A guest that was killed left the disk as it was. This returns 1 where it mended something.
        let mut e2fsck = lab.host_tool("e2fsck")?;
        e2fsck.arg("-fy").arg(&disk).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        let mut debugfs = lab.host_tool("debugfs")?;
        debugfs.args(["-R", "rdump / results", DISK]).current_dir(dir);
        // Whoever isn't root is told that it can't give the files to root.
        debugfs.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    }
    let log = fs::read(results.join("kernel.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    for ended in ended.iter().filter(|ended| ended.verdict.is_bad()) {
        keep_one(&results, &log, ended, kept)?;
    }
    if results.exists() {
        fs::remove_dir_all(results)?;
    }
    Ok(fs::remove_file(disk)?)
}

/// `log` is what the guest's kernel said during all tests.
fn keep_one(results: &Path, log: &str, ended: &Ended, kept: &Path) -> Result<()> {
    let (group, name) = ended.test.split_once('/').context("a test is named DIR/NAME")?;
    let kept = kept.join(group).join(name);
    fs::create_dir_all(&kept)?;
    fs::write(kept.join("check.out"), format!("{}\n\n{}", ended.verdict, ended.output))?;
    fs::write(kept.join("console.log"), &ended.console)?;
    fs::write(kept.join("kernel.log"), during(&ended.test, log))?;
    let left = results.join(group);
    if !left.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(left)? {
        let entry = entry?;
        // 001.out.bad, 001.full, 001.dmesg and others.
        let file = entry.file_name();
        if file.to_string_lossy().split('.').next() == Some(name) && entry.path().is_file() {
            fs::rename(entry.path(), kept.join(file))?;
        }
    }
    Ok(())
}

/// What of the kernel's `log` came during `test`: `check` notes there when each begins.
fn during(test: &str, log: &str) -> String {
    let begin = format!("run fstests {test} at ");
    let mut lines = log.lines().skip_while(|line| !line.contains(&begin));
    let first = lines.next().into_iter();
    let rest = lines.take_while(|line| !line.contains("run fstests "));
    first.chain(rest).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_of_one_test_ends_where_the_next_begins() {
        let log = "[1] boot\n[2] run fstests generic/001 at now\n[3] a\n\
                   [4] run fstests generic/0010 at now\n[5] b\n";
        let first = "[2] run fstests generic/001 at now\n[3] a\n";
        assert_eq!(during("generic/001", log), first);
        assert_eq!(during("generic/0010", log), "[4] run fstests generic/0010 at now\n[5] b\n");
        assert_eq!(during("generic/002", log), "");
    }
}
