// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process holds, told without the right to look into it: a confined daemon's is root's alone.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its file descriptors.
    pub fds: usize,
    /// Its threads.
    pub threads: usize,
    /// Its own resident memory in KiB, without what it shares with the executable's file: how much of
    /// that is there depends on the page cache.
    pub kib: u64,
}

impl Held {
    /// What the process `pid` holds.
    ///
    /// # Errors
    ///
    /// When it has ended, or Linux doesn't tell.
    pub fn by(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = own.and_then(|own| own.trim().strip_suffix(" kB"));
        let kib = kib.with_context(|| format!("process {pid} has ended"))?.parse()?;
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
        Ok(Self { fds: fds(pid)?, threads, kib })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} fds, {} threads, {} KiB", self.fds, self.threads, self.kib)
    }
}

/// How many file descriptors the process `pid` has.
///
/// # Errors
///
/// When it has ended, or Linux doesn't tell: before 6.2 it takes the right to look into the process.
pub fn fds(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    match fs::metadata(&path)?.len() {
        0 => Ok(fs::read_dir(path)?.count()),
        count => Ok(count.try_into()?),
    }
}
