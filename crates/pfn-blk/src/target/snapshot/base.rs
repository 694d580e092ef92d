// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What ties a COW store to what it is kept over.
//!
//! Chunks that were never written are read from the base, so another one, or the same one written
//! since, makes a mixture of two states that never was. The header says which base it was, and a
//! base that differs is refused.

use std::io;
use std::ptr;
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use rustix::fs::fstat;
use thiserror::Error;

use super::InvalidSnapshot;
use crate::page::PAGE_SIZE;
use crate::store::generation::{self, Content};
use crate::store::{Id, OriginMark, Store, origin_mark};
use crate::target::{Holder, Target};

/// A base as a header describes it: its stores, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Base {
    /// The size of the stores.
    pub(super) pages: u64,
    /// None if there is a store that has none.
    pub(super) generation: Option<Id>,
    /// When the stores were last modified, in nanoseconds since 1970; mixed, of several. Zero if
    /// that isn't known.
    pub(super) modified: u64,
}

/// How a base differs from the one that a COW store was made for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BaseChange {
    /// It is larger or smaller.
    #[error("it has {} bytes, and had {}", .is * PAGE_SIZE, .was * PAGE_SIZE)]
    Size {
        /// The pages of its stores when the COW store was made.
        was: u64,
        /// The pages that they have now.
        is: u64,
    },
    /// A mirror has no stores of its own to compare.
    #[error("the changes were made over a mirror, and this isn't one, or the other way round")]
    Mirror,
    /// This library opened it for writing, or merged something into it.
    #[error(
        "since then it was served by itself and written, or another overlay was merged into it"
    )]
    Written,
    /// Another program has written it, or put another file in its place.
    #[error("another program has written it{}", at(*.0))]
    Modified(Option<SystemTime>),
}

/// When, for an error.
fn at(time: Option<SystemTime>) -> String {
    time.map_or_else(String::new, |time| format!(", at {}", format_rfc3339_seconds(time)))
}

/// A store of a base whose changes are kept somewhere else, by its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedStore {
    /// The store.
    pub store: String,
    /// What it is marked with.
    pub mark: OriginMark,
}

/// A store that can't tell what it holds.
#[derive(Debug)]
pub(super) struct NotTold {
    pub(super) store: String,
    pub(super) source: io::Error,
}

impl NotTold {
    fn by(store: &dyn Store) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { store: store.name().to_owned(), source }
    }
}

/// A base as it is now.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) base: Base,
    /// Of each store that has one.
    generations: Vec<Id>,
    modified: Option<SystemTime>,
}

/// Returns what holds the pages of `target`, each once.
fn holders(target: &dyn Target) -> Vec<Holder<'_>> {
    let mut holders: Vec<Holder<'_>> = Vec::new();
    target.holders(&mut |holder| {
        let is_it = |known: &Holder<'_>| match (known, holder) {
            (Holder::Store(known), Holder::Store(store)) => ptr::eq(*known, store),
            (Holder::Mirror(known), Holder::Mirror(mirror)) => ptr::eq(*known, mirror),
            _ => false,
        };
        if !holders.iter().any(is_it) {
            holders.push(holder);
        }
    });
    holders
}

impl Found {
    /// What `origin` is. Its stores get generations if they `may_begin`.
    pub(super) fn of(origin: &dyn Target, may_begin: bool) -> Result<Self, NotTold> {
        let mut found = Self { base: Base::default(), generations: Vec::new(), modified: None };
        let mut have_all = true;
        for holder in holders(origin) {
            let store = match holder {
                Holder::Store(pagemap) => pagemap.store(),
                Holder::Mirror(mirror) => {
                    // Sizes and times differ from leg to leg.
                    found.generations.push(mirror.tie());
                    continue;
                }
            };
            found.base.pages += store.nr_pages().get();
            let content = Content::of(store.fd(), may_begin).map_err(NotTold::by(store))?;
            let generation = content.and_then(|content| content.generation);
            have_all &= generation.is_some();
            found.generations.extend(generation);
            let modified = content.and_then(|content| content.modified);
            let since = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let nanoseconds = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
            found.base.modified = found.base.modified.rotate_left(7) ^ nanoseconds.unwrap_or(0);
            found.modified = found.modified.max(modified);
        }
        if have_all {
            found.base.generation = Id::of_all(found.generations.iter().copied());
        }
        Ok(found)
    }

    /// That it is the base `made_for`. A merge that gives it the generation `next` may have begun,
    /// and have written to it.
    pub(super) fn check(&self, made_for: Base, next: Option<Id>) -> Result<(), BaseChange> {
        let is = self.base;
        if (is.pages == 0) != (made_for.pages == 0) {
            return Err(BaseChange::Mirror);
        }
        let may_have_grown = next.is_some() && is.pages > made_for.pages;
        if is.pages != made_for.pages && !may_have_grown {
            return Err(BaseChange::Size { was: made_for.pages, is: is.pages });
        }
        let has_both = made_for.generation.is_some() && is.generation.is_some();
        if has_both && !self.has_generation(made_for, next) {
            return Err(BaseChange::Written);
        }
        if next.is_none()
            && made_for.modified != is.modified
            && made_for.modified.min(is.modified) != 0
        {
            return Err(BaseChange::Modified(self.modified));
        }
        Ok(())
    }

    /// Returns whether it has the generation of `base`, or the one that a merge gives it.
    pub(super) fn has_generation(&self, base: Base, next: Option<Id>) -> bool {
        let is_merged_into = next.is_some_and(|next| self.generations.contains(&next));
        is_merged_into || (base.generation.is_some() && base.generation == self.base.generation)
    }
}

/// Gives all that holds `origin` the generation `next`, before a merge writes to it.
pub(super) fn move_on(origin: &dyn Target, next: Id) -> Result<(), NotTold> {
    holders(origin).into_iter().try_for_each(|holder| match holder {
        Holder::Store(pagemap) => {
            let store = pagemap.store();
            generation::move_on_to(store.fd(), next).map_err(NotTold::by(store))
        }
        Holder::Mirror(mirror) => mirror.move_on_to(next).map_err(|error| NotTold {
            store: "the mirror".to_owned(),
            source: io::Error::other(error),
        }),
    })
}

/// Whether what is written to `target` may be found by another process: not if all of it is anonymous
/// memory.
pub(super) fn outlives(target: &dyn Target) -> Result<bool, NotTold> {
    let holders = holders(target);
    let mut outlives = holders.is_empty();
    for holder in holders {
        let Holder::Store(pagemap) = holder else { return Ok(true) };
        let store = pagemap.store();
        let stat = fstat(store.fd()).map_err(|errno| NotTold::by(store)(errno.into()))?;
        outlives |= stat.st_nlink > 0;
    }
    Ok(outlives)
}

/// The first store of `target` that is marked as an origin.
pub(super) fn marked(target: &dyn Target) -> Result<Option<MarkedStore>, NotTold> {
    Ok(all_marked(target)?.into_iter().next())
}

fn all_marked(target: &dyn Target) -> Result<Vec<MarkedStore>, NotTold> {
    let mut found: Result<Vec<MarkedStore>, NotTold> = Ok(Vec::new());
    target.markable(&mut |pagemap| {
        let Ok(marked) = &mut found else { return };
        let store = pagemap.store();
        match origin_mark(store.fd()) {
            Ok(Some(mark)) => marked.push(MarkedStore { store: store.name().to_owned(), mark }),
            Ok(None) => {}
            Err(error) => found = Err(NotTold::by(store)(error)),
        }
    });
    found
}

/// Returns the stores of `target` that are marked as origins. Of a mirror only current legs count, if
/// they can be marked: the mark of another leg may be out of date.
pub fn marked_stores(target: &dyn Target) -> Result<Vec<MarkedStore>, InvalidSnapshot> {
    Ok(all_marked(target)?)
}
