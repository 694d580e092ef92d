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
//! Two questions travel down a stack. [`Region::direct_access`] asks where pages lie, so that
//! someone can map them and load and store without us; the answer is an [`Extent`].
//! [`Region::persist`] makes what was stored durable.
//!
//! ```
//! use std::sync::Arc;
//! use pfn_blk::{Region, StoreSet, table};
//!
//! # let dir = tempfile::tempdir()?;
//! # let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
//! # std::fs::write(&a, vec![0; 8192])?;
//! # std::fs::write(&b, vec![0; 8192])?;
//! // Two files of 8 KiB, joined.
//! let text = format!("0 16 linear {} 0\n16 16 linear {} 0", a.display(), b.display());
//! let table = StoreSet::default().open_table(&table::parse(&text)?)?;
//! let region = Region::try_new(Arc::new(table))?;
//!
//! for (start, extent) in region.extents(region.pages())? {
//!     println!("{start}: {} at byte {} of {:?}", extent.nr_pages(), extent.pgoff().bytes(), extent.fd());
//! }
//! region.persist(region.pages())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//!
//! - A pfn is handed out once in the life of a space. A stale one is recognised, never another's.
//! - The extents of a range tile it: every page once, in order.
//! - A writable page appears in a region once.
//! - `persist` succeeds only if everything written before it is durable; once it failed for a
//!   store it fails for that store for ever.
//!
//! # Catalogue
//!
//! | Kind | Name | What it is |
//! |---|---|---|
//! | store | [`FileStore`] | a regular file on any filesystem |
//! | target | [`Linear`] | a run of the pages beneath, in order |
//! | target | [`Table`] | targets one behind another |

mod extent;
mod page;
mod pagemap;
mod persist;
mod region;
mod space;
mod store;
pub mod table;
mod target;
#[cfg(test)]
mod testing;

pub use extent::Extent;
pub use page::{
    InvalidPages, NrPages, PAGE_SHIFT, PAGE_SIZE, PAGES_MAX, PageIndex, PageRange, Pfn, PfnRange,
    Pgoff, PgoffRange,
};
pub use pagemap::Pagemap;
pub use persist::{PersistError, SyncSet};
pub use region::{InvalidRegion, OutOfRange, Region};
pub use space::PfnSpace;
pub use store::{Access, FileStore, InvalidStore, Sizing, Store};
pub use table::{InvalidTable, StoreSet, Table};
pub use target::{InvalidLinear, Linear, Target};
