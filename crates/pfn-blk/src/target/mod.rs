// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Targets: what maps a range of pages onto the pages beneath.

mod constant;
mod linear;
mod striped;

use std::fmt;

pub use self::constant::{ErrorTarget, ZeroTarget};
pub use self::linear::{InvalidLinear, Linear};
pub use self::striped::{InvalidStriped, Striped};
use crate::bio::{BioError, BioVec};
use crate::extent::{Extent, NotDirect};
use crate::page::{NrPages, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::SyncSet;

/// A piece of a stack: a [`Pagemap`] at the bottom, a [`Table`](crate::Table) at the top, targets
/// such as [`Linear`] between.
///
/// A caller asks for pages below [`nr_pages`](Self::nr_pages) only; a [`Region`](crate::Region)
/// checks that once, at the top. An implementor answers for all of its pages, and the same for as
/// long as it lives.
pub trait Target: fmt::Debug + Send + Sync {
    /// Its size.
    fn nr_pages(&self) -> NrPages;

    /// Where the first of `pages` lies, and how many of them follow it there: at least one, at
    /// most all. Or that it can't be mapped, and how many of them can't. In constant or logarithmic
    /// time.
    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect>;

    /// Moves data. Pieces of it are done in order, up to the first that fails.
    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError>;

    /// Adds to `syncs` every store that must be synced for `pages` to be durable.
    fn persist<'a>(&'a self, pages: PgoffRange, syncs: &mut SyncSet<'a>);

    /// Names every page of every store that `pages` are made of, in runs, in any order.
    fn leaves<'a>(&'a self, pages: PgoffRange, visit: &mut dyn FnMut(&'a Pagemap, PgoffRange));
}
