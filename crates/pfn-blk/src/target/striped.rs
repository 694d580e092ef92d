// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `striped`: chunks dealt to several targets in turn.

use std::sync::Arc;

use thiserror::Error;

use super::{Holder, InvalidLinear, Linear, Target, access_of};
use crate::bio::{BioError, BioVec};
use crate::extent::{Extent, NotDirect};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::SyncSet;
use crate::store::Access;

/// Arguments that make no striped target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidStriped {
    /// No stripe at all.
    #[error("no stripes")]
    NoStripes,
    /// A size that can't be dealt out evenly.
    #[error(
        "{nr_pages} can't be dealt to {stripes} stripes in chunks of {chunk}; \
         the size must be a multiple of {}", .stripes * .chunk.get()
    )]
    Uneven {
        /// The target's size.
        nr_pages: NrPages,
        /// How many stripes.
        stripes: u64,
        /// The chunk's size.
        chunk: NrPages,
    },
    /// A stripe that reaches past what is beneath it.
    #[error("stripe {stripe}")]
    Stripe {
        /// Which one.
        stripe: usize,
        /// How far it reaches.
        #[source]
        source: InvalidLinear,
    },
}

/// Chunks of pages dealt to the stripes in turn, as in Linux's `dm-stripe`.
///
/// ```text
/// striped   0 1 | 2 3 | 4 5 | 6 7 | 8 9 | …     chunks of 2 pages, 3 stripes
/// stripe 0  0 1 | 6 7 | …
/// stripe 1  2 3 | 8 9 | …
/// stripe 2  4 5 | …
/// ```
///
/// A write that fails in one stripe leaves the chunks before it written.
#[derive(Debug)]
pub struct Striped {
    stripes: Vec<Linear>,
    chunk: NrPages,
    nr_pages: NrPages,
}

/// Where a chunk lies.
struct Chunk {
    stripe: usize,
    /// Its part of the pages that were asked for, in the stripe's numbers.
    pages: PgoffRange,
}

impl Striped {
    /// `nr_pages` pages in chunks of `chunk`, dealt to `stripes`: each a target and the first page
    /// of it that is used.
    pub fn try_new(
        stripes: Vec<(Arc<dyn Target>, Pgoff)>,
        chunk: NrPages,
        nr_pages: NrPages,
    ) -> Result<Self, InvalidStriped> {
        let count = u64::try_from(stripes.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return Err(InvalidStriped::NoStripes);
        }
        let uneven = InvalidStriped::Uneven { nr_pages, stripes: count, chunk };
        let row = count.checked_mul(chunk.get()).ok_or(uneven)?;
        if nr_pages.get() % row != 0 {
            return Err(uneven);
        }
        let len = NrPages::try_new(nr_pages.get() / count).map_err(|_| uneven)?;
        let stripes = stripes
            .into_iter()
            .enumerate()
            .map(|(stripe, (beneath, start))| {
                let pages = PgoffRange::try_new(start, len).map_err(|_| uneven)?;
                Linear::try_new(beneath, pages)
                    .map_err(|source| InvalidStriped::Stripe { stripe, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { stripes, chunk, nr_pages })
    }

    /// Where the first of `pages` lies, and those that follow it in its chunk.
    fn locate(&self, pages: PgoffRange) -> Chunk {
        let chunk_pages = self.chunk.get();
        let page = pages.start().get();
        let (chunk, within) = (page / chunk_pages, page % chunk_pages);
        let count = self.stripes.len() as u64;
        let start = Pgoff::try_new(chunk / count * chunk_pages + within);
        let len = NrPages::try_new(pages.nr_pages().get().min(chunk_pages - within));
        let (Ok(start), Ok(len)) = (start, len) else {
            unreachable!("a stripe is no longer than the target, and a chunk isn't empty");
        };
        let pages = PgoffRange::try_new(start, len).expect("a stripe's page is a page");
        let stripe = usize::try_from(chunk % count).expect("less than the stripes there are");
        Chunk { stripe, pages }
    }

    /// Each stripe's part of `pages`, which is one run: the stripe's first chunk or the end of it,
    /// whole chunks, and its last one or the front of that.
    fn parts(&self, pages: PgoffRange) -> impl Iterator<Item = (&Linear, PgoffRange)> {
        let count = self.stripes.len() as u64;
        let chunk_pages = self.chunk.get();
        // How many pages of a stripe lie before a page of the target.
        let before = move |page: u64, stripe: u64| {
            let (row, within) = (page / (chunk_pages * count), page % (chunk_pages * count));
            row * chunk_pages + within.saturating_sub(stripe * chunk_pages).min(chunk_pages)
        };
        self.stripes.iter().zip(0..).filter_map(move |(linear, stripe)| {
            let start = before(pages.start().get(), stripe);
            let nr_pages = NrPages::try_new(before(pages.end(), stripe) - start).ok()?;
            Some((linear, PgoffRange::try_new(Pgoff::try_new(start).ok()?, nr_pages).ok()?))
        })
    }
}

impl Target for Striped {
    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        access_of(self.stripes.iter().map(|stripe| stripe as &dyn Target))
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        let chunk = self.locate(pages);
        self.stripes[chunk.stripe].direct_access(chunk.pages)
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let mut rest = Some(vec);
        while let Some(vec) = rest {
            let chunk = self.locate(vec.pages());
            let (front, behind) = vec.split(chunk.pages.nr_pages());
            self.stripes[chunk.stripe].submit(front.remap(chunk.pages))?;
            rest = behind;
        }
        Ok(())
    }

    fn persist<'a>(&'a self, pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        for (stripe, part) in self.parts(pages) {
            stripe.persist(part, syncs);
        }
    }

    fn leaves<'a>(&'a self, pages: PgoffRange, visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {
        for (stripe, part) in self.parts(pages) {
            stripe.leaves(part, visit);
        }
    }

    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>)) {
        self.stripes.iter().for_each(|stripe| stripe.holders(visit));
    }

    fn markable(&self, visit: &mut dyn FnMut(&Pagemap)) {
        self.stripes.iter().for_each(|stripe| stripe.markable(visit));
    }
}
