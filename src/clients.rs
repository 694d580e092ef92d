// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients of a socket that any number of processes may connect to: a bounded number is answered at
//! once, each in a thread of its own. A new client evicts the oldest that is idle.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Maximum connected clients.
const CLIENTS_MAX: usize = 16;
/// Maximum threads: more than clients, where one waits for a device that hangs.
const THREADS_MAX: usize = 64;
/// How long a client waits for a thread: that of a client that was evicted ends at once.
const THREAD_WAIT: Duration = Duration::from_secs(1);

/// A connection that can be closed by another thread than the one that waits for it.
pub(crate) trait HangUp: Send + Sync + 'static {
    /// Has whoever waits for the client, or for it to read, find the connection closed.
    fn hang_up(&self);
}

/// Those that are being answered.
pub(crate) struct Clients<S> {
    held: Mutex<Held<S>>,
    thread_ended: Condvar,
}

struct Held<S> {
    next: u64,
    threads: usize,
    /// Those that may be evicted, the oldest at the front.
    idle: VecDeque<(u64, Arc<S>)>,
}

impl<S: HangUp> Clients<S> {
    pub(crate) fn new() -> Arc<Self> {
        let held = Held { next: 0, threads: 0, idle: VecDeque::new() };
        Arc::new(Self { held: Mutex::new(held), thread_ended: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Held<S>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a client that has come; none if those before hold all threads.
    pub(crate) fn admit(self: &Arc<Self>, stream: S) -> Option<Client<S>> {
        let mut held = self.lock();
        if held.idle.len() >= CLIENTS_MAX {
            if let Some((_, oldest)) = held.idle.pop_front() {
                oldest.hang_up();
            }
        }
        let (mut held, waited) = self
            .thread_ended
            .wait_timeout_while(held, THREAD_WAIT, |held| held.threads >= THREADS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        let (number, stream) = (held.next, Arc::new(stream));
        held.next += 1;
        held.threads += 1;
        held.idle.push_back((number, Arc::clone(&stream)));
        Some(Client { all: Arc::clone(self), number, stream })
    }
}

/// One of them, until it is dropped.
pub(crate) struct Client<S: HangUp> {
    all: Arc<Clients<S>>,
    number: u64,
    stream: Arc<S>,
}

impl<S: HangUp> Client<S> {
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// What it asked for is being done: it isn't evicted any more.
    pub(crate) fn is_busy(&self) {
        self.forget(&mut self.all.lock());
    }

    fn forget(&self, held: &mut Held<S>) {
        held.idle.retain(|(number, _)| *number != self.number);
    }
}

impl<S: HangUp> Drop for Client<S> {
    fn drop(&mut self) {
        let mut held = self.all.lock();
        self.forget(&mut held);
        held.threads -= 1;
        self.all.thread_ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Stream(AtomicBool);

    impl HangUp for Stream {
        fn hang_up(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn is_evicted(client: &Client<Stream>) -> bool {
        client.stream().0.load(Ordering::SeqCst)
    }

    #[test]
    fn client_that_is_one_too_many_evicts_the_oldest_idle_one() {
        let all = Clients::new();
        let mut clients: Vec<_> =
            (0..CLIENTS_MAX).map(|_| all.admit(Stream::default()).unwrap()).collect();
        clients[0].is_busy();
        // There is room for one, as the first is busy; then the second is the oldest.
        clients.extend((0..2).map(|_| all.admit(Stream::default()).unwrap()));
        let evicted: Vec<_> = clients.iter().map(is_evicted).collect();
        assert_eq!(evicted.iter().position(|is| *is), Some(1));
        assert_eq!(evicted.iter().filter(|is| **is).count(), 1);
    }

    #[test]
    fn client_is_refused_while_others_hold_all_threads() {
        let all = Clients::new();
        let mut clients: Vec<_> =
            (0..THREADS_MAX).map(|_| all.admit(Stream::default()).unwrap()).collect();
        assert!(all.admit(Stream::default()).is_none());
        clients.pop();
        assert!(all.admit(Stream::default()).is_some());
    }
}
