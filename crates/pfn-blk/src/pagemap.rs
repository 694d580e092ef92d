// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store with its run of pfns.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::extent::Extent;
use crate::page::{NrPages, Pfn, PfnRange, Pgoff, PgoffRange};
use crate::persist::{PersistError, SyncSet};
use crate::store::{Access, Store};
use crate::target::Target;

/// A store and the run of pfns that names its pages, as Linux's `dev_pagemap` ties a device to
/// page frames. Made by [`PfnSpace::add`](crate::PfnSpace::add); the leaf of every stack.
pub struct Pagemap {
    pfns: PfnRange,
    store: Box<dyn Store>,
    /// The first failed sync. Held while syncing: of two syncs at once the kernel reports a
    /// failed write to one only, and the other must not succeed.
    failed: Mutex<Option<Arc<io::Error>>>,
}

impl Pagemap {
    pub(crate) fn new(pfns: PfnRange, store: Box<dyn Store>) -> Self {
        Self { pfns, store, failed: Mutex::new(None) }
    }

    /// The pfns of the store's pages, in order.
    pub fn pfns(&self) -> PfnRange {
        self.pfns
    }

    /// The store.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Where in the store `pfn` lies, if it is one of the store's.
    pub fn pgoff(&self, pfn: Pfn) -> Option<Pgoff> {
        let page = PfnRange::try_new(pfn, NrPages::ONE).ok()?;
        let page = self.pfns.covers(page).then_some(page)?;
        Some(page.rebase(self.pfns.start(), Pgoff::ZERO)?.start())
    }

    /// Makes everything written to the store so far durable.
    ///
    /// A failure is final: Linux marks pages clean after it failed to write them, so a later sync
    /// would succeed without them. Every later call returns [`PersistError::Failed`].
    pub fn persist(&self) -> Result<(), PersistError> {
        if self.store.access() == Access::ReadOnly {
            return Ok(());
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let store = || self.store.name().to_owned();
        if let Some(source) = &*failed {
            return Err(PersistError::Failed { store: store(), source: Arc::clone(source) });
        }
        self.store.persist().map_err(|error| {
            let source = Arc::new(error);
            *failed = Some(Arc::clone(&source));
            PersistError::Sync { store: store(), source }
        })
    }
}

impl Target for Pagemap {
    fn nr_pages(&self) -> NrPages {
        self.pfns.nr_pages()
    }

    fn direct_access(&self, pages: PgoffRange) -> Extent<'_> {
        let pfns = pages
            .rebase(Pgoff::ZERO, self.pfns.start())
            .expect("a target is asked for its own pages only");
        Extent::new(pfns, self)
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        syncs.add(self);
    }
}

impl fmt::Debug for Pagemap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.store.name(), self.pfns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryStore;

    #[test]
    fn persist_after_failure_stays_failed() {
        let (store, control) = MemoryStore::new("leg", 4);
        let mut space = crate::PfnSpace::new();
        let pagemap = space.add(Box::new(store)).unwrap();
        pagemap.persist().unwrap();
        control.fail_next_sync();
        assert!(matches!(pagemap.persist(), Err(PersistError::Sync { .. })));
        // The store would succeed now; the pagemap doesn't ask it any more.
        assert!(matches!(pagemap.persist(), Err(PersistError::Failed { .. })));
        assert_eq!(control.syncs(), 2);
    }

    #[test]
    fn pgoff_of_foreign_pfn_is_none() {
        let mut space = crate::PfnSpace::new();
        let first = space.add(Box::new(MemoryStore::new("a", 4).0)).unwrap();
        let second = space.add(Box::new(MemoryStore::new("b", 2).0)).unwrap();
        assert_eq!(first.pgoff(first.pfns().start()), Some(Pgoff::ZERO));
        assert_eq!(first.pgoff(second.pfns().start()), None);
        assert_eq!(second.pgoff(first.pfns().start()), None);
    }
}
