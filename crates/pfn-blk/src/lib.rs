// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Persistent memory named by page frame numbers.
//!
//! # Model
//!
//! A [store](Store) owns an open file with pages behind it. A [`PfnSpace`] gives it a run of pfns,
//! once and for ever; store and run together are a [`Pagemap`]. [Targets](Target) map a range of
//! pages onto what is beneath them, and stack; a [`Table`] joins targets to one run of pages. The
//! root of a stack, checked as a whole, is a [`Region`]: what a guest sees as one device.
//!
//! Three questions travel down a stack. [`Region::direct_access`] asks where pages lie, so that
//! someone can map them and load and store without us; the answer is an [`Extent`]. A [`Bio`]
//! reads or writes them, also where they can't be mapped. [`Region::persist`] makes what was
//! stored durable.
//!
//! ```
//! use std::sync::Arc;
//! use pfn_blk::{NrPages, Pgoff, PgoffRange, Region, StoreSet, table};
//!
//! # let dir = tempfile::tempdir()?;
//! # let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
//! # std::fs::write(&a, vec![0; 8192])?;
//! # std::fs::write(&b, vec![0; 8192])?;
//! // Two files of 8 KiB, in stripes of one page.
//! let text = format!("0 32 striped 2 8 {} 0 {} 0", a.display(), b.display());
//! let opened = StoreSet::default().open_table(&table::parse(&text)?)?;
//! let region = Region::try_new(Arc::new(opened.table))?;
//!
//! let page = PgoffRange::try_new(Pgoff::try_new(1)?, NrPages::ONE)?;
//! region.write(page, &[7; 4096])?;
//! region.persist(page)?;
//! assert_eq!(std::fs::read(&b)?[0], 7);
//!
//! for (start, extent) in region.extents(region.pages())? {
//!     // Whoever maps the pages holds the lease meanwhile.
//!     let lease = extent?.lease()?;
//!     println!("{start}: {:?} at byte {}", lease.fd(), lease.pgoff().bytes());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Lifetimes
//!
//! An [`Extent`] is a finding, true when it was made. Whoever uses pfns beyond a call holds a
//! [`Lease`]: a frontend's mapping, an [`SgList`] of pinned runs for long-lived I/O, a [`Kmap`] of
//! pages mapped for the CPU. [`PfnSpace::disable`] ends the use of a store: nothing new begins,
//! holders are told, all are waited for. As no pfn is ever handed out again, whatever comes after
//! with an old one fails, and never meets another store's bytes.
//!
//! # When something fails
//!
//! A bio fails with the error of the layer that failed, and is done up to there. A sync that failed
//! is never forgotten: the store fails every later one. A [`Mirror`] goes on without a leg that
//! fails; a [`Snapshot`] whose COW store is full fails the writes that need more of it. What either
//! writes down about itself is checksummed: if it is damaged it is refused, with what is wrong.
//!
//! # Invariants
//!
//! - A pfn is handed out once in the life of a space. A stale one is recognised, never another's.
//! - The extents of a range tile it: every page once, in order.
//! - A writable page is used once in a region, and by nobody but the mirror or snapshot above it.
//! - A bio ends exactly once.
//! - `persist` succeeds only if everything written before it is durable; once it failed for a
//!   store it fails for that store for ever.
//! - Whatever a persist has answered for is there after a crash at any point, and every other
//!   sector holds what it held then, or something that was written to it since.
//!
//! # Catalogue
//!
//! | Kind | Name | What it is | Direct |
//! |---|---|---|---|
//! | store | [`FileStore`] | a regular file on any filesystem, or a block device | yes |
//! | store | [`MemoryStore`] | anonymous memory, gone with the process | yes |
//! | store | [`HookedStore`] | any store, with a hook before each operation, for fault injection | yes |
//! | target | [`Linear`] | a run of the pages beneath, in order | as what is beneath |
//! | target | [`Striped`] | chunks dealt to several targets in turn | as what is beneath, a chunk at a time |
//! | target | [`Mirror`] | the same pages on several legs, with a write-intent log | no |
//! | target | [`Snapshot`] | an origin that isn't written, and a COW store of what is | no |
//! | target | [`ZeroTarget`] | reads as zeroes, forgets what is written | no |
//! | target | [`ErrorTarget`] | fails everything | no |
//! | target | [`Table`] | targets one behind another | as what is beneath |

mod bio;
mod claim;
mod extent;
mod lease;
mod lock;
mod page;
mod pagemap;
mod persist;
mod region;
mod sg;
mod space;
mod store;
pub mod table;
mod target;
#[cfg(test)]
mod testing;
mod usage;

pub use bio::{Bio, BioError, BioVec, Buffer, Direction};
pub use claim::Claimed;
pub use extent::{Extent, NotDirect, NotDirectReason};
pub use lease::{Lease, StoreDisabled};
pub use page::{
    InvalidPages, NrPages, PAGE_SHIFT, PAGE_SIZE, PAGES_MAX, PageIndex, PageRange, Pfn, PfnRange,
    Pgoff, PgoffRange,
};
pub use pagemap::Pagemap;
pub use persist::{PersistError, SyncPoint, SyncSet};
pub use region::{InvalidRegion, OutOfRange, Region};
pub use sg::{AccessError, Kmap, KmapError, SgList};
pub use space::{DisableError, PfnSpace};
pub use store::{
    Access, FileStore, HookedStore, Id, InvalidStore, MemoryStore, OriginMark, Sizing, Store,
    StoreOperation, mark_origin, origin_mark, prefetch, unmark_origin,
};
pub use table::{InvalidTable, StoreSet, Table};
pub use target::{
    BaseChange, CowFile, ErrorTarget, Holder, InSync, InvalidLinear, InvalidMetadata,
    InvalidMirror, InvalidSnapshot, InvalidStriped, LegState, Linear, MarkedStore, Mirror,
    MirrorLog, MirrorStatus, Origins, ReplaceError, Snapshot, SnapshotUsage, Striped, Target,
    ZeroTarget, leave_mirrors, marked_stores,
};
