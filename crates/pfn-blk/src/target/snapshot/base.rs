// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What ties a COW store to what it is kept over.
//!
//! Chunks that were never written are read from the base, so another one, or the same one written
//! since, makes a mixture of two states that never was. The header says which base it was, and a
//! base that differs is refused.

use std::io;
use std::time::{Duration, SystemTime};

use rustix::fs::fstat;
use thiserror::Error;

use crate::pagemap::Pagemap;
use crate::store::generation::{self, Content};
use crate::store::{Id, OriginMark, Store, origin_mark};
use crate::target::Target;

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
    #[error("it has {is} pages, and had {was}")]
    Size {
        /// The pages of its stores when the COW store was made.
        was: u64,
        /// The pages that they have now.
        is: u64,
    },
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
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or_else(String::new, |since| format!(", at {}", utc(since)))
}

/// A time since 1970, as RFC 3339 has it.
fn utc(since: Duration) -> String {
    let (days, seconds) = (since.as_secs() / 86400, since.as_secs() % 86400);
    // "Euclidean affine functions and their application to calendar algorithms", Neri and Schneider:
    // years begin in March, eras have 400 of them.
    let from_march = days + 719_468;
    let (era, day) = (from_march / 146_097, from_march % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
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

/// The stores of `target`, each once.
fn stores(target: &dyn Target) -> Vec<&Pagemap> {
    let mut stores: Vec<&Pagemap> = Vec::new();
    target.stores(&mut |store| {
        if !stores.iter().any(|known| std::ptr::eq(*known, store)) {
            stores.push(store);
        }
    });
    stores
}

impl Found {
    /// What `origin` is. Its stores get generations if they `may_begin`.
    pub(super) fn of(origin: &dyn Target, may_begin: bool) -> Result<Self, NotTold> {
        let mut found = Self { base: Base::default(), generations: Vec::new(), modified: None };
        let mut have_all = true;
        for store in stores(origin).into_iter().map(Pagemap::store) {
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
        let may_have_grown = next.is_some() && is.pages > made_for.pages;
        if is.pages != made_for.pages && !may_have_grown {
            return Err(BaseChange::Size { was: made_for.pages, is: is.pages });
        }
        let is_merged_into = next.is_some_and(|next| self.generations.contains(&next));
        if let (Some(was), Some(generation)) = (made_for.generation, is.generation) {
            if was != generation && !is_merged_into {
                return Err(BaseChange::Written);
            }
        }
        if next.is_none()
            && made_for.modified != is.modified
            && made_for.modified.min(is.modified) != 0
        {
            return Err(BaseChange::Modified(self.modified));
        }
        Ok(())
    }
}

/// Gives all stores of `origin` the generation `next`: a merge is about to write to them.
pub(super) fn move_on(origin: &dyn Target, next: Id) -> Result<(), NotTold> {
    stores(origin)
        .into_iter()
        .map(Pagemap::store)
        .try_for_each(|store| generation::move_on_to(store.fd(), next).map_err(NotTold::by(store)))
}

/// Whether what is written to `target` may be found by another process: not if all of it is anonymous
/// memory.
pub(super) fn outlives(target: &dyn Target) -> Result<bool, NotTold> {
    let stores = stores(target);
    // Those of a mirror aren't named.
    let mut outlives = stores.is_empty();
    for store in stores.into_iter().map(Pagemap::store) {
        let stat = fstat(store.fd()).map_err(|errno| NotTold::by(store)(errno.into()))?;
        outlives |= stat.st_nlink > 0;
    }
    Ok(outlives)
}

/// The first store of `target` that is marked as an origin.
pub(super) fn marked(target: &dyn Target) -> Result<Option<MarkedStore>, NotTold> {
    for store in stores(target).into_iter().map(Pagemap::store) {
        if let Some(mark) = origin_mark(store.fd()).map_err(NotTold::by(store))? {
            return Ok(Some(MarkedStore { store: store.name().to_owned(), mark }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_written_as_in_a_log() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_798_861, "2026-11-27T17:01:01Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), expected);
        }
    }
}
