// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which chunks of a snapshot lie in its COW store, in memory and written down.

use std::collections::BTreeMap;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::InvalidSnapshot;
use super::header::{CowHeader, Record};
use super::layout::{ENTRIES_PER_PAGE, Layout};
use crate::page::{NrPages, PAGE_BYTES, PgoffRange};
use crate::target::Target;
use crate::target::metadata::{self, InvalidMetadata, check, range};

/// An entry of the map: which chunk of the snapshot the entry's chunk in the COW store stands for.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Entry {
    chunk: U32,
    /// The CRC-32 of all entries up to this one.
    check: U32,
}

/// Where some pages of a snapshot lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the origin, at the same place.
    Origin,
    /// In the COW store, from this page on.
    Cow(u64),
}

/// The chunks that were changed.
#[derive(Debug)]
pub(super) struct Map {
    layout: Layout,
    /// In the order of their chunks in the COW store.
    entries: Vec<Entry>,
    /// Their numbers, by the snapshot's chunk.
    by_chunk: BTreeMap<u32, u32>,
}

fn check_of(before: u32, chunk: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(&chunk.to_le_bytes());
    hasher.finalize()
}

impl Map {
    /// Reads the map of a COW store, made for a snapshot of that size or a smaller one, and what its header says besides; none if the store is blank.
    pub(super) fn load(
        cow: &dyn Target,
        layout: Layout,
    ) -> Result<Option<(Self, Record)>, InvalidSnapshot> {
        let read = |pages| metadata::read(cow, pages).map_err(InvalidMetadata::Read);
        let Some(header) = metadata::load::<CowHeader>(cow, layout.map_page(0))? else {
            return Ok(None);
        };
        let (was, asked) = (header.nr_pages.get(), layout.nr_pages.get());
        if was == 0 || was > asked {
            check("a size", was, asked)?;
        }
        check("chunks", header.chunk.get(), layout.chunk.get())?;
        let mut map = Self::new(layout);
        let count = header.count.get();
        if count > layout.capacity {
            return Err(InvalidSnapshot::CutOff { used: count, capacity: layout.capacity });
        }
        let mut index = 0;
        while index < count {
            let page = read(range(layout.map_page(index), 1))?;
            let entries = <[Entry]>::ref_from_bytes(&page).expect("a page is full of entries");
            for entry in &entries[..page_entries(index, count)] {
                if !map.push_loaded(*entry) {
                    return Err(InvalidSnapshot::Entry(index));
                }
                index += 1;
            }
        }
        if map.check() != header.check.get() {
            return Err(InvalidSnapshot::Entry(count));
        }
        // What follows a part of a chunk in the store was never part of the snapshot.
        let is_cut = was % layout.chunk.get() != 0;
        let last = was / layout.chunk.get();
        if was < asked && is_cut && map.by_chunk.keys().any(|chunk| u64::from(*chunk) == last) {
            check("a size", was, asked)?;
        }
        Ok(Some((map, header.record())))
    }

    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, entries: Vec::new(), by_chunk: BTreeMap::new() }
    }

    /// Takes an entry that was written down, if it is what was written.
    fn push_loaded(&mut self, entry: Entry) -> bool {
        let chunk = entry.chunk.get();
        let good = u64::from(chunk) < self.layout.chunks()
            && entry.check.get() == check_of(self.check(), chunk)
            && !self.by_chunk.contains_key(&chunk);
        if good {
            self.push(chunk);
        }
        good
    }

    /// The chunk `chunk` of the snapshot lies in the next one of the COW store.
    pub(super) fn push(&mut self, chunk: u32) {
        let check = check_of(self.check(), chunk);
        let index = u32::try_from(self.entries.len()).expect("no more than the capacity");
        self.entries.push(Entry { chunk: chunk.into(), check: check.into() });
        self.by_chunk.insert(chunk, index);
    }

    /// Forgets all entries behind the first `count`.
    pub(super) fn truncate(&mut self, count: u64) {
        for entry in self.entries.drain(index(count)..) {
            self.by_chunk.remove(&entry.chunk.get());
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The check of the last entry.
    fn check(&self) -> u32 {
        self.check_at(self.len())
    }

    fn check_at(&self, count: u64) -> u32 {
        index(count).checked_sub(1).map_or(0, |last| self.entries[last].check.get())
    }

    /// The snapshot's chunk that entry `at` stands for.
    pub(super) fn chunk(&self, at: u64) -> u32 {
        self.entries[index(at)].chunk.get()
    }

    /// The header of a map of the first `count` entries.
    pub(super) fn header(&self, count: u64, record: &Record) -> CowHeader {
        CowHeader::new(self.layout.chunk, count, self.check_at(count), record)
    }

    /// The page of the map that has entry `at`, as far as there are entries.
    pub(super) fn page(&self, at: u64) -> Vec<u8> {
        let first = index(at / ENTRIES_PER_PAGE * ENTRIES_PER_PAGE);
        let count = self.entries.len().min(first + index(ENTRIES_PER_PAGE));
        let mut page = self.entries[first..count].as_bytes().to_vec();
        page.resize(PAGE_BYTES, 0);
        page
    }

    /// Where the first of `pages` lies, and how many of them follow it there.
    pub(super) fn place(&self, pages: PgoffRange) -> (Place, NrPages) {
        let chunk = self.layout.chunk.get();
        let first = self.layout.chunk_of(pages.start());
        let within = pages.start().get() % chunk;
        let mut changed = self.by_chunk.range(first..);
        let (place, len) = match changed.next() {
            None => (Place::Origin, u64::MAX),
            Some((next, at)) if *next == first => {
                let at = u64::from(*at);
                let follows = |(ahead, (next, index)): (u64, (&u32, &u32))| {
                    u64::from(*next) == u64::from(first) + ahead && u64::from(*index) == at + ahead
                };
                let wanted = (within + pages.nr_pages().get()).div_ceil(chunk);
                let run = self.layout.run(at).min(wanted);
                let more = (1..run).zip(changed).take_while(|next| follows(*next)).count() as u64;
                (Place::Cow(self.layout.data_page(at) + within), (1 + more) * chunk - within)
            }
            Some((next, _)) => (Place::Origin, u64::from(*next - first) * chunk - within),
        };
        let len = NrPages::try_new(len.min(pages.nr_pages().get()));
        (place, len.expect("a page lies somewhere"))
    }

    /// Entries of the map's pages that have those from `from` up to `to`, one of each page.
    pub(super) fn pages(&self, from: u64, to: u64) -> impl Iterator<Item = u64> + use<> {
        let first = from / ENTRIES_PER_PAGE * ENTRIES_PER_PAGE;
        let step = index(ENTRIES_PER_PAGE);
        (first..to).step_by(step)
    }
}

/// An index, or a count, of entries that are in memory.
fn index(count: u64) -> usize {
    usize::try_from(count).expect("what is in memory can be counted")
}

/// How many of `count` entries stand in the page that starts with entry `first`.
fn page_entries(first: u64, count: u64) -> usize {
    index((count - first).min(ENTRIES_PER_PAGE))
}
