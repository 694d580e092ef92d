// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The answer of `direct_access`.

use std::fmt;

use thiserror::Error;

use crate::lease::{Lease, StoreDisabled};
use crate::page::{NrPages, PfnRange, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::store::Access;

/// Pages that nobody can map, and why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{nr_pages} can't be accessed directly: {because}")]
pub struct NotDirect {
    /// How many of the pages that were asked for, from the first on.
    pub nr_pages: NrPages,
    /// Why.
    pub because: NotDirectReason,
}

/// Why pages can't be mapped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotDirectReason {
    /// They lie in a `zero` target.
    #[error("zero forgets what is written")]
    Zero,
    /// They lie in an `error` target.
    #[error("error has no pages")]
    Error,
    /// They lie in a `mirror` target.
    #[error("mirror writes to several places at once")]
    Mirror,
    /// They lie in a `snapshot` target.
    #[error("snapshot keeps what is written apart from its origin")]
    Snapshot,
    /// Their store is gone.
    #[error(transparent)]
    Disabled(#[from] StoreDisabled),
}

/// A run of pages that lie one after another in one store: where they are, and what may be done
/// with them. Often shorter than what was asked for.
///
/// It is a finding, true when it was made. To use the pages take a [lease](Self::lease).
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

    /// Where in the store the first page lies.
    pub fn pgoff(self) -> Pgoff {
        self.pagemap.pgoff(self.pfns.start()).expect("an extent lies in its store")
    }

    /// The store's own pages.
    pub fn pages(self) -> PgoffRange {
        PgoffRange::try_new(self.pgoff(), self.nr_pages()).expect("pages of a store")
    }

    /// What the pages may be used for.
    pub fn access(self) -> Access {
        self.pagemap.store().access()
    }

    /// The right to use the pages after this.
    pub fn lease(self) -> Result<Lease, StoreDisabled> {
        Lease::try_new(self.pagemap.to_arc(), self.pfns, None)
    }

    /// The same, for a holder that gives the lease back when it is told to: `revoke` is called
    /// once when the store is disabled, from the thread that does so, and then the lease is waited
    /// for. Where the store is disabled at this moment it may be called although this fails.
    pub fn lease_revocable(
        self,
        revoke: impl FnOnce() + Send + 'static,
    ) -> Result<Lease, StoreDisabled> {
        Lease::try_new(self.pagemap.to_arc(), self.pfns, Some(Box::new(revoke)))
    }

    /// This extent and `next` as one, where `next` starts right behind this one in the same store.
    pub fn join(self, next: Self) -> Option<Self> {
        let adjacent =
            std::ptr::eq(self.pagemap, next.pagemap) && self.pfns.end() == next.pfns.start().get();
        let sum = self.nr_pages().get() + next.nr_pages().get();
        let nr_pages = adjacent.then_some(NrPages::try_new(sum).ok()?)?;
        let pfns = PfnRange::try_new(self.pfns.start(), nr_pages).ok()?;
        Some(Self { pfns, ..self })
    }
}

impl fmt::Debug for Extent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pfns, pagemap } = self;
        write!(f, "{pfns} in {} from {}", pagemap.store().name(), self.pgoff())
    }
}
