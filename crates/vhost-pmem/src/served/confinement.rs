// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Confining the threads of served windows.
//!
//! They are begun while there is still something to be opened and mounted, and are there before
//! the process gives up the rights for that. What Linux takes away it takes from a thread, so each
//! has to give up its own, when it has what it needs.

use std::sync::OnceLock;

/// A thread of a served window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServedThread {
    /// Answers the kernel; it reads, writes and syncs what is open.
    Worker,
    /// Takes and merges snapshots; it opens their COW stores, too.
    Layers,
}

type Confine = dyn Fn(ServedThread) + Send + Sync;

static CONFINE: OnceLock<Box<Confine>> = OnceLock::new();

/// Has `confine` called by each thread of a served window when it needs no more than it is to do
/// for good; threads that it starts then are to be confined by that, too. Called once, before there
/// is a window.
pub fn confine_served_threads(confine: impl Fn(ServedThread) + Send + Sync + 'static) {
    // Whoever comes second would have the first one's threads, too.
    let _ = CONFINE.set(Box::new(confine));
}

/// Confines this thread, if the process wants that.
pub(super) fn confine(thread: ServedThread) {
    if let Some(confine) = CONFINE.get() {
        confine(thread);
    }
}
