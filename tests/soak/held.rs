// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon holds while nobody is connected.

use std::time::{Duration, Instant};

use guest_harness::{Daemon, Held, patience};

/// By how much a daemon's memory may grow: an overlay's index grows with what was changed.
const GROWTH_KIB_MAX: u64 = 4096;

/// How long what a daemon holds may take to settle.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `daemon` holds, once it waits for the next frontend: the threads of that are there already.
pub(crate) fn settled(daemon: &Daemon) -> Held {
    let deadline = Instant::now() + patience(PATIENCE);
    let mut last = daemon.held().unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let held = daemon.held().unwrap();
        if held == last || Instant::now() > deadline {
            return held;
        }
        last = held;
    }
}

/// Whether one that held `first` once has leaked nothing, if it holds `last` now.
pub(crate) fn leaks_nothing(first: &Held, last: &Held) -> bool {
    last.fds <= first.fds && last.threads <= first.threads && last.kib <= first.kib + GROWTH_KIB_MAX
}
