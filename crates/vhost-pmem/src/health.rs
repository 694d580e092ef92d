// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device and its guest get on now, and since when: what a status tells.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Whether a guest has its pages.
#[derive(Debug, Clone)]
pub enum Pages {
    /// Not yet: no guest has activated the device.
    Idle,
    /// All of them.
    Mapped,
    /// None, and every flush fails.
    Unmapped(Trouble),
}

/// What is wrong, and since when.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// What it is, and what to do about it.
    pub reason: Arc<dyn Error + Send + Sync>,
    /// Since when.
    pub since: SystemTime,
}

impl Trouble {
    /// What is wrong now, where `before` was: the same goes on.
    pub(crate) fn new(reason: Arc<dyn Error + Send + Sync>, before: Option<&Self>) -> Self {
        let same = before.filter(|before| before.reason.to_string() == reason.to_string());
        Self { reason, since: same.map_or_else(SystemTime::now, |before| before.since) }
    }
}

/// Why pages are not mapped.
#[derive(Debug)]
struct Unmapped {
    trouble: Trouble,
    /// The guest can't have pages, and its driver, which finds that out, resets the device.
    outlives_reset: bool,
}

/// What is known of the guest. Changed by the thread that answers requests, which takes the lock
/// only when there is something to change.
#[derive(Debug, Default)]
pub(crate) struct Health {
    unmapped: Mutex<Option<Unmapped>>,
    waiting: Mutex<Option<Waiting>>,
    is_waiting: AtomicBool,
}

impl Health {
    /// The guest can't have pages, whatever it does.
    pub(crate) fn refused(&self, reason: impl Error + Send + Sync + 'static) {
        self.set_unmapped(Arc::new(reason), true);
    }

    /// The guest has no pages, until it resets the device.
    pub(crate) fn unmapped(&self, reason: Arc<dyn Error + Send + Sync>) {
        self.set_unmapped(reason, false);
    }

    fn set_unmapped(&self, reason: Arc<dyn Error + Send + Sync>, outlives_reset: bool) {
        let mut unmapped = lock(&self.unmapped);
        let trouble = Trouble::new(reason, unmapped.as_ref().map(|before| &before.trouble));
        *unmapped = Some(Unmapped { trouble, outlives_reset });
    }

    /// The guest may have pages: they were mapped, or nothing is known that speaks against it.
    pub(crate) fn accepted(&self) {
        *lock(&self.unmapped) = None;
    }

    /// The device was reset.
    pub(crate) fn reset(&self) {
        lock(&self.unmapped).take_if(|unmapped| !unmapped.outlives_reset);
        self.set_waiting(None);
    }

    /// Why the guest has no pages, if there is a reason.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        lock(&self.unmapped).as_ref().map(|unmapped| unmapped.trouble.clone())
    }

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
    fn refusal_outlives_a_reset_and_keeps_its_time_and_a_failed_map_does_not() {
        let health = Health::default();
        let reason = || health.trouble().map(|trouble| trouble.reason.to_string());
        health.refused(std::fmt::Error);
        let since = health.trouble().unwrap().since;
        health.reset();
        health.refused(std::fmt::Error);
        assert_eq!(reason(), Some(std::fmt::Error.to_string()));
        assert_eq!(health.trouble().unwrap().since, since);
        health.accepted();
        assert_eq!(reason(), None);
        health.unmapped(Arc::new(std::io::Error::other("map")));
        assert_eq!(reason(), Some("map".to_owned()));
        health.reset();
        assert_eq!(reason(), None);
    }

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
