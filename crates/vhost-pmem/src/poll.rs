// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking for requests before sleeping, as KVM's `halt_poll_ns` does.
//!
//! A thread that sleeps takes some microseconds to wake up. One that looks again and again takes none,
//! and a processor. So it looks for as long as requests are likely to come: longer when the last ones
//! came soon, shorter when they didn't.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long to look. Its numbers are the queue thread's alone.
#[derive(Debug)]
pub(crate) struct Polling {
    /// In nanoseconds; 0 where nobody looks.
    most: u64,
    now: AtomicU64,
}

impl Polling {
    pub(crate) fn new(most: Duration) -> Self {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Self { most, now: AtomicU64::new(0) }
    }

    /// How long to look now.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::Relaxed))
    }

    /// Requests have come, after so long without any.
    pub(crate) fn came_after(&self, idle: Duration) {
        let now = self.now.load(Ordering::Relaxed);
        let least = self.most / 8;
        let next = if idle.as_nanos() <= u128::from(self.most) {
            (now * 2).clamp(least, self.most)
        } else if now / 2 > least {
            now / 2
        } else {
            0
        };
        self.now.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_grows_with_requests_that_come_soon_and_ends_without() {
        let polling = Polling::new(Duration::from_micros(80));
        let after = |idle: u64| {
            polling.came_after(Duration::from_micros(idle));
            polling.patience().as_micros()
        };
        assert_eq!(polling.patience(), Duration::ZERO);
        assert_eq!([80, 1, 1, 1, 1].map(after), [10, 20, 40, 80, 80]);
        assert_eq!([81, 500, 500, 500].map(after), [40, 20, 0, 0]);
        assert_eq!(after(80), 10);
    }

    #[test]
    fn polling_of_nothing_never_looks() {
        let polling = Polling::new(Duration::ZERO);
        for idle in [0, 1, 1000] {
            polling.came_after(Duration::from_nanos(idle));
            assert_eq!(polling.patience(), Duration::ZERO);
        }
    }
}
