// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon holds while nobody is connected.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use guest_harness::Daemon;

/// By how much a daemon's memory may grow: an overlay's index grows with what was changed.
const GROWTH_KIB_MAX: u64 = 4096;

/// How long what a daemon holds may take to settle.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    fds: usize,
    threads: usize,
    kib: u64,
}

impl Held {
    /// What `daemon` holds, once it waits for the next frontend: the threads of that are there already.
    pub(crate) fn by(daemon: &Daemon) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let mut last = Self::now(daemon);
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let held = Self::now(daemon);
            if held == last || Instant::now() > deadline {
                return held;
            }
            last = held;
        }
    }

    fn now(daemon: &Daemon) -> Self {
        let count =
            |what: &str| fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
        Self { fds: count("fd"), threads: count("task"), kib: daemon.anonymous_kib().unwrap() }
    }

    /// Whether one that held `self` once has leaked nothing, if it holds `last` now.
    pub(crate) fn is_kept_by(&self, last: &Self) -> bool {
        last.fds <= self.fds
            && last.threads <= self.threads
            && last.kib <= self.kib + GROWTH_KIB_MAX
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} fds, {} threads, {} KiB", self.fds, self.threads, self.kib)
    }
}
