// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pfn space: which store a page frame belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::page::{InvalidPages, Pfn, PfnRange};
use crate::pagemap::Pagemap;
use crate::store::Store;

/// Hands out pfns, and finds the store behind one.
///
/// A store gets a run of pfns once, when it is added, and keeps it. No pfn is handed out again,
/// also after its store was removed: a stale one is recognised for ever, as its store is not
/// found. 2⁵¹ pages are enough for that; a terabyte added and removed each second lasts for 97
/// days, and a space that is used up refuses further stores.
#[derive(Debug)]
pub struct PfnSpace {
    next: Pfn,
    pagemaps: BTreeMap<Pfn, Arc<Pagemap>>,
}

impl PfnSpace {
    /// An empty space. Its first pfn is 1, so that zeroed memory names no page.
    pub fn new() -> Self {
        let next = Pfn::try_new(1).expect("one is a valid pfn");
        Self { next, pagemaps: BTreeMap::new() }
    }

    /// Gives `store` the next run of pfns.
    pub fn add(&mut self, store: Box<dyn Store>) -> Result<Arc<Pagemap>, InvalidPages> {
        let pfns = PfnRange::try_new(self.next, store.nr_pages())?;
        self.next = self.next.checked_add(pfns.nr_pages())?;
        let pagemap = Pagemap::new(pfns, store);
        self.pagemaps.insert(pfns.start(), Arc::clone(&pagemap));
        Ok(pagemap)
    }

    /// The store that `pfn` belongs to, in O(log stores); `None` for a pfn that was never handed
    /// out or whose store is gone.
    pub fn find(&self, pfn: Pfn) -> Option<&Arc<Pagemap>> {
        let (_, pagemap) = self.pagemaps.range(..=pfn).next_back()?;
        pagemap.pfns().contains(pfn).then_some(pagemap)
    }

    /// The stores, in the order of their pfns.
    pub fn stores(&self) -> impl Iterator<Item = &Arc<Pagemap>> {
        self.pagemaps.values()
    }

    /// Ends the use of the store that `pfn` belongs to, and forgets its pfns for ever.
    ///
    /// 1. From now on every new use fails, with an error that names the store: `direct_access`,
    ///    leases, bios, persists.
    /// 2. Holders of revocable leases are told, the last one that came first.
    /// 3. All leases and all I/O under way are waited for, for at most `patience`.
    ///
    /// After an error the store stays half-way, at 1: nothing new begins, what is held is still
    /// good, and the call may be repeated.
    pub fn disable(&mut self, pfn: Pfn, patience: Duration) -> Result<(), DisableError> {
        let pagemap = self.find(pfn).ok_or(DisableError::Stale(pfn))?;
        let start = pagemap.pfns().start();
        pagemap.disable(patience).map_err(|users| DisableError::InUse {
            store: pagemap.store().name().to_owned(),
            users,
        })?;
        self.pagemaps.remove(&start);
        Ok(())
    }
}

/// Why a store is not gone.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DisableError {
    /// No store has the pfn, or none has it any more.
    #[error("{0} belongs to no store")]
    Stale(Pfn),
    /// Leases are held, or I/O is under way, still.
    #[error("{store} is in use: {users} leases and bios have not ended")]
    InUse {
        /// The store's name.
        store: String,
        /// How many.
        users: u64,
    },
}

impl Default for PfnSpace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::faulty_store;

    #[test]
    fn find_names_each_stores_own_pages() {
        let mut space = PfnSpace::new();
        let stores: Vec<_> =
            (1..=5).map(|pages| space.add(faulty_store("s", pages).0).unwrap()).collect();
        for store in &stores {
            for pfn in store.pfns().start().get()..store.pfns().end() {
                let found = space.find(Pfn::try_new(pfn).unwrap()).unwrap();
                assert!(Arc::ptr_eq(found, store));
            }
        }
        assert!(space.find(Pfn::try_new(0).unwrap()).is_none());
        assert!(space.find(Pfn::try_new(16).unwrap()).is_none());
    }

    #[test]
    fn pfn_of_removed_store_is_never_reused() {
        let mut space = PfnSpace::new();
        let mut last = 0;
        for _ in 0..1000 {
            let pfns = space.add(faulty_store("s", 3).0).unwrap().pfns();
            assert!(pfns.start().get() > last);
            last = pfns.end() - 1;
            space.disable(Pfn::try_new(last).unwrap(), Duration::ZERO).unwrap();
            assert!(space.find(pfns.start()).is_none());
        }
    }

    #[test]
    fn space_used_up_refuses_the_store() {
        let mut space = PfnSpace::new();
        space.next = Pfn::try_new(crate::page::PAGES_MAX - 2).unwrap();
        space.add(faulty_store("s", 3).0).unwrap_err();
        space.add(faulty_store("s", 2).0).unwrap();
        space.add(faulty_store("s", 1).0).unwrap_err();
    }
}
