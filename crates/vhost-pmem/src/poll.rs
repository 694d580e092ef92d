// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking for requests before sleeping, as KVM's `halt_poll_ns` does.
//!
//! A thread that sleeps takes some microseconds to wake up. One that looks again and again takes none,
//! and a processor. So it looks for as long as requests are likely to come: longer when the last ones
//! came soon, shorter when they didn't.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long to look.
#[derive(Debug)]
pub(crate) struct Polling {
    /// Zero where nobody looks.
    most: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    patience: Duration,
    /// When the last requests were answered.
    idle_since: Instant,
}

impl Polling {
    pub(crate) fn new(most: Duration) -> Self {
        let state = State { patience: Duration::ZERO, idle_since: Instant::now() };
        Self { most, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to look now.
    pub(crate) fn patience(&self) -> Duration {
        if self.most.is_zero() { Duration::ZERO } else { self.state().patience }
    }

    /// Requests have come.
    pub(crate) fn came(&self) {
        if !self.most.is_zero() {
            let mut state = self.state();
            state.patience = self.after(state.patience, state.idle_since.elapsed());
        }
    }

    /// They were answered.
    pub(crate) fn answered(&self) {
        if !self.most.is_zero() {
            self.state().idle_since = Instant::now();
        }
    }

    /// How long to look, where it was `patience`, and requests came after being `idle` so long.
    fn after(&self, patience: Duration, idle: Duration) -> Duration {
        let least = self.most / 8;
        if idle <= self.most {
            (patience * 2).clamp(least, self.most)
        } else if patience / 2 > least {
            patience / 2
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_grows_with_requests_that_come_soon_and_ends_without() {
        let polling = Polling::new(Duration::from_micros(80));
        let mut patience = polling.patience();
        assert_eq!(patience, Duration::ZERO);
        let mut after = |idle: u64| {
            patience = polling.after(patience, Duration::from_micros(idle));
            patience.as_micros()
        };
        assert_eq!([80, 1, 1, 1, 1].map(&mut after), [10, 20, 40, 80, 80]);
        assert_eq!([81, 500, 500, 500].map(&mut after), [40, 20, 0, 0]);
        assert_eq!(after(80), 10);
    }

    #[test]
    fn polling_of_nothing_never_looks() {
        let polling = Polling::new(Duration::ZERO);
        for _ in 0..3 {
            polling.came();
            assert_eq!(polling.patience(), Duration::ZERO);
            polling.answered();
        }
    }
}
