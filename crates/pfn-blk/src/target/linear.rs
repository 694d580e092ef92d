// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `linear`: a run of the pages beneath.

use std::sync::Arc;

use thiserror::Error;

use super::{Holder, Target};
use crate::bio::{BioError, BioVec};
use crate::extent::{Extent, NotDirect};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::SyncSet;
use crate::store::Access;

/// A linear target that reaches past what is beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{pages} reaches past the end at {beneath}")]
pub struct InvalidLinear {
    /// The pages asked for.
    pub pages: PgoffRange,
    /// How many there are.
    pub beneath: NrPages,
}

/// Pages of what is beneath, from some page on, in order, as in Linux's `dm-linear`.
///
/// ```text
/// linear   0 1 2 3
/// beneath  . . 0 1 2 3 . .       from page 2 on
/// ```
#[derive(Debug)]
pub struct Linear {
    beneath: Arc<dyn Target>,
    pages: PgoffRange,
}

impl Linear {
    /// The pages `pages` of `beneath`.
    pub fn try_new(beneath: Arc<dyn Target>, pages: PgoffRange) -> Result<Self, InvalidLinear> {
        if pages.end() > beneath.nr_pages().get() {
            return Err(InvalidLinear { pages, beneath: beneath.nr_pages() });
        }
        Ok(Self { beneath, pages })
    }

    /// The first page of what is beneath that is used.
    pub(super) fn start(&self) -> Pgoff {
        self.pages.start()
    }

    fn remap(&self, pages: PgoffRange) -> PgoffRange {
        pages
            .rebase(Pgoff::ZERO, self.pages.start())
            .expect("a target is asked for its own pages only")
    }
}

impl Target for Linear {
    fn nr_pages(&self) -> NrPages {
        self.pages.nr_pages()
    }

    fn access(&self) -> Access {
        self.beneath.access()
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        self.beneath.direct_access(self.remap(pages))
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let pages = self.remap(vec.pages());
        self.beneath.submit(vec.remap(pages))
    }

    fn persist<'a>(&'a self, pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        self.beneath.persist(self.remap(pages), syncs);
    }

    fn leaves<'a>(&'a self, pages: PgoffRange, visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {
        self.beneath.leaves(self.remap(pages), visit);
    }

    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>)) {
        self.beneath.holders(visit);
    }

    fn markable(&self, visit: &mut dyn FnMut(&Pagemap)) {
        self.beneath.markable(visit);
    }
}
