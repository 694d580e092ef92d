// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The window's syncs, and its memory of what failed.
//!
//! When a page can't be written back, the kernel marks it clean, and tells each process that has the
//! file open once. One that asks again, or opens the file later, would be told of success. So the
//! window itself remembers: from the first such failure on every FSYNC fails, of every opening, until
//! an operator clears it.
//!
//! A write(2) that fails isn't remembered: its caller is told.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use pfn_blk::PersistError;
use tracing::error;

use super::NAME;
use super::layers::{Failure, Layers};
use crate::counters::Counters;

/// Syncs the region, for whichever opening of the window's file.
pub(super) struct Syncs {
    layers: Arc<Layers>,
    counters: Arc<Counters>,
    failed: Mutex<Option<Failed>>,
}

/// The first failure.
struct Failed {
    since: SystemTime,
    cause: Arc<io::Error>,
    /// Whether a sync has failed because of it: the first one counts as a sync error.
    is_told: bool,
}

impl Syncs {
    pub(super) fn new(layers: Arc<Layers>, counters: Arc<Counters>) -> Self {
        Self { layers, counters, failed: Mutex::default() }
    }

    fn failed(&self) -> MutexGuard<'_, Option<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that pages could not be written back, unless something failed before.
    pub(super) fn writeback_failed(&self, cause: &(dyn Error + 'static)) {
        if self.remember(cause, false) {
            error!(
                cause,
                "cannot write back pages of the served window; all further flushes will fail, since \
                 the kernel has dropped what it could not write; repair the storage, stop the guest, \
                 then restart the daemon or run clear-failure"
            );
        }
    }

    /// Whether this is the first failure.
    fn remember(&self, cause: &(dyn Error + 'static), is_told: bool) -> bool {
        let mut failed = self.failed();
        let is_first = failed.is_none();
        if is_first {
            let cause = Arc::new(io::Error::other(chain(cause)));
            *failed = Some(Failed { since: SystemTime::now(), cause, is_told });
        }
        is_first
    }

    /// Syncs for the device, which counts that itself.
    pub(super) fn sync_ours(&self) -> Result<(), PersistError> {
        self.refusal().map_or(Ok(()), Err)?;
        if let Err(cause) = self.layers.persist() {
            // The store remembers these itself.
            let is_old = matches!(cause, PersistError::Failed { .. } | PersistError::Disabled(_));
            if !is_old && self.remember(&cause, true) {
                error!(cause = &cause as &dyn Error, "cannot sync the served window");
            }
            return Err(cause);
        }
        // A writeback may have failed during the sync.
        self.refusal().map_or(Ok(()), Err)
    }

    /// Syncs for another process: its fsync is a guest's flush.
    pub(super) fn sync_for_others(&self) -> Result<(), PersistError> {
        let began = Instant::now();
        let result = self.sync_ours();
        self.counters.sync(began.elapsed(), &result);
        self.counters.flush(result.is_ok());
        result
    }

    /// Why a sync must fail.
    fn refusal(&self) -> Option<PersistError> {
        let mut failed = self.failed();
        let Failed { cause, is_told, .. } = failed.as_mut()?;
        let (store, source) = (NAME.to_owned(), Arc::clone(cause));
        Some(match std::mem::replace(is_told, true) {
            true => PersistError::Failed { store, source },
            false => PersistError::Sync { store, source },
        })
    }

    /// What failed, if anything did.
    pub(super) fn failure(&self) -> Option<Failure> {
        let failed = self.failed();
        let Failed { since, cause, .. } = failed.as_ref()?;
        Some(Failure { store: NAME.to_owned(), reason: cause.to_string(), since: *since })
    }

    /// Forgets what failed. Whether anything had.
    pub(super) fn forget(&self) -> bool {
        self.failed().take().is_some()
    }
}

/// An error with its sources, in a line.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use pfn_blk::{HookedStore, MemoryStore, NrPages, Pagemap, PfnSpace, Region, StoreOperation};

    use super::*;

    /// Syncs of a store that fails while the flag is set.
    fn syncs(failing: &Arc<AtomicBool>) -> (Syncs, Arc<Pagemap>) {
        let store = MemoryStore::new("store", NrPages::ONE).unwrap();
        let failing = Arc::clone(failing);
        let store = HookedStore::new(store, move |operation| match operation {
            StoreOperation::Persist if failing.load(Ordering::SeqCst) => {
                Err(io::Error::other("injected"))
            }
            _ => Ok(()),
        });
        let pagemap = PfnSpace::new().add(Box::new(store)).unwrap();
        let region = Region::try_new(Arc::clone(&pagemap) as _).unwrap();
        let layers = Arc::new(Layers::new(Arc::new(region)));
        (Syncs::new(layers, Arc::new(Counters::new())), pagemap)
    }

    /// Not everything beneath a window remembers for itself, and what does may have been cleared.
    #[test]
    fn sync_that_failed_is_remembered_when_what_failed_is_well_again() {
        let failing = Arc::new(AtomicBool::new(true));
        let (syncs, store) = syncs(&failing);
        assert!(matches!(syncs.sync_for_others(), Err(PersistError::Sync { .. })));
        failing.store(false, Ordering::SeqCst);
        assert!(store.clear_failure().unwrap());
        syncs.sync_for_others().unwrap_err();
        syncs.sync_ours().unwrap_err();
        assert_eq!(syncs.failure().unwrap().reason, "cannot sync store: injected");
        assert!(syncs.forget() && !syncs.forget());
        syncs.sync_for_others().unwrap();
        syncs.sync_ours().unwrap();
        let counts = syncs.counters.read();
        let flushes = (counts.flushes_done, counts.flushes_failed);
        assert_eq!((flushes, counts.sync_errors), ((1, 2), 1));
    }

    #[test]
    fn first_failure_is_the_one_that_is_told() {
        let (syncs, _store) = syncs(&Arc::default());
        syncs.sync_ours().unwrap();
        syncs.writeback_failed(&io::Error::other("one"));
        syncs.writeback_failed(&io::Error::other("other"));
        assert!(matches!(syncs.sync_for_others(), Err(PersistError::Sync { .. })));
        assert!(matches!(syncs.sync_for_others(), Err(PersistError::Failed { .. })));
        assert_eq!(syncs.failure().unwrap().reason, "one");
        assert_eq!(syncs.counters.read().sync_errors, 1);
    }
}
