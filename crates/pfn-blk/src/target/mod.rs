// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Targets: what maps a range of pages onto the pages beneath.

mod linear;

use std::fmt;

pub use self::linear::{InvalidLinear, Linear};
use crate::extent::Extent;
use crate::page::{NrPages, PgoffRange};
use crate::persist::SyncSet;

/// A piece of a stack: a [`Pagemap`](crate::Pagemap) at the bottom, a [`Table`](crate::Table) at
/// the top, targets such as [`Linear`] between.
///
/// A caller asks for pages below [`nr_pages`](Self::nr_pages) only; a [`Region`](crate::Region)
/// checks that once, at the top. An implementor answers for all of its pages, in constant or
/// logarithmic time, and the same for as long as it lives.
pub trait Target: fmt::Debug + Send + Sync {
    /// Its size.
    fn nr_pages(&self) -> NrPages;

    /// Where the first of `pages` lies, and how many of them follow it there: at least one, at
    /// most all.
    fn direct_access(&self, pages: PgoffRange) -> Extent<'_>;

    /// Adds to `syncs` every store that must be synced for `pages` to be durable.
    fn persist<'a>(&'a self, pages: PgoffRange, syncs: &mut SyncSet<'a>);
}
