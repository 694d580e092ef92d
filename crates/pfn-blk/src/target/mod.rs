// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Targets: what maps a range of pages onto the pages beneath.

mod constant;
mod linear;
mod metadata;
mod mirror;
mod snapshot;
mod striped;

use std::fmt;

pub use self::constant::{ErrorTarget, ZeroTarget};
pub use self::linear::{InvalidLinear, Linear};
pub use self::metadata::InvalidMetadata;
pub use self::mirror::{
    InSync, InvalidMirror, LegState, Mirror, MirrorLog, MirrorStatus, ReplaceError, leave_mirrors,
};
pub use self::snapshot::{
    BaseChange, CowFile, InvalidSnapshot, MarkedStore, Origins, Snapshot, SnapshotUsage,
    marked_stores,
};
pub use self::striped::{InvalidStriped, Striped};
use crate::bio::{BioError, BioVec};
use crate::extent::{Extent, NotDirect};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::SyncSet;
use crate::store::Access;

/// What may be done with pages of all of `targets`.
pub(crate) fn access_of<'a>(targets: impl IntoIterator<Item = &'a dyn Target>) -> Access {
    let may_write = targets.into_iter().all(|target| target.access() == Access::ReadWrite);
    if may_write { Access::ReadWrite } else { Access::ReadOnly }
}

/// A holder of written pages.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// A store.
    Store(&'a Pagemap),
    /// A mirror, each of whose legs may take the other's place.
    Mirror(&'a Mirror),
}

/// A piece of a stack: a [`Pagemap`] at the bottom, a [`Table`](crate::Table) at the top, targets
/// such as [`Linear`] between.
///
/// A caller asks for pages below [`nr_pages`](Self::nr_pages) only; a [`Region`](crate::Region)
/// checks that once, at the top. An implementor answers for all of its pages, and the same for as
/// long as it lives.
pub trait Target: fmt::Debug + Send + Sync {
    /// Its size.
    fn nr_pages(&self) -> NrPages;

    /// All of its pages.
    fn pages(&self) -> PgoffRange {
        PgoffRange::try_new(Pgoff::ZERO, self.nr_pages()).expect("a size is a valid range")
    }

    /// What may be done with its pages: with all of them, if they may be written.
    fn access(&self) -> Access;

    /// Where the first of `pages` lies, and how many of them follow it there: at least one, at
    /// most all. Or that it can't be mapped, and how many of them can't. In constant or logarithmic
    /// time.
    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect>;

    /// Moves data. Pieces of it are done in order, up to the first that fails.
    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError>;

    /// Adds to `syncs` all that must be synced for `pages` to be durable.
    fn persist<'a>(&'a self, pages: PgoffRange, syncs: &mut SyncSet<'a>);

    /// Names every page of every store that `pages` are made of, in runs, in any order. Pages that
    /// a target below has to itself are not named: nobody else can get at them.
    fn leaves<'a>(&'a self, pages: PgoffRange, visit: &mut dyn FnMut(&'a Pagemap, PgoffRange));

    /// Names what a write may write to, in an order that stays, one more than once if it is used so:
    /// what they hold is what the target shows, as far as that can change. Not the stores of a
    /// snapshot's origin, which its COW store is tied to.
    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>));

    /// Names the stores that may be marked as origins once a snapshot is taken of the target: its
    /// [`holders`](Self::holders), and in the place of a mirror, those of its legs that have
    /// everything.
    fn markable(&self, visit: &mut dyn FnMut(&Pagemap));
}
