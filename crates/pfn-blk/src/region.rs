// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root of a stack: what a guest sees as one device.

use std::sync::Arc;

use thiserror::Error;

use crate::bio::{Bio, BioError, BioVec, Buffer, Direction, Operation};
use crate::extent::{Extent, NotDirect};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::{PersistError, SyncSet};
use crate::sg::{AccessError, Kmap, KmapError, SgList};
use crate::store::Access;
use crate::target::Target;

/// A stack that can't be a region.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidRegion {
    /// A writable page that the stack uses twice, or that a target somewhere has to itself: what
    /// is written to one place would appear in another.
    #[error("{store} is used twice, from {at} on")]
    UsedTwice {
        /// The store.
        store: String,
        /// The first page in it that is used twice.
        at: Pgoff,
    },
}

/// Pages that the region doesn't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{pages} reaches past the region's end at {region}")]
pub struct OutOfRange {
    /// What was asked for.
    pub pages: PgoffRange,
    /// The region's size.
    pub region: NrPages,
}

/// The validated root of a stack of targets.
#[derive(Debug)]
pub struct Region {
    target: Arc<dyn Target>,
}

impl Region {
    /// The region of all pages of `target`.
    pub fn try_new(target: Arc<dyn Target>) -> Result<Self, InvalidRegion> {
        let region = Self { target };
        region.check_used_once()?;
        Ok(region)
    }

    fn check_used_once(&self) -> Result<(), InvalidRegion> {
        let mut used: Vec<(&Pagemap, PgoffRange)> = Vec::new();
        self.target.leaves(self.pages(), &mut |pagemap, pages| {
            if pagemap.store().access() == Access::ReadWrite {
                used.push((pagemap, pages));
            }
        });
        let claimed = used
            .iter()
            .find_map(|(pagemap, pages)| pagemap.claims().first(*pages).map(|at| (*pagemap, at)));
        used.sort_by_key(|(pagemap, pages)| (std::ptr::from_ref(*pagemap), pages.start()));
        let overlap = used.windows(2).find_map(|pair| {
            let [(one, before), (other, behind)] = [pair[0], pair[1]];
            let overlap = std::ptr::eq(one, other) && behind.start().get() < before.end();
            overlap.then_some((other, behind.start()))
        });
        match claimed.or(overlap) {
            None => Ok(()),
            Some((pagemap, at)) => {
                Err(InvalidRegion::UsedTwice { store: pagemap.store().name().to_owned(), at })
            }
        }
    }

    /// Its size.
    pub fn nr_pages(&self) -> NrPages {
        self.target.nr_pages()
    }

    /// What it is the root of.
    pub fn target(&self) -> &Arc<dyn Target> {
        &self.target
    }

    /// What may be done with its pages: with all of them, if they may be written.
    pub fn access(&self) -> Access {
        self.target.access()
    }

    /// All of its pages.
    pub fn pages(&self) -> PgoffRange {
        self.target.pages()
    }

    /// Where the first of `pages` lies, and how many of them follow it there. Or that it can't be
    /// mapped, and how many of them can't.
    pub fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, AccessError> {
        self.check(pages)?;
        Ok(self.target.direct_access(pages)?)
    }

    /// What `pages` lie in, in order, each piece with the region's page it starts at; no two
    /// neighbours could be one.
    pub fn extents(
        &self,
        pages: PgoffRange,
    ) -> Result<impl Iterator<Item = (Pgoff, Result<Extent<'_>, NotDirect>)>, OutOfRange> {
        self.check(pages)?;
        Ok(Extents { target: &*self.target, rest: Some(pages), ahead: None })
    }

    /// Does a bio, and ends it.
    pub fn submit(&self, mut bio: Bio<'_>) {
        let pages = bio.pages();
        let result = self.check(pages).map_err(BioError::from).and_then(|()| match bio.take() {
            Operation::Transfer(vecs) => {
                vecs.into_iter().try_for_each(|vec| self.target.submit(vec))
            }
            Operation::Copy(direction, pinned) => self.copy(direction, pages, pinned),
            Operation::Persist => Ok(self.persist(pages)?),
        });
        bio.end(result);
    }

    /// Copies between `pages` and as many pinned ones, through a buffer.
    fn copy(
        &self,
        direction: Direction,
        pages: PgoffRange,
        pinned: &SgList,
    ) -> Result<(), BioError> {
        let mut buffer = Vec::new();
        let mut start = pages.start();
        for lease in pinned.runs() {
            let run = PgoffRange::try_new(start, lease.nr_pages());
            let run = run.expect("a piece of a range is a range");
            for (piece, at) in run.pieces().zip(lease.pages().pieces()) {
                let len = usize::try_from(piece.nr_pages().bytes()).expect("a piece is small");
                buffer.resize(len, 0);
                let store = lease.pagemap();
                match direction {
                    Direction::Read => {
                        self.read(piece, &mut buffer)?;
                        store.transfer(BioVec::try_new(at, Buffer::Write(&buffer))?)?;
                    }
                    Direction::Write => {
                        store.transfer(BioVec::try_new(at, Buffer::Read(&mut buffer))?)?;
                        self.write(piece, &buffer)?;
                    }
                }
            }
            start = start.checked_add(lease.nr_pages()).expect("a piece's end is a page number");
        }
        Ok(())
    }

    /// Reads `pages` into `buffer`, of exactly their size.
    pub fn read(&self, pages: PgoffRange, buffer: &mut [u8]) -> Result<(), BioError> {
        self.check(pages)?;
        self.target.submit(BioVec::try_new(pages, Buffer::Read(buffer))?)
    }

    /// Writes `buffer`, of exactly their size, to `pages`. Durable only after a persist.
    pub fn write(&self, pages: PgoffRange, buffer: &[u8]) -> Result<(), BioError> {
        self.check(pages)?;
        self.target.submit(BioVec::try_new(pages, Buffer::Write(buffer))?)
    }

    /// Makes everything written to `pages` before the call durable: through a mapping, by a guest
    /// or by anyone else. Every store beneath is synced once.
    pub fn persist(&self, pages: PgoffRange) -> Result<(), PersistError> {
        let mut syncs = SyncSet::default();
        if let Some(pages) = pages.intersection(self.pages()) {
            self.target.persist(pages, &mut syncs);
        }
        syncs.sync()
    }

    /// Pins `pages` for long-lived I/O.
    pub fn pin(&self, pages: PgoffRange) -> Result<SgList, AccessError> {
        let lease = |extent: Result<Extent<'_>, NotDirect>| Ok(extent?.lease()?);
        let runs = self.extents(pages)?.map(|(_, extent)| lease(extent));
        Ok(SgList::new(pages, runs.collect::<Result<_, AccessError>>()?))
    }

    /// Maps `pages` for the CPU, for a short time.
    pub fn kmap(&self, pages: PgoffRange) -> Result<Kmap, KmapError> {
        self.pin(pages)?.kmap()
    }

    fn check(&self, pages: PgoffRange) -> Result<(), OutOfRange> {
        if self.pages().covers(pages) {
            return Ok(());
        }
        Err(OutOfRange { pages, region: self.nr_pages() })
    }
}

/// Walks a target's extents and joins those that lie one after another in a store.
struct Extents<'a> {
    target: &'a dyn Target,
    /// What `direct_access` wasn't asked for yet.
    rest: Option<PgoffRange>,
    /// A piece that was met but not yet returned, as what follows may join it.
    ahead: Option<(Pgoff, Piece<'a>)>,
}

type Piece<'a> = Result<Extent<'a>, NotDirect>;

fn nr_pages(piece: &Piece<'_>) -> NrPages {
    match piece {
        Ok(extent) => extent.nr_pages(),
        Err(not) => not.nr_pages,
    }
}

fn join<'a>(piece: &Piece<'a>, next: &Piece<'a>) -> Option<Piece<'a>> {
    match (piece, next) {
        (Ok(extent), Ok(next)) => extent.join(*next).map(Ok),
        (Err(not), Err(next)) if not.because == next.because => {
            let sum = NrPages::try_new(not.nr_pages.get() + next.nr_pages.get()).ok()?;
            Some(Err(NotDirect { nr_pages: sum, because: not.because.clone() }))
        }
        _ => None,
    }
}

impl<'a> Iterator for Extents<'a> {
    type Item = (Pgoff, Piece<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(pages) = self.rest {
            let next = self.target.direct_access(pages);
            let met = PgoffRange::try_new(pages.start(), nr_pages(&next)).ok();
            self.rest = met.and_then(|met| pages.behind(met));
            let Some((start, piece)) = self.ahead.take() else {
                self.ahead = Some((pages.start(), next));
                continue;
            };
            match join(&piece, &next) {
                Some(joined) => self.ahead = Some((start, joined)),
                None => {
                    self.ahead = Some((pages.start(), next));
                    return Some((start, piece));
                }
            }
        }
        self.ahead.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::faulty_store;
    use crate::{HookedStore, Linear, MemoryStore, Pagemap, PfnSpace, StoreOperation, Table};

    fn range(start: u64, nr_pages: u64) -> PgoffRange {
        let nr_pages = NrPages::try_new(nr_pages).unwrap();
        PgoffRange::try_new(Pgoff::try_new(start).unwrap(), nr_pages).unwrap()
    }

    /// A table of `(store, first page, pages)`.
    fn region(lines: &[(&Arc<Pagemap>, u64, u64)]) -> Result<Region, InvalidRegion> {
        let mut start = 0;
        let mut entries: Vec<(PgoffRange, Arc<dyn Target>)> = Vec::new();
        for &(store, first, nr_pages) in lines {
            let store = Arc::clone(store);
            let linear = Linear::try_new(store, range(first, nr_pages)).unwrap();
            entries.push((range(start, nr_pages), Arc::new(linear)));
            start += nr_pages;
        }
        Region::try_new(Arc::new(Table::try_new(entries).unwrap()))
    }

    fn stores(sizes: &[u64]) -> Vec<Arc<Pagemap>> {
        let mut space = PfnSpace::new();
        let add = |&size| space.add(faulty_store("s", size).0).unwrap();
        sizes.iter().map(add).collect()
    }

    #[test]
    fn extents_join_neighbours_in_one_store_only() {
        let stores = stores(&[8, 8]);
        let [a, b] = [&stores[0], &stores[1]];
        // The last page of `a` and the first of `b` have neighbouring pfns, and must not join.
        let region = region(&[(a, 0, 2), (a, 2, 3), (a, 6, 2), (b, 0, 4)]).unwrap();
        let extents: Vec<_> = region
            .extents(region.pages())
            .unwrap()
            .map(|(start, extent)| {
                let extent = extent.unwrap();
                (start.get(), extent.pgoff().get(), extent.nr_pages().get())
            })
            .collect();
        assert_eq!(extents, [(0, 0, 5), (5, 6, 2), (7, 0, 4)]);
    }

    #[test]
    fn extents_of_every_range_tile_it_once() {
        let stores = stores(&[8, 8]);
        let [a, b] = [&stores[0], &stores[1]];
        let region = region(&[(b, 3, 2), (a, 2, 3), (b, 5, 2), (a, 5, 3)]).unwrap();
        let page = |at| region.direct_access(range(at, 1)).unwrap().pfns().start().get();
        for start in 0..10 {
            for nr_pages in 1..=10 - start {
                let mut at = start;
                for (first, extent) in region.extents(range(start, nr_pages)).unwrap() {
                    let extent = extent.unwrap();
                    assert_eq!(first.get(), at);
                    for pfn in extent.pfns().start().get()..extent.pfns().end() {
                        assert_eq!(pfn, page(at));
                        at += 1;
                    }
                }
                assert_eq!(at, start + nr_pages);
            }
        }
    }

    #[test]
    fn access_past_end_is_refused() {
        let stores = stores(&[8]);
        let region = region(&[(&stores[0], 0, 8)]).unwrap();
        let error = region.direct_access(range(7, 2)).unwrap_err();
        let expected = OutOfRange { pages: range(7, 2), region: NrPages::try_new(8).unwrap() };
        assert!(matches!(error, AccessError::OutOfRange(error) if error == expected));
        assert!(region.extents(range(8, 1)).is_err());
    }

    #[test]
    fn region_with_page_twice_is_refused() {
        let stores = stores(&[8, 8]);
        let [a, b] = [&stores[0], &stores[1]];
        let error = region(&[(a, 4, 4), (b, 0, 8), (a, 2, 3)]).unwrap_err();
        let at = Pgoff::try_new(4).unwrap();
        assert_eq!(error, InvalidRegion::UsedTwice { store: "s".to_owned(), at });
    }

    #[test]
    fn persist_syncs_each_store_once_and_all_behind_a_failure() {
        let mut space = PfnSpace::new();
        let (a, a_control) = faulty_store("a", 8);
        let (b, b_control) = faulty_store("b", 8);
        let a = space.add(a).unwrap();
        let b = space.add(b).unwrap();
        let region = region(&[(&a, 0, 2), (&b, 0, 2), (&a, 4, 2)]).unwrap();
        region.persist(region.pages()).unwrap();
        assert_eq!((a_control.syncs(), b_control.syncs()), (1, 1));
        a_control.fail_next();
        let error = region.persist(region.pages()).unwrap_err();
        assert!(matches!(error, PersistError::Sync { store, .. } if store == "a"));
        assert_eq!((a_control.syncs(), b_control.syncs()), (2, 2));
        // The failure that is new is the one to hear of.
        b_control.fail_next();
        let error = region.persist(region.pages()).unwrap_err();
        assert!(matches!(error, PersistError::Sync { store, .. } if store == "b"));
        let error = region.persist(region.pages()).unwrap_err();
        assert!(matches!(error, PersistError::Failed { store, .. } if store == "a"));
    }

    #[test]
    fn persist_syncs_stores_at_once() {
        let begun = Arc::new(AtomicUsize::new(0));
        let mut space = PfnSpace::new();
        let stores = ["a", "b", "c"].map(|name| {
            let store = MemoryStore::new(name, NrPages::ONE).unwrap();
            let begun = Arc::clone(&begun);
            let hooked = HookedStore::new(store, move |operation| {
                if operation == StoreOperation::Persist {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let deadline = Instant::now() + Duration::from_secs(20);
                    while begun.load(Ordering::SeqCst) < 3 {
                        assert!(Instant::now() < deadline, "{name} waits for the others in vain");
                        std::thread::yield_now();
                    }
                }
                Ok(())
            });
            space.add(Box::new(hooked)).unwrap()
        });
        let region = region(&[(&stores[0], 0, 1), (&stores[1], 0, 1), (&stores[2], 0, 1)]).unwrap();
        region.persist(region.pages()).unwrap();
    }
}
