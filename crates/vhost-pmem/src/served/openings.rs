// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who has the window's file open.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::FileHandle;

/// The handle of the opening that the device syncs by.
const OURS: FileHandle = FileHandle(1);
/// The handle of all others: a VMM's, or those that frontends are given.
const OTHERS: FileHandle = FileHandle(0);

/// The openings of the window's file.
#[derive(Debug, Default)]
pub(super) struct Openings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    count: usize,
    /// The thread that opens the file to sync it.
    syncer: Option<u32>,
}

impl Openings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread `syncer` is about to open the file to sync it by.
    pub(super) fn expect(&self, syncer: u32) {
        self.state().syncer = Some(syncer);
    }

    /// It has.
    pub(super) fn expect_none(&self) {
        self.state().syncer = None;
    }

    /// The file was opened by the thread `by`.
    pub(super) fn opened(&self, by: u32) -> FileHandle {
        let mut state = self.state();
        state.count += 1;
        // Another process may open a published window before we do.
        if state.syncer == Some(by) { OURS } else { OTHERS }
    }

    /// An opening was closed, and all that was mapped through it unmapped.
    pub(super) fn released(&self) {
        self.state().count -= 1;
    }

    /// The number of openings.
    pub(super) fn count(&self) -> usize {
        self.state().count
    }
}

/// Whether `handle` is of the opening that the device syncs by.
pub(super) fn is_ours(handle: FileHandle) -> bool {
    handle == OURS
}
