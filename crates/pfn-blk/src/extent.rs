// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The answer of `direct_access`.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::page::{NrPages, PageRange, PfnRange, Pgoff};
use crate::pagemap::Pagemap;
use crate::store::Access;

/// A run of pages that lie one after another in one store: where they are, and what may be done
/// with them. Often shorter than what was asked for.
///
/// The borrow keeps the store open; whoever hands the pages on, to a frontend that maps them, must
/// keep the region alive meanwhile.
#[derive(Clone, Copy)]
pub struct Extent<'a> {
    pfns: PfnRange,
    pagemap: &'a Pagemap,
}

impl<'a> Extent<'a> {
    pub(crate) fn new(pfns: PfnRange, pagemap: &'a Pagemap) -> Self {
        debug_assert!(pagemap.pfns().covers(pfns));
        Self { pfns, pagemap }
    }

    /// The page frames, in order.
    pub fn pfns(self) -> PfnRange {
        self.pfns
    }

    /// How many pages.
    pub fn nr_pages(self) -> NrPages {
        self.pfns.nr_pages()
    }

    /// The store they lie in.
    pub fn pagemap(self) -> &'a Pagemap {
        self.pagemap
    }

    /// The file to map.
    pub fn fd(self) -> BorrowedFd<'a> {
        self.pagemap.store().fd()
    }

    /// Where in [`fd`](Self::fd) the first page lies; its byte offset is [`Pgoff::bytes`].
    pub fn pgoff(self) -> Pgoff {
        self.pagemap.pgoff(self.pfns.start()).expect("an extent lies in its store")
    }

    /// What the pages may be used for.
    pub fn access(self) -> Access {
        self.pagemap.store().access()
    }

    /// This extent and `next` as one, where `next` starts right behind this one in the same store.
    pub fn join(self, next: Self) -> Option<Self> {
        let adjacent =
            std::ptr::eq(self.pagemap, next.pagemap) && self.pfns.end() == next.pfns.start().get();
        let sum = self.nr_pages().get() + next.nr_pages().get();
        let nr_pages = adjacent.then_some(NrPages::try_new(sum).ok()?)?;
        let pfns = PageRange::try_new(self.pfns.start(), nr_pages).ok()?;
        Some(Self { pfns, ..self })
    }
}

impl fmt::Debug for Extent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pfns, pagemap } = self;
        write!(f, "{pfns} in {} from {}", pagemap.store().name(), self.pgoff())
    }
}
