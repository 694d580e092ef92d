// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device and its guest get on now, and since when: what a status tells.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::request::Unanswerable;

/// Requests that stay in the queue, as the first of them can't be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The number of them.
    pub requests: u16,
    /// Why the first one can't be answered.
    pub obstacle: Unanswerable,
    /// Since when.
    pub since: SystemTime,
}

/// What is known of the guest. Changed by the thread that answers requests, which takes the lock
/// only when there is something to change.
#[derive(Debug, Default)]
pub(crate) struct Health {
    waiting: Mutex<Option<Waiting>>,
    is_waiting: AtomicBool,
}

impl Health {
    /// Records how many requests wait, and for what. Returns the obstacle if it wasn't known.
    pub(crate) fn set_waiting(&self, now: Option<(Unanswerable, u16)>) -> Option<Unanswerable> {
        if now.is_none() && !self.is_waiting.load(Ordering::SeqCst) {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        let before = waiting.take();
        *waiting = now.map(|(obstacle, requests)| {
            let same = before.filter(|before| before.obstacle == obstacle);
            let since = same.map_or_else(SystemTime::now, |before| before.since);
            Waiting { requests, obstacle, since }
        });
        self.is_waiting.store(waiting.is_some(), Ordering::SeqCst);
        let known = before.map(|before| before.obstacle);
        now.map(|(obstacle, _)| obstacle).filter(|obstacle| Some(*obstacle) != known)
    }

    pub(crate) fn waiting(&self) -> Option<Waiting> {
        *lock(&self.waiting)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_news_once_and_keeps_its_time_while_more_requests_come() {
        let health = Health::default();
        let unshared = |requests| Some((Unanswerable::Unshared, requests));
        assert_eq!(health.set_waiting(None), None);
        assert_eq!(health.set_waiting(unshared(1)), Some(Unanswerable::Unshared));
        let first = health.waiting().unwrap();
        assert_eq!(health.set_waiting(unshared(2)), None);
        assert_eq!(health.waiting().unwrap(), Waiting { requests: 2, ..first });
        let other = Some((Unanswerable::NoRoom, 2));
        assert_eq!(health.set_waiting(other), Some(Unanswerable::NoRoom));
        assert_eq!(health.set_waiting(None), None);
        assert_eq!(health.waiting(), None);
        assert_eq!(health.set_waiting(unshared(1)), Some(Unanswerable::Unshared));
    }
}
