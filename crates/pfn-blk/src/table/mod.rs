// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables: targets one behind another, and the text that describes them.

mod error;
mod hint;
mod open;
mod pieces;
mod stores;
mod text;
mod words;

use std::sync::Arc;

use thiserror::Error;

pub use self::error::{OpenTableError, OpenTableErrorKind};
pub use self::open::{OpenLeg, OpenMirror, OpenTable};
pub use self::stores::StoreSet;
pub use self::text::{
    DeviceSpec, Line, LogSpec, ParseTableError, ParseTableErrorKind, TargetSpec, parse,
};
pub use self::words::{Position, Word};
use crate::bio::{BioError, BioVec};
use crate::extent::{Extent, NotDirect};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::SyncSet;
use crate::store::Access;
use crate::target::{Holder, Target, access_of};

/// Entries that don't tile the table's pages from zero on, each page once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidTable {
    /// No entry at all.
    #[error("no targets")]
    Empty,
    /// Pages that no entry covers.
    #[error("gap: pages from {from:#x} on have no target")]
    Gap {
        /// Which entry comes behind the gap.
        entry: usize,
        /// The first page without a target.
        from: u64,
    },
    /// Pages that two entries cover, or entries out of order.
    #[error("overlap: the target before reaches to page {to:#x}")]
    Overlap {
        /// Which entry starts too early.
        entry: usize,
        /// The first page that is free.
        to: u64,
    },
    /// A target whose size isn't the entry's.
    #[error("the target has {0}")]
    Length(usize, NrPages),
}

impl InvalidTable {
    /// Which entry is at fault.
    pub fn entry(&self) -> usize {
        match *self {
            Self::Empty => 0,
            Self::Gap { entry, .. } | Self::Overlap { entry, .. } | Self::Length(entry, _) => entry,
        }
    }
}

/// Targets joined to one run of pages, as a device-mapper table.
#[derive(Debug)]
pub struct Table {
    /// In order, without gaps, from page zero.
    entries: Vec<(PgoffRange, Arc<dyn Target>)>,
    nr_pages: NrPages,
}

impl Table {
    /// The table of `entries`: the pages each covers, and what covers them.
    pub fn try_new(entries: Vec<(PgoffRange, Arc<dyn Target>)>) -> Result<Self, InvalidTable> {
        let mut end = 0;
        for (entry, (pages, target)) in entries.iter().enumerate() {
            if pages.start().get() > end {
                return Err(InvalidTable::Gap { entry, from: end });
            }
            if pages.start().get() < end {
                return Err(InvalidTable::Overlap { entry, to: end });
            }
            if target.nr_pages() != pages.nr_pages() {
                return Err(InvalidTable::Length(entry, target.nr_pages()));
            }
            end = pages.end();
        }
        let nr_pages = NrPages::try_new(end).map_err(|_| InvalidTable::Empty)?;
        Ok(Self { entries, nr_pages })
    }

    /// The entries that cover `pages`, each with its part of them in its own page numbers.
    fn covering(&self, pages: PgoffRange) -> impl Iterator<Item = (PgoffRange, &dyn Target)> {
        let first = self.entries.partition_point(|(entry, _)| entry.end() <= pages.start().get());
        self.entries[first..].iter().map_while(move |(entry, target)| {
            let part = entry.intersection(pages)?.rebase(entry.start(), Pgoff::ZERO)?;
            Some((part, &**target))
        })
    }
}

impl Target for Table {
    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        access_of(self.entries.iter().map(|(_, target)| &**target))
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        let (part, target) =
            self.covering(pages).next().expect("a target is asked for its own pages only");
        target.direct_access(part)
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let mut rest = Some(vec);
        for (part, target) in self.covering(rest.as_ref().expect("just made").pages()) {
            let vec = rest.take().expect("the parts are no more than the whole");
            let (front, behind) = vec.split(part.nr_pages());
            target.submit(front.remap(part))?;
            rest = behind;
        }
        Ok(())
    }

    fn persist<'a>(&'a self, pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        for (part, target) in self.covering(pages) {
            target.persist(part, syncs);
        }
    }

    fn leaves<'a>(&'a self, pages: PgoffRange, visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {
        for (part, target) in self.covering(pages) {
            target.leaves(part, visit);
        }
    }

    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>)) {
        self.entries.iter().for_each(|(_, target)| target.holders(visit));
    }

    fn markable(&self, visit: &mut dyn FnMut(&Pagemap)) {
        self.entries.iter().for_each(|(_, target)| target.markable(visit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::faulty_store;
    use crate::{PageRange, PfnSpace};

    fn range(start: u64, nr_pages: u64) -> PgoffRange {
        let nr_pages = NrPages::try_new(nr_pages).unwrap();
        PageRange::try_new(Pgoff::try_new(start).unwrap(), nr_pages).unwrap()
    }

    fn entry(space: &mut PfnSpace, start: u64, nr_pages: u64) -> (PgoffRange, Arc<dyn Target>) {
        let store = faulty_store("s", nr_pages).0;
        (range(start, nr_pages), space.add(store).unwrap())
    }

    #[test]
    fn table_with_gap_or_overlap_names_the_entry() {
        let mut space = PfnSpace::new();
        let mut at = |start, nr_pages| entry(&mut space, start, nr_pages);
        let error = Table::try_new(vec![at(0, 4), at(5, 4)]).unwrap_err();
        assert_eq!(error, InvalidTable::Gap { entry: 1, from: 4 });
        let error = Table::try_new(vec![at(1, 4)]).unwrap_err();
        assert_eq!(error, InvalidTable::Gap { entry: 0, from: 0 });
        let error = Table::try_new(vec![at(0, 4), at(4, 2), at(5, 4)]).unwrap_err();
        assert_eq!(error, InvalidTable::Overlap { entry: 2, to: 6 });
        assert_eq!(Table::try_new(vec![]).unwrap_err(), InvalidTable::Empty);
    }

    #[test]
    fn table_with_target_of_other_length_is_refused() {
        let mut space = PfnSpace::new();
        let (_, target) = entry(&mut space, 0, 3);
        let error = Table::try_new(vec![(range(0, 4), target)]).unwrap_err();
        assert_eq!(error.entry(), 0);
        assert!(matches!(error, InvalidTable::Length(0, _)));
    }

    #[test]
    fn persist_syncs_only_stores_under_the_pages() {
        let mut space = PfnSpace::new();
        let (stores, controls): (Vec<_>, Vec<_>) = (0..3).map(|_| faulty_store("s", 4)).unzip();
        let entries = stores
            .into_iter()
            .zip([0, 4, 8])
            .map(|(store, start)| {
                let target: Arc<dyn Target> = space.add(store).unwrap();
                (range(start, 4), target)
            })
            .collect();
        let table = Table::try_new(entries).unwrap();
        let mut syncs = SyncSet::default();
        table.persist(range(3, 2), &mut syncs);
        syncs.sync().unwrap();
        let counts: Vec<_> = controls.iter().map(|control| control.syncs()).collect();
        assert_eq!(counts, [1, 1, 0]);
    }
}
