// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often a guest may have the host's disks synced.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket, of a token for each sync: so many a second, a tenth of them at once. Requests that
/// come while there is none are answered together, by the next sync.
#[derive(Debug)]
pub(crate) struct Limit {
    /// Between two, in the long run.
    interval: Duration,
    /// How far ahead of that a guest may be.
    ahead: Duration,
    /// When the next one is due.
    due: Mutex<Instant>,
}

impl Limit {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        let ahead = interval * (per_second.get() / 10).saturating_sub(1);
        Self { interval, ahead, due: Mutex::new(Instant::now()) }
    }

    /// How long it is until there is a token.
    pub(crate) fn wait(&self) -> Duration {
        self.wait_at(Instant::now())
    }

    fn wait_at(&self, now: Instant) -> Duration {
        self.due().saturating_duration_since(now).saturating_sub(self.ahead)
    }

    /// Takes a token.
    pub(crate) fn take(&self) {
        self.take_at(Instant::now());
    }

    fn take_at(&self, now: Instant) {
        let mut due = self.due();
        *due = (*due).max(now) + self.interval;
    }

    fn due(&self) -> MutexGuard<'_, Instant> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long each of `count` that come at once waits.
    fn waits(limit: &Limit, count: usize, now: Instant) -> Vec<u128> {
        let wait = |_| {
            let wait = limit.wait_at(now);
            limit.take_at(now);
            wait.as_millis()
        };
        (0..count).map(wait).collect()
    }

    #[test]
    fn limit_lets_a_tenth_through_at_once_and_then_one_an_interval() {
        let limit = Limit::new(NonZeroU32::new(100).unwrap());
        let start = Instant::now() + Duration::from_secs(1);
        assert_eq!(waits(&limit, 13, start), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 20, 30]);
        assert_eq!(limit.wait_at(start + Duration::from_secs(9)), Duration::ZERO);
    }

    #[test]
    fn limit_of_few_a_second_lets_them_through_one_by_one() {
        let limit = Limit::new(NonZeroU32::new(2).unwrap());
        let start = Instant::now() + Duration::from_secs(1);
        assert_eq!(waits(&limit, 3, start), [0, 500, 1000]);
    }
}
