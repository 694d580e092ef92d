// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header of a COW store.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::base::Base;
use super::layout::Layout;
use crate::page::{NrPages, PAGE_BYTES};
use crate::store::Id;
use crate::target::metadata::{self, Header};

/// What the header says. The entries it counts are good, those behind are not there.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct CowHeader {
    pub(super) nr_pages: U64,
    pub(super) chunk: U64,
    /// How many entries the map has.
    pub(super) count: U64,
    /// The check of the last one.
    pub(super) check: U32,
    /// Whether `base` says anything.
    has_base: U32,
    /// Which COW store this is. Blank in version 1, as all that follows.
    id: [u8; 16],
    base_pages: U64,
    base_generation: [u8; 16],
    base_modified: U64,
    /// The generation that a merge gives the base.
    next: [u8; 16],
    /// Whether a merge ever began.
    has_merged: U32,
}

impl Header for CowHeader {
    const MAGIC: [u8; 8] = *b"pfnblkCW";
    const VERSION: u32 = 2;
    const OLDEST: u32 = 1;
    const WHAT: &'static str = "COW store";
}

/// What the header says besides the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// The size of the snapshot, in pages.
    pub(super) nr_pages: u64,
    /// Which COW store this is. None until it has a header of version 2.
    pub(super) id: Option<Id>,
    /// What it is kept over.
    pub(super) base: Option<Base>,
    /// A merge into the base has begun, which gives it this generation.
    pub(super) next: Option<Id>,
    /// A merge has begun at some time, done since or not: the base may hold what it didn't when the
    /// store was made.
    pub(super) has_merged: bool,
}

impl Record {
    /// What the next header says of a store whose header was this one: it has an id.
    pub(super) fn new(was: Option<Self>, layout: Layout) -> io::Result<Self> {
        let id = was.and_then(|was| was.id).map_or_else(Id::random, Ok)?;
        let has_merged = was.is_some_and(|was| was.has_merged);
        Ok(Self {
            nr_pages: layout.nr_pages.get(),
            id: Some(id),
            base: None,
            next: None,
            has_merged,
        })
    }
}

impl CowHeader {
    pub(super) fn new(chunk: NrPages, count: u64, check: u32, record: &Record) -> Self {
        let bytes = |id: Option<Id>| id.map_or([0; 16], Id::to_bytes);
        let base = record.base.unwrap_or_default();
        Self {
            nr_pages: record.nr_pages.into(),
            chunk: chunk.get().into(),
            count: count.into(),
            check: check.into(),
            has_base: u32::from(record.base.is_some()).into(),
            id: bytes(record.id),
            base_pages: base.pages.into(),
            base_generation: bytes(base.generation),
            base_modified: base.modified.into(),
            next: bytes(record.next),
            has_merged: u32::from(record.has_merged).into(),
        }
    }

    pub(super) fn record(&self) -> Record {
        let base = Base {
            pages: self.base_pages.get(),
            generation: Id::from_bytes(self.base_generation),
            modified: self.base_modified.get(),
        };
        let next = Id::from_bytes(self.next);
        Record {
            nr_pages: self.nr_pages.get(),
            id: Id::from_bytes(self.id),
            base: (self.has_base.get() != 0).then_some(base),
            next,
            // Earlier headers say so for as long as the merge lasts.
            has_merged: self.has_merged.get() != 0 || next.is_some(),
        }
    }
}

/// A COW store as its file tells, without what it is kept over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CowFile {
    /// The size of what it shows.
    pub nr_pages: NrPages,
    /// The size of a chunk.
    pub chunk: NrPages,
    /// How many chunks are in use.
    pub used: u64,
    /// Which COW store it is.
    pub id: Option<Id>,
    /// Whether a merge into its base has begun at some time.
    pub has_merged: bool,
}

impl CowFile {
    /// What the file at `path` says, which another process may have in use; none if it isn't a COW
    /// store, or can't be read.
    pub fn read(path: &Path) -> Option<Self> {
        // A FIFO would have us wait.
        let is_file = std::fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() || metadata.file_type().is_block_device());
        let mut page = [0; PAGE_BYTES];
        File::open(path).ok().filter(|_| is_file)?.read_exact_at(&mut page, 0).ok()?;
        let header = metadata::decode::<CowHeader>(&page).ok()??;
        Some(Self {
            nr_pages: NrPages::try_new(header.nr_pages.get()).ok()?,
            chunk: NrPages::try_new(header.chunk.get()).ok()?,
            used: header.count.get(),
            id: header.record().id,
            has_merged: header.record().has_merged,
        })
    }
}
