// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stores: the leaves of a stack, each an open file with pages behind it.

mod attribute;
mod file;
pub(crate) mod generation;
mod hooked;
mod id;
mod memory;
mod opening;
mod origin;
mod prefetch;
mod records;
mod write_out;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::page::{NrPages, Pgoff};

pub use self::file::{FileStore, InvalidStore, Sizing};
pub use self::hooked::{HookedStore, StoreOperation};
pub use self::id::Id;
pub use self::memory::MemoryStore;
pub use self::origin::{OriginMark, mark_origin, origin_mark, unmark_origin};
pub use self::prefetch::prefetch;
pub(crate) use self::records::LABEL_MAGIC;

/// What may be done with pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads only.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

/// An open file whose page `n` lies at byte `n * 4096`.
///
/// An implementor keeps all of these the same for as long as it lives, and `persist` never returns
/// `Ok` for a write that was complete before the call and isn't durable after it. A caller may map
/// the file shared, within its [`Access`], and must expect a fault where the file shrinks under it.
pub trait Store: fmt::Debug + Send + Sync {
    /// How an operator knows it: a path.
    fn name(&self) -> &str;
    /// Its size.
    fn nr_pages(&self) -> NrPages;
    /// What its pages may be used for.
    fn access(&self) -> Access;
    /// Whether it keeps what was persisted when the machine goes off.
    fn is_persistent(&self) -> bool;
    /// Whether the file was removed, and goes when the store does. Doesn't wait for a disk.
    fn is_removed(&self) -> bool;
    /// Where a mapping of it may begin and end: at multiples of this.
    fn alignment(&self) -> NrPages {
        NrPages::ONE
    }
    /// The open file, for others to map: what they do to it doesn't reach the store itself. A
    /// read-only store's is opened read-only, so that whoever is handed it can't write.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Fills `buffer`, whole pages, from page `at` on.
    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()>;
    /// Stores all of `buffer`, whole pages, from page `at` on. On an error any of it may have been
    /// stored.
    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()>;
    /// Makes every write to the store durable, through whichever mapping it was done.
    ///
    /// After an error the kernel has forgotten what it couldn't write: a later success of the same
    /// call says nothing about it. [`Pagemap::persist`](crate::Pagemap::persist) remembers.
    fn persist(&self) -> io::Result<()>;
    /// The note of that name beside the pages, if there is one. `Unsupported` where none can be kept.
    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Puts `value` in the note's place, or removes it. Durable when it returns. After an error the
    /// note is the old one or the new one.
    fn set_attribute(&self, name: &str, value: Option<&[u8]>) -> io::Result<()>;
    /// The names of all notes. `Unsupported` where none can be kept.
    fn attributes(&self) -> io::Result<Vec<String>>;
    /// What tells the file from a copy of it that has its notes. 0 if nothing does.
    fn identity(&self) -> io::Result<u64>;
}
