// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps a guest from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets through a burst of events, then one an interval.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(10);

impl Throttle {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State { tokens: BURST, refilled: Instant::now(), suppressed: 0 }))
    }

    /// Whether an event may be logged now; if so, how many before it were not.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.tokens < BURST && now.duration_since(state.refilled) >= INTERVAL {
            state.refilled += INTERVAL;
            state.tokens += 1;
        }
        if state.tokens == BURST {
            state.refilled = now;
        }
        if state.tokens == 0 {
            state.suppressed += 1;
            return None;
        }
        state.tokens -= 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_flooded_admits_a_burst_then_one_an_interval() {
        let throttle = Throttle::new();
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| throttle.admit_at(start).is_some()).count();
        assert_eq!(admitted, BURST as usize);
        assert_eq!(throttle.admit_at(start + INTERVAL), Some(1000 - u64::from(BURST)));
        assert_eq!(throttle.admit_at(start + INTERVAL), None);
        assert_eq!(throttle.admit_at(start + 100 * INTERVAL), Some(1));
    }
}
