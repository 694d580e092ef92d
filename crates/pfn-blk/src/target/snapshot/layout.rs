// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where things lie in a COW store.

use super::InvalidSnapshot;
use crate::page::{InvalidPages, NrPages, PAGE_SIZE};
use crate::target::metadata::range;
use crate::{Pgoff, PgoffRange};

/// Bytes of an entry of the map.
pub(super) const ENTRY_BYTES: u64 = 8;
/// How many of them a page holds.
pub(super) const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / ENTRY_BYTES;
/// The largest chunk. A write to a page of it copies all the others.
const CHUNK_MAX: u64 = 16 << 20 >> 12;

/// The geometry of a snapshot and its COW store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// The snapshot's size.
    pub(super) nr_pages: NrPages,
    /// The size of a chunk.
    pub(super) chunk: NrPages,
    /// How many chunks the COW store has room for.
    pub(super) capacity: u64,
}

impl Layout {
    pub(super) fn try_new(
        nr_pages: NrPages,
        chunk: NrPages,
        cow: NrPages,
    ) -> Result<Self, InvalidSnapshot> {
        if chunk.get() > CHUNK_MAX {
            return Err(InvalidSnapshot::LargeChunk(chunk));
        }
        if nr_pages.get().div_ceil(chunk.get()) > u64::from(u32::MAX) {
            return Err(InvalidSnapshot::SmallChunk(chunk));
        }
        let layout = Self { nr_pages, chunk, capacity: 0 };
        let in_areas = (cow.get() / chunk.get()).saturating_sub(1);
        let (areas, rest) = (in_areas / layout.area(), in_areas % layout.area());
        let capacity = areas * layout.entries_per_area() + rest.saturating_sub(1);
        if capacity == 0 {
            let least = NrPages::try_new(3 * chunk.get()).expect("a chunk is small");
            return Err(InvalidSnapshot::SmallCow { cow, least });
        }
        Ok(Self { capacity: capacity.min(u64::from(u32::MAX)), ..layout })
    }

    /// The size of a COW store that has room for all chunks of a snapshot.
    pub(super) fn ample(nr_pages: NrPages, chunk: NrPages) -> Result<NrPages, InvalidPages> {
        let chunks = nr_pages.get().div_ceil(chunk.get());
        let areas = chunks.div_ceil(chunk.get().saturating_mul(ENTRIES_PER_PAGE));
        NrPages::try_new((1 + areas + chunks).saturating_mul(chunk.get()))
    }

    /// How many chunks the snapshot has; the last one may be shorter.
    pub(super) fn chunks(self) -> u64 {
        self.nr_pages.get().div_ceil(self.chunk.get())
    }

    /// The pages of the snapshot's chunk of that number.
    pub(super) fn chunk_pages(self, chunk: u32) -> PgoffRange {
        let start = u64::from(chunk) * self.chunk.get();
        range(start, self.chunk.get().min(self.nr_pages.get() - start))
    }

    /// The number of the chunk that a page of the snapshot lies in.
    pub(super) fn chunk_of(self, page: Pgoff) -> u32 {
        u32::try_from(page.get() / self.chunk.get()).expect("no more chunks than a u32 counts")
    }

    fn entries_per_area(self) -> u64 {
        self.chunk.get() * ENTRIES_PER_PAGE
    }

    /// How many chunks an area takes, the map's included.
    fn area(self) -> u64 {
        1 + self.entries_per_area()
    }

    /// The first page of the area that has entry `index`.
    fn area_start(self, index: u64) -> u64 {
        (1 + index / self.entries_per_area() * self.area()) * self.chunk.get()
    }

    /// The page of the map that has entry `index`.
    pub(super) fn map_page(self, index: u64) -> u64 {
        self.area_start(index) + index % self.entries_per_area() / ENTRIES_PER_PAGE
    }

    /// The first page of the chunk that belongs to entry `index`.
    pub(super) fn data_page(self, index: u64) -> u64 {
        self.area_start(index) + (1 + index % self.entries_per_area()) * self.chunk.get()
    }

    /// How many entries from `index` on have chunks that lie one behind another, and exist.
    pub(super) fn run(self, index: u64) -> u64 {
        let in_area = self.entries_per_area() - index % self.entries_per_area();
        in_area.min(self.capacity - index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: u64) -> NrPages {
        NrPages::try_new(count).unwrap()
    }

    #[test]
    fn every_page_of_the_cow_store_has_one_use() {
        for chunk in [1, 2, 3] {
            for cow in [3 * chunk, 600, 513 * chunk * chunk + 7, 1100 * chunk * chunk] {
                let layout = Layout::try_new(pages(1 << 20), pages(chunk), pages(cow)).unwrap();
                let mut used = std::collections::HashMap::from([(0, "header".to_owned())]);
                for index in 0..layout.capacity {
                    let map = layout.map_page(index);
                    let uses = format!("map from {}", index / ENTRIES_PER_PAGE);
                    assert_eq!(*used.entry(map).or_insert(uses.clone()), uses);
                    for page in 0..chunk {
                        let page = layout.data_page(index) + page;
                        assert!(page < cow);
                        assert_eq!(used.insert(page, format!("data {index}")), None);
                    }
                    let next = layout.data_page(index + 1) == layout.data_page(index) + chunk;
                    let exists = index + 1 < layout.capacity;
                    assert_eq!(layout.run(index) > 1, next && exists, "{index}");
                }
                // Another chunk would need more room.
                let more = layout.data_page(layout.capacity) + chunk;
                assert!(more > cow, "chunk {chunk}, {cow} pages: {layout:?}");
            }
        }
    }

    #[test]
    fn ample_cow_store_has_room_for_all_chunks_and_no_more() {
        for chunk in [1, 2, 4] {
            for size in [1, 2, 511, 512, 513, 1024, 5000] {
                let cow = Layout::ample(pages(size), pages(chunk)).unwrap();
                let layout = Layout::try_new(pages(size), pages(chunk), cow).unwrap();
                assert_eq!(layout.capacity, layout.chunks(), "{size} pages, chunks of {chunk}");
            }
        }
    }

    #[test]
    fn geometry_that_can_not_be_is_refused() {
        let layout = |nr_pages, chunk, cow| {
            Layout::try_new(pages(nr_pages), pages(chunk), pages(cow)).unwrap_err()
        };
        assert!(matches!(layout(8, 4097, 1 << 20), InvalidSnapshot::LargeChunk(_)));
        assert!(matches!(layout(1 << 33, 1, 1 << 20), InvalidSnapshot::SmallChunk(_)));
        let InvalidSnapshot::SmallCow { least, .. } = layout(8, 4, 11) else { panic!() };
        Layout::try_new(pages(8), pages(4), least).unwrap();
    }
}
