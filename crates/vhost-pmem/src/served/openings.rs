// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who has the window's file open.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::FileHandle;

/// The handle of the opening that the device syncs by.
const OURS: FileHandle = FileHandle(1);
/// The handle of all others: a VMM's, or those that frontends are given.
const OTHERS: FileHandle = FileHandle(0);

/// The openings of the window's file. One lasts until all its fds are closed and all that was mapped
/// through it is unmapped, in whichever process.
#[derive(Debug, Default)]
pub(super) struct Openings {
    state: Mutex<State>,
    /// Notified when there are fewer.
    fewer: Condvar,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    /// The thread that opens the file to sync it.
    syncer: Option<u32>,
    /// Whether there may be no further ones now.
    closed: bool,
}

impl Openings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread `syncer` is about to open the file to sync it by.
    pub(super) fn expect(&self, syncer: u32) {
        self.state().syncer = Some(syncer);
    }

    /// It has.
    pub(super) fn expect_none(&self) {
        self.state().syncer = None;
    }

    /// The file is opened by the thread `by`; nothing if it may not be now.
    pub(super) fn opened(&self, by: u32) -> Option<FileHandle> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        state.count += 1;
        // Another process may open a published window before we do.
        Some(if state.syncer == Some(by) { OURS } else { OTHERS })
    }

    /// An opening has ended.
    pub(super) fn released(&self) {
        self.state().count -= 1;
        self.fewer.notify_all();
    }

    /// Waits for at most `patience` until there are no more than `allowed`: the kernel tells of an
    /// end in its own time.
    pub(super) fn wait(&self, allowed: usize, patience: Duration) {
        let more = |state: &mut State| state.count > allowed;
        drop(self.fewer.wait_timeout_while(self.state(), patience, more));
    }

    /// Allows no further ones for as long as what this returns lives; nothing if there are more than
    /// `allowed`.
    pub(super) fn close(&self, allowed: usize) -> Option<Closed<'_>> {
        let mut state = self.state();
        state.closed = state.count <= allowed;
        let closed = state.closed;
        drop(state);
        closed.then(|| Closed(self))
    }
}

/// Lets no one open the file.
pub(super) struct Closed<'a>(&'a Openings);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state().closed = false;
    }
}

/// Whether `handle` is of the opening that the device syncs by.
pub(super) fn is_ours(handle: FileHandle) -> bool {
    handle == OURS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_of_the_syncing_thread_is_told_from_others() {
        let openings = Openings::default();
        let before = openings.opened(8).unwrap();
        openings.expect(7);
        let meanwhile = openings.opened(8).unwrap();
        let ours = openings.opened(7).unwrap();
        openings.expect_none();
        let after = openings.opened(7).unwrap();
        assert_eq!([before, meanwhile, ours, after].map(is_ours), [false, false, true, false]);
    }

    #[test]
    fn file_is_closed_to_all_once_few_enough_have_it_open() {
        let openings = Openings::default();
        assert!((0..3).all(|_| openings.opened(1).is_some()));
        openings.wait(2, Duration::ZERO);
        assert!(openings.close(2).is_none());
        openings.opened(1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2).for_each(|_| openings.released()));
            openings.wait(2, Duration::MAX);
            let closed = openings.close(2).unwrap();
            assert!(openings.opened(1).is_none());
            drop(closed);
        });
        openings.opened(1).unwrap();
    }
}
