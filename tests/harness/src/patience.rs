// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Time limits that suit the machine.
//!
//! A limit tells a hang from slow progress, so it depends on what the machine gives: on an overloaded
//! host, or on an emulated CPU, everything takes a multiple of its time. Limits are written for a quiet
//! machine, and [`patience`] multiplies them by a factor that is measured once for each process.

use std::hint::black_box;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long [`work`] takes on a quiet machine with two CPUs.
const QUIET: Duration = Duration::from_millis(80);

/// A guest, its VMM and the daemon want two CPUs; where only one is free, they share it.
const THREADS: usize = 2;

/// How long to wait here for what takes less than `limit` on a quiet machine: never less than that.
///
/// The first call takes as long as the measurement does, 0.1 s on a quiet machine.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    limit.mul_f64(*FACTOR.get_or_init(|| factor(measure())))
}

/// By how much limits are extended where the fixed work took `took`.
fn factor(took: Duration) -> f64 {
    (took.as_secs_f64() / QUIET.as_secs_f64()).max(1.0)
}

/// Times the fixed work.
fn measure() -> Duration {
    let began = Instant::now();
    thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
    began.elapsed()
}

/// Checks text for being UTF-8: the standard library is optimised in every build, so this takes as long
/// in a debug build. Long enough for a scheduler, or a quota of each 100 ms, to show in it.
fn work() {
    let text = "zwölf Boxkämpfer – jagen Viktor ✓ ".repeat(2000);
    for _ in 0..3000 {
        black_box(std::str::from_utf8(black_box(text.as_bytes())).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn machine_ten_times_slower_gets_ten_times_the_limit() {
        assert!((factor(10 * QUIET) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn machine_that_is_fast_gets_the_limit_and_no_less() {
        assert!((factor(QUIET / 10) - 1.0).abs() < f64::EPSILON);
        assert!(patience(LIMIT) >= LIMIT);
    }

    #[test]
    fn limit_stays_what_it_was_at_first() {
        assert_eq!(patience(LIMIT), patience(LIMIT));
    }

    #[test]
    fn work_is_not_optimised_away() {
        assert!(measure() > QUIET / 20);
    }
}
