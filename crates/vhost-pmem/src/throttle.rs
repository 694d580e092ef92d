// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps guests and frontends from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets through a burst of events, then one an interval.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    burst: u32,
    interval: Duration,
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

/// For what a guest can cause.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(10);
/// For frontends that come and go: more, as each is an operator's doing, unless it storms.
const FRONTENDS: (u32, Duration) = (30, Duration::from_secs(2));

impl Throttle {
    pub(crate) fn new() -> Self {
        Self::of((BURST, INTERVAL))
    }

    pub(crate) fn of_frontends() -> Self {
        Self::of(FRONTENDS)
    }

    fn of((burst, interval): (u32, Duration)) -> Self {
        let refilled = Instant::now();
        Self(Mutex::new(State { burst, interval, tokens: burst, refilled, suppressed: 0 }))
    }

    /// Whether an event may be logged now; if so, how many before it were not.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = state.interval;
        while state.tokens < state.burst && now.duration_since(state.refilled) >= interval {
            state.refilled += interval;
            state.tokens += 1;
        }
        if state.tokens == state.burst {
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
