// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `zero` and `error`: pages that no store has.

use super::{Holder, Target};
use crate::bio::{BioError, BioVec, Buffer};
use crate::extent::{Extent, NotDirect, NotDirectReason};
use crate::page::{NrPages, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::SyncSet;
use crate::store::Access;

/// Pages that read as zeroes and forget what is written, as in Linux's `dm-zero`.
#[derive(Debug, Clone, Copy)]
pub struct ZeroTarget {
    nr_pages: NrPages,
}

/// Pages that can't be read or written, as in Linux's `dm-error`. There is nothing in them that a
/// persist could fail to make durable.
#[derive(Debug, Clone, Copy)]
pub struct ErrorTarget {
    nr_pages: NrPages,
}

impl ZeroTarget {
    /// As many pages.
    pub const fn new(nr_pages: NrPages) -> Self {
        Self { nr_pages }
    }
}

impl ErrorTarget {
    /// As many pages.
    pub const fn new(nr_pages: NrPages) -> Self {
        Self { nr_pages }
    }
}

impl Target for ZeroTarget {
    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        Err(NotDirect { nr_pages: pages.nr_pages(), because: NotDirectReason::Zero })
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        if let Buffer::Read(buffer) = vec.into_buffer() {
            buffer.fill(0);
        }
        Ok(())
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, _syncs: &mut SyncSet<'a>) {}

    fn leaves<'a>(&'a self, _pages: PgoffRange, _visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {}

    fn holders<'a>(&'a self, _visit: &mut dyn FnMut(Holder<'a>)) {}

    fn markable(&self, _visit: &mut dyn FnMut(&Pagemap)) {}
}

impl Target for ErrorTarget {
    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        Err(NotDirect { nr_pages: pages.nr_pages(), because: NotDirectReason::Error })
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        Err(BioError::ErrorTarget { pages: vec.pages() })
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, _syncs: &mut SyncSet<'a>) {}

    fn leaves<'a>(&'a self, _pages: PgoffRange, _visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {}

    fn holders<'a>(&'a self, _visit: &mut dyn FnMut(Holder<'a>)) {}

    fn markable(&self, _visit: &mut dyn FnMut(&Pagemap)) {}
}
