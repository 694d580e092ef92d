// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second, plain reader of COW stores, to hold [`Snapshot`] against.
//!
//! Also used by the fuzz targets.

use std::collections::HashMap;
use std::sync::Arc;

use pfn_blk::{
    BioVec, Buffer, InvalidSnapshot, MemoryStore, NrPages, PfnSpace, Pgoff, Snapshot, Store, Target,
};

const PAGE: usize = 4096;

/// Any bytes, taken for what a COW store is and what was done to it: both readers find the same
/// pages, or both refuse it.
pub(crate) fn check(data: &[u8]) {
    let cow = Cow::new(&mut Data(data));
    let found = cow.open();
    match (found, cow.places()) {
        (Ok(snapshot), Some(places)) => {
            let mut bytes = vec![0; cow.pages * PAGE];
            let vec = BioVec::try_new(snapshot.pages(), Buffer::Read(&mut bytes)).unwrap();
            snapshot.submit(vec).unwrap();
            for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
                let expected = match places.get(&(page / cow.chunk)) {
                    Some(chunk) => &cow.bytes[(chunk * cow.chunk + page % cow.chunk) * PAGE..],
                    None => &[0xee; PAGE],
                };
                assert!(bytes == &expected[..PAGE], "page {page}");
            }
        }
        (Err(_), None) => {}
        (Ok(_), None) => panic!("it was opened, and must not be"),
        (Err(error), Some(_)) => panic!("it is good: {error}"),
    }
}

/// What is left of the data; zeroes behind its end.
struct Data<'a>(&'a [u8]);

impl Data<'_> {
    fn byte(&mut self) -> usize {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                usize::from(*byte)
            }
            None => 0,
        }
    }

    fn word(&mut self) -> usize {
        (self.byte() << 8) | self.byte()
    }
}

/// A snapshot to be, and the bytes of its COW store.
struct Cow {
    /// Pages of the snapshot.
    pages: usize,
    /// Pages of a chunk.
    chunk: usize,
    bytes: Vec<u8>,
}

impl Cow {
    fn new(data: &mut Data<'_>) -> Self {
        let chunk = 1 + data.byte() % 3;
        // Now and then as many as need a second area.
        let is_large = data.byte() == 1;
        let (pages, cow) = if is_large { (530, 540) } else { (1 + data.byte() % 40, 60) };
        let cow = cow - data.byte() % 50;
        let mut this = Self { pages, chunk, bytes: vec![0; cow * PAGE] };
        let count = if is_large { 505 + data.byte() % 30 } else { data.byte() % 16 };
        let mut check = 0;
        for index in 0..count {
            // In order where there are many, so that none comes twice.
            let entry = if is_large { index } else { data.byte() };
            check = crc(check, &u32::try_from(entry).unwrap().to_le_bytes());
            this.put(this.entry(index), &u32::try_from(entry).unwrap().to_le_bytes());
            this.put(this.entry(index) + 4, &check.to_le_bytes());
            let page = this.slot(index) * chunk;
            (page..page + chunk).for_each(|page| this.fill(page, index));
        }
        let said = match data.byte() {
            more @ 1..5 => count + more,
            _ => count,
        };
        this.put(0, b"pfnblkCW");
        let version = 1 + u32::from(data.byte() % 4 != 1);
        this.put(8, &version.to_le_bytes());
        let was = if data.byte() % 4 == 1 { 1 + data.byte() % pages } else { pages };
        this.put(16, &(was as u64).to_le_bytes());
        this.put(24, &(chunk as u64).to_le_bytes());
        this.put(32, &(said as u64).to_le_bytes());
        this.put(40, &check.to_le_bytes());
        if version == 2 && data.byte() % 2 == 0 {
            // The size of its origin, which has nothing else to be told by.
            this.put(44, &1u32.to_le_bytes());
            let origin = pages + usize::from(data.byte() % 8 == 1);
            this.put(64, &(origin as u64).to_le_bytes());
        }
        let damages = data.byte() % 8;
        for _ in 0..damages {
            let place = [0, chunk * PAGE][data.byte() % 2] + data.word() % PAGE;
            this.put(place, &[u8::try_from(data.byte()).unwrap()]);
        }
        if data.byte() % 4 != 1 {
            this.put(12, &[0; 4]);
            let sum = crc(0, &this.bytes[..512]);
            this.put(12, &sum.to_le_bytes());
        }
        match data.byte() {
            1 => this.bytes[..PAGE].fill(0),
            2 => this.put(chunk * PAGE, &[0; 64]),
            _ => {}
        }
        this
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn fill(&mut self, page: usize, index: usize) {
        if let Some(place) = self.bytes.get_mut(page * PAGE..(page + 1) * PAGE) {
            place.fill(u8::try_from(1 + index % 200).unwrap());
        }
    }

    /// The chunk of the store that entry `index` stands for: counted one by one, past the header
    /// and the maps.
    fn slot(&self, index: usize) -> usize {
        let per_map = self.chunk * 512;
        let mut chunk = 1;
        for entry in 0..=index {
            chunk += 1 + usize::from(entry % per_map == 0);
        }
        chunk - 1
    }

    /// Where entry `index` stands.
    fn entry(&self, index: usize) -> usize {
        let per_map = self.chunk * 512;
        let first = index / per_map * per_map;
        (self.slot(first) - 1) * self.chunk * PAGE + (index - first) * 8
    }

    fn number(&self, at: usize, len: usize) -> u64 {
        self.bytes[at..at + len].iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }

    /// Which of the store's chunks the snapshot's chunks lie in; none if the store is no good.
    fn places(&self) -> Option<HashMap<usize, usize>> {
        let chunks = self.bytes.len() / PAGE / self.chunk;
        let header = &self.bytes[..512];
        let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if chunks < 3 {
            return None;
        }
        if is_blank(&self.bytes[..PAGE]) {
            let map = self.chunk * PAGE;
            return is_blank(&self.bytes[map..map + PAGE]).then(HashMap::new);
        }
        let mut summed = header.to_vec();
        summed[12..16].fill(0);
        let is_good = &header[..8] == b"pfnblkCW"
            && (1..=2).contains(&self.number(8, 4))
            && self.number(12, 4) == u64::from(crc(0, &summed))
            && (1..=self.pages as u64).contains(&self.number(16, 8))
            && self.number(24, 8) == self.chunk as u64
            && (self.number(44, 4) == 0
                || self.number(32, 8) == 0
                || self.number(64, 8) == self.pages as u64);
        let mut places = HashMap::new();
        let mut check = 0;
        for index in 0..self.number(32, 8) {
            // A chunk each, so it is over soon whatever the header says.
            let index = usize::try_from(index).ok()?;
            let slot = self.slot(index);
            if !is_good || slot >= chunks {
                return None;
            }
            let at = self.entry(index);
            let chunk = usize::try_from(self.number(at, 4)).unwrap();
            check = crc(check, &self.bytes[at..at + 4]);
            let is_known = places.insert(chunk, slot).is_some();
            let is_there = chunk * self.chunk < self.pages;
            if is_known || !is_there || self.number(at + 4, 4) != u64::from(check) {
                return None;
            }
        }
        // Of a smaller snapshot a part of a chunk may be there, and no more of that.
        let was = usize::try_from(self.number(16, 8)).unwrap_or(0);
        let is_cut = was % self.chunk != 0 && places.contains_key(&(was / self.chunk));
        let fits = was == self.pages || !is_cut;
        (is_good && fits && self.number(40, 4) == u64::from(check)).then_some(places)
    }

    fn open(&self) -> Result<Snapshot, InvalidSnapshot> {
        let nr_pages = |pages: usize| NrPages::try_new(pages as u64).unwrap();
        let mut space = PfnSpace::new();
        let mut store = |bytes: &[u8]| -> Arc<dyn Target> {
            let store = MemoryStore::new("memory", nr_pages(bytes.len() / PAGE)).unwrap();
            store.write(Pgoff::ZERO, bytes).unwrap();
            space.add(Box::new(store)).unwrap()
        };
        let origin = store(&vec![0xee; self.pages * PAGE]);
        let cow = store(&self.bytes);
        Snapshot::open(origin, cow, nr_pages(self.chunk), nr_pages(self.pages))
    }
}

/// CRC-32, a bit at a time.
fn crc(before: u32, bytes: &[u8]) -> u32 {
    let mut crc = !before;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}
