// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event that ends a connection's queue thread.
#![allow(unsafe_code, reason = "vhost-user-backend gives up an fd that must be closed")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// Makes the event, and closes it in the end: vhost-user-backend 0.24 turns the consumer into a
/// bare number and forgets it, so that each connection would leak an fd.
pub(crate) struct ExitEvent {
    ready: Mutex<Option<(EventConsumer, EventNotifier)>>,
    consumer: RawFd,
}

impl ExitEvent {
    pub(crate) fn new() -> io::Result<Self> {
        let (consumer, notifier) =
            new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        let raw = consumer.as_raw_fd();
        Ok(Self { ready: Mutex::new(Some((consumer, notifier))), consumer: raw })
    }

    /// The event, for the one queue thread; nothing from then on.
    pub(crate) fn hand_out(&self) -> Option<(EventConsumer, EventNotifier)> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for ExitEvent {
    fn drop(&mut self) {
        if self.ready.get_mut().unwrap_or_else(PoisonError::into_inner).is_none() {
            // SAFETY: `from_raw_fd` wants an open fd that nobody else owns. The event was handed
            // out, to `VringEpollHandler::new`, which released the fd with `into_raw_fd`, added it
            // to an epoll set and closes it nowhere. The handler holds the connection that holds
            // this, so the handler and its set are gone by now.
            drop(unsafe { OwnedFd::from_raw_fd(self.consumer) });
        }
    }
}
