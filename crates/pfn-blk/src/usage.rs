// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who uses a store, and how its use ends: what Linux calls a `percpu_ref`, without the per-CPU
//! part.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

/// Set once the store is disabled; the other bits count its users.
const DISABLED: u64 = 1 << 63;

/// Counts users until it is disabled, and lets nobody in after.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    state: AtomicU64,
    /// Taken to wait, and to wake whoever waits: never by users of a store that isn't disabled.
    idle: Mutex<()>,
    changed: Condvar,
}

impl Usage {
    pub(crate) fn is_disabled(&self) -> bool {
        self.state.load(Ordering::Acquire) & DISABLED != 0
    }

    /// Lets a user in. It must [`leave`](Self::leave).
    #[must_use]
    pub(crate) fn enter(&self) -> bool {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        if before & DISABLED != 0 {
            self.leave();
            return false;
        }
        true
    }

    pub(crate) fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::AcqRel) == DISABLED + 1 {
            // Whoever waits holds the lock from its look at the count until it sleeps.
            let _idle = self.lock();
            self.changed.notify_all();
        }
    }

    /// Lets nobody in from now on.
    pub(crate) fn disable(&self) {
        self.state.fetch_or(DISABLED, Ordering::AcqRel);
    }

    /// Waits until nobody is in, or `patience` is at an end: then it returns how many still are.
    pub(crate) fn wait_idle(&self, patience: Duration) -> Result<(), u64> {
        // None for longer than time lasts.
        let deadline = Instant::now().checked_add(patience);
        let mut idle = self.lock();
        loop {
            let users = self.state.load(Ordering::Acquire) & !DISABLED;
            if users == 0 {
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            idle = match left {
                Some(Duration::ZERO) => return Err(users),
                Some(left) => {
                    let waited = self.changed.wait_timeout(idle, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(idle).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;

    /// Users that come and go against one that disables: in every order of their
    /// steps it is woken, and what they share is not used once it is gone.
    fn model(users: usize) {
        let mut model = loom::model::Builder::new();
        // All orders with as many preemptions; more have not been seen to find more.
        model.preemption_bound = Some(3);
        model.check(move || {
            let usage = Arc::new(Usage::default());
            let gone = Arc::new(AtomicBool::new(false));
            let threads: Vec<_> = (0..users)
                .map(|_| {
                    let (usage, gone) = (Arc::clone(&usage), Arc::clone(&gone));
                    thread::spawn(move || {
                        if usage.enter() {
                            assert!(!gone.load(Ordering::Relaxed));
                            usage.leave();
                        }
                    })
                })
                .collect();
            usage.disable();
            usage.wait_idle(Duration::MAX).unwrap();
            gone.store(true, Ordering::Relaxed);
            assert!(!usage.enter());
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn usage_modelled_with_one_user() {
        model(1);
    }

    #[test]
    fn usage_modelled_with_two_users() {
        model(2);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn usage_disabled_lets_nobody_in() {
        let usage = Usage::default();
        assert!(usage.enter());
        usage.disable();
        assert!(!usage.enter());
        assert_eq!(usage.wait_idle(Duration::ZERO), Err(1));
        usage.leave();
        assert_eq!(usage.wait_idle(Duration::ZERO), Ok(()));
        assert!(!usage.enter());
    }

    #[test]
    fn usage_raced_is_idle_only_when_all_have_left() {
        for _ in 0..200 {
            let usage = Usage::default();
            let gone = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while usage.enter() {
                            // What the users share must still be there.
                            assert!(!gone.load(Ordering::SeqCst));
                            usage.leave();
                        }
                    });
                }
                usage.disable();
                usage.wait_idle(Duration::MAX).unwrap();
                gone.store(true, Ordering::SeqCst);
            });
        }
    }
}
