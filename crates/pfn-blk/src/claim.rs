// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Claims: pages that a target has to itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use crate::lock::lock;
use crate::page::{Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::store::Access;
use crate::target::Target;

/// Writable pages that another target has to itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{store} is used by another target already, from {at} on")]
pub struct Claimed {
    /// The store.
    pub store: String,
    /// The first of its pages that is.
    pub at: Pgoff,
}

/// The pages of a store that targets have to themselves: the ends of runs, by their starts.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<BTreeMap<u64, u64>>);

impl Claims {
    /// The first of `pages` that is claimed.
    pub(crate) fn first(&self, pages: PgoffRange) -> Option<Pgoff> {
        let runs = lock(&self.0);
        first(&runs, pages)
    }

    /// Whether no target has any of the pages to itself.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    fn add(&self, pages: PgoffRange) -> Result<(), Pgoff> {
        let mut runs = lock(&self.0);
        match first(&runs, pages) {
            Some(at) => Err(at),
            None => {
                runs.insert(pages.start().get(), pages.end());
                Ok(())
            }
        }
    }

    fn remove(&self, pages: PgoffRange) {
        lock(&self.0).remove(&pages.start().get());
    }
}

fn first(runs: &BTreeMap<u64, u64>, pages: PgoffRange) -> Option<Pgoff> {
    let start = pages.start().get();
    let before = runs.range(..=start).next_back().filter(|(_, end)| **end > start);
    match before {
        Some(_) => Some(pages.start()),
        None => {
            let (at, _) = runs.range(start..pages.end()).next()?;
            Pgoff::try_new(*at).ok()
        }
    }
}

/// A run of pages that one target has to itself, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    pagemap: Arc<Pagemap>,
    pages: PgoffRange,
}

impl Claim {
    /// All writable pages beneath `target`. A target that keeps several copies or records of its
    /// own is wrong as soon as anyone else writes to what is beneath it.
    pub(crate) fn all(target: &dyn Target) -> Result<Vec<Self>, Claimed> {
        let mut leaves = Vec::new();
        target.leaves(target.pages(), &mut |pagemap, pages| leaves.push((pagemap, pages)));
        let writable =
            leaves.into_iter().filter(|(pagemap, _)| pagemap.store().access() == Access::ReadWrite);
        let claim = |(pagemap, pages): (&Pagemap, PgoffRange)| match pagemap.claims().add(pages) {
            Ok(()) => Ok(Self { pagemap: pagemap.to_arc(), pages }),
            Err(at) => Err(Claimed { store: pagemap.store().name().to_owned(), at }),
        };
        writable.map(claim).collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.pagemap.claims().remove(self.pages);
    }
}
