// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store with its run of pfns.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use crate::bio::{BioError, BioVec, Buffer};
use crate::claim::Claims;
use crate::extent::{Extent, NotDirect};
use crate::lease::{Revokers, StoreDisabled};
use crate::lock::lock;
use crate::page::{NrPages, Pfn, PfnRange, Pgoff, PgoffRange};
use crate::persist::{PersistError, SyncPoint, SyncSet};
use crate::store::{Access, Store};
use crate::target::{Holder, Target};
use crate::usage::Usage;

/// A store and the run of pfns that names its pages, as Linux's `dev_pagemap` ties a device to
/// page frames. Made by [`PfnSpace::add`](crate::PfnSpace::add); the leaf of every stack.
pub struct Pagemap {
    this: Weak<Self>,
    pfns: PfnRange,
    store: Box<dyn Store>,
    /// Leases and I/O under way.
    usage: Usage,
    revokers: Revokers,
    claims: Claims,
    /// Held while syncing: of two syncs at once the kernel reports a failed write to one only, and
    /// the other must not succeed.
    syncing: Mutex<()>,
    /// Never held while syncing: a status is told while a disk hangs.
    syncs: Mutex<Syncs>,
}

/// What is known of a store's syncs. Changed by the one that syncs.
#[derive(Debug, Default)]
struct Syncs {
    /// The first one that failed.
    failed: Option<Failed>,
    /// When the one that is running began.
    since: Option<SystemTime>,
    /// The store is read-only, and all of it is durable.
    all: bool,
}

#[derive(Debug)]
struct Failed {
    error: Arc<io::Error>,
    at: SystemTime,
}

/// A use of the store, also of one that panics.
struct Using<'a>(&'a Usage);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Pagemap {
    pub(crate) fn new(pfns: PfnRange, store: Box<dyn Store>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            pfns,
            store,
            usage: Usage::default(),
            revokers: Revokers::default(),
            claims: Claims::default(),
            syncing: Mutex::default(),
            syncs: Mutex::default(),
        })
    }

    pub(crate) fn to_arc(&self) -> Arc<Self> {
        self.this.upgrade().expect("a pagemap lives in an Arc")
    }

    pub(crate) fn revokers(&self) -> &Revokers {
        &self.revokers
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.usage.is_disabled()
    }

    fn disabled(&self) -> StoreDisabled {
        StoreDisabled { store: self.store.name().to_owned() }
    }

    /// Begins a use of the store, which ends with what this returns.
    fn enter(&self) -> Result<Using<'_>, StoreDisabled> {
        if self.usage.enter() { Ok(Using(&self.usage)) } else { Err(self.disabled()) }
    }

    /// Begins a use of the store, which ends with [`release`](Self::release).
    pub(crate) fn hold(&self) -> Result<(), StoreDisabled> {
        self.enter().map(std::mem::forget)
    }

    /// Ends a use that began with [`hold`](Self::hold).
    pub(crate) fn release(&self) {
        drop(Using(&self.usage));
    }

    /// Ends every use of the store; see [`PfnSpace::disable`](crate::PfnSpace::disable).
    pub(crate) fn disable(&self, patience: Duration) -> Result<(), u64> {
        self.usage.disable();
        self.revokers.revoke_all();
        self.usage.wait_idle(patience)
    }

    /// The pfns of the store's pages, in order.
    pub fn pfns(&self) -> PfnRange {
        self.pfns
    }

    /// The store.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The pfns of some of the store's own pages.
    pub(crate) fn pfns_of(&self, pages: PgoffRange) -> PfnRange {
        pages
            .rebase(Pgoff::ZERO, self.pfns.start())
            .filter(|pfns| self.pfns.covers(*pfns))
            .expect("a store is asked for its own pages only")
    }

    /// Where in the store `pfn` lies, if it is one of the store's.
    pub fn pgoff(&self, pfn: Pfn) -> Option<Pgoff> {
        let page = PfnRange::try_new(pfn, NrPages::ONE).ok()?;
        let page = self.pfns.covers(page).then_some(page)?;
        Some(page.rebase(self.pfns.start(), Pgoff::ZERO)?.start())
    }

    /// Makes everything written to the store so far durable.
    ///
    /// A failure stays: Linux marks pages clean after it failed to write them, so a later sync would
    /// succeed without them. Every later call returns [`PersistError::Failed`], until an operator
    /// [takes it back](Self::clear_failure).
    ///
    /// A read-only store is synced once. Another process may have written to it before it was
    /// opened, and what relies on its content must not outlive it; later no one can write.
    pub fn persist(&self) -> Result<(), PersistError> {
        let _using = self.enter()?;
        let _syncing = lock(&self.syncing);
        let store = || self.store.name().to_owned();
        {
            let syncs = lock(&self.syncs);
            if let Some(Failed { error, .. }) = &syncs.failed {
                return Err(PersistError::Failed { store: store(), source: Arc::clone(error) });
            }
            if syncs.all {
                return Ok(());
            }
        }
        let done = self.sync_store();
        // Before another one can begin.
        let mut syncs = lock(&self.syncs);
        done.map_err(|error| {
            let error = Arc::new(error);
            syncs.failed = Some(Failed { error: Arc::clone(&error), at: SystemTime::now() });
            PersistError::Sync { store: store(), source: error }
        })?;
        syncs.all = self.store.access() == Access::ReadOnly;
        Ok(())
    }

    /// Syncs the store, and lets others know since when.
    fn sync_store(&self) -> io::Result<()> {
        lock(&self.syncs).since = Some(SystemTime::now());
        let done = self.store.persist();
        lock(&self.syncs).since = None;
        done
    }

    /// When the sync began that is running, if one is. Doesn't wait for it.
    pub fn syncing_since(&self) -> Option<SystemTime> {
        lock(&self.syncs).since
    }

    /// Why a sync failed, if one did. Doesn't wait for one that is running.
    pub fn failure(&self) -> Option<Arc<io::Error>> {
        lock(&self.syncs).failed.as_ref().map(|failed| Arc::clone(&failed.error))
    }

    /// When that sync failed.
    pub fn failed_at(&self) -> Option<SystemTime> {
        lock(&self.syncs).failed.as_ref().map(|failed| failed.at)
    }

    /// Takes a failure back, if a sync succeeds now: for an operator, who knows that what was written
    /// and not synced before may be lost. Whether there was one.
    pub fn clear_failure(&self) -> Result<bool, PersistError> {
        let _using = self.enter()?;
        let _syncing = lock(&self.syncing);
        if self.failure().is_none() {
            return Ok(false);
        }
        self.sync_store().map_err(|error| PersistError::Sync {
            store: self.store.name().to_owned(),
            source: Arc::new(error),
        })?;
        lock(&self.syncs).failed = None;
        Ok(true)
    }

    /// Moves data, for whoever is known to be using the store already.
    pub(crate) fn transfer(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let (pages, direction) = (vec.pages(), vec.direction());
        let at = pages.start();
        let done = match vec.into_buffer() {
            Buffer::Write(_) if self.store.access() == Access::ReadOnly => {
                return Err(BioError::ReadOnly { store: self.store.name().to_owned() });
            }
            Buffer::Write(buffer) => self.store.write(at, buffer),
            Buffer::Read(buffer) => self.store.read(at, buffer),
        };
        done.map_err(|source| BioError::Store {
            direction,
            pages,
            store: self.store.name().to_owned(),
            source: Arc::new(source),
        })
    }
}

impl Target for Pagemap {
    fn nr_pages(&self) -> NrPages {
        self.pfns.nr_pages()
    }

    fn access(&self) -> Access {
        self.store.access()
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        if self.is_disabled() {
            let because = self.disabled().into();
            return Err(NotDirect { nr_pages: pages.nr_pages(), because });
        }
        Ok(Extent::new(self.pfns_of(pages), self))
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let _using = self.enter()?;
        self.transfer(vec)
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        syncs.add(self);
    }

    fn leaves<'a>(&'a self, pages: PgoffRange, visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {
        visit(self, pages);
    }

    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>)) {
        visit(Holder::Store(self));
    }

    fn markable(&self, visit: &mut dyn FnMut(&Pagemap)) {
        visit(self);
    }
}

impl SyncPoint for Pagemap {
    fn sync(&self) -> Result<(), PersistError> {
        self.persist()
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
    use crate::testing::faulty_store;

    #[test]
    fn persist_after_failure_stays_failed() {
        let (store, control) = faulty_store("leg", 4);
        let mut space = crate::PfnSpace::new();
        let pagemap = space.add(store).unwrap();
        pagemap.persist().unwrap();
        control.fail_next();
        assert!(matches!(pagemap.persist(), Err(PersistError::Sync { .. })));
        // The store would succeed now; the pagemap doesn't ask it any more.
        assert!(matches!(pagemap.persist(), Err(PersistError::Failed { .. })));
        assert_eq!(control.syncs(), 2);
    }

    #[test]
    fn failure_is_told_with_its_time_until_it_is_cleared() {
        let (store, control) = faulty_store("leg", 4);
        let mut space = crate::PfnSpace::new();
        let pagemap = space.add(store).unwrap();
        assert_eq!(pagemap.failed_at(), None);
        let before = SystemTime::now();
        control.fail_next();
        pagemap.persist().unwrap_err();
        let failed_at = pagemap.failed_at().unwrap();
        assert!((before..=SystemTime::now()).contains(&failed_at));
        pagemap.persist().unwrap_err();
        assert_eq!(pagemap.failed_at(), Some(failed_at));
        assert!(pagemap.clear_failure().unwrap());
        assert_eq!(pagemap.failed_at(), None);
    }

    /// Two syncs, of which the first hangs and then fails.
    #[test]
    fn sync_that_hangs_is_told_of_and_one_that_waits_for_it_fails_with_it() {
        let (entered, is_entered) = std::sync::mpsc::channel();
        let (release, is_released) = std::sync::mpsc::channel::<()>();
        let is_released = Mutex::new(is_released);
        let store = crate::MemoryStore::new("disk", NrPages::ONE).unwrap();
        let store = crate::HookedStore::new(store, move |operation| match operation {
            crate::StoreOperation::Persist => {
                entered.send(()).unwrap();
                lock(&is_released).recv().unwrap();
                Err(io::Error::other("injected"))
            }
            _ => Ok(()),
        });
        let pagemap = crate::PfnSpace::new().add(Box::new(store)).unwrap();
        assert_eq!(pagemap.syncing_since(), None);
        let before = SystemTime::now();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| pagemap.persist());
            is_entered.recv().unwrap();
            let second = scope.spawn(|| pagemap.persist());
            // All of these wait for no sync.
            assert!(pagemap.syncing_since().unwrap() >= before);
            assert!(pagemap.failure().is_none() && pagemap.failed_at().is_none());
            release.send(()).unwrap();
            let ends = [first, second].map(|sync| sync.join().unwrap().unwrap_err());
            let is_first = |end: &&PersistError| matches!(end, PersistError::Sync { .. });
            assert_eq!(ends.iter().filter(is_first).count(), 1, "{ends:?}");
        });
        assert_eq!(pagemap.syncing_since(), None);
        assert!(pagemap.failure().is_some());
    }

    #[test]
    fn pgoff_of_foreign_pfn_is_none() {
        let mut space = crate::PfnSpace::new();
        let first = space.add(faulty_store("a", 4).0).unwrap();
        let second = space.add(faulty_store("b", 2).0).unwrap();
        assert_eq!(first.pgoff(first.pfns().start()), Some(Pgoff::ZERO));
        assert_eq!(first.pgoff(second.pfns().start()), None);
        assert_eq!(second.pgoff(first.pfns().start()), None);
    }
}
