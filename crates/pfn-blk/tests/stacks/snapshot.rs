// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots: what is kept, what is full, what is merged, and what is damaged.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pfn_blk::{
    Access, BioError, CowFile, FileStore, InvalidMetadata, InvalidSnapshot, NrPages, PfnSpace,
    Region, Snapshot, Table, Target, ZeroTarget,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::cow_oracle;
use crate::model::{cases, fill, range};
use crate::stack::nr_pages;

/// An origin of 16 pages, each filled with its number, and a COW store, as files.
struct Files(tempfile::TempDir);

const PAGES: u64 = 16;
/// Pages of a chunk.
const CHUNK: u64 = 2;

impl Files {
    /// With room for so many chunks.
    fn new(chunks: u64) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        std::fs::write(files.origin(), original()).unwrap();
        std::fs::write(files.cow(), []).unwrap();
        files.resize_cow((2 + chunks) * CHUNK);
        files
    }

    fn origin(&self) -> PathBuf {
        self.0.path().join("origin")
    }

    fn cow(&self) -> PathBuf {
        self.0.path().join("cow")
    }

    fn resize_cow(&self, pages: u64) {
        let cow = std::fs::File::options().write(true).open(self.cow()).unwrap();
        cow.set_len(pages * 4096).unwrap();
    }

    fn try_open(
        &self,
        origin: Access,
        chunk: u64,
        pages: u64,
    ) -> Result<(Arc<Snapshot>, Region), InvalidSnapshot> {
        let mut space = PfnSpace::new();
        let mut store = |path: PathBuf, access| {
            let store = FileStore::open(&path, access).unwrap();
            space.add(Box::new(store)).unwrap() as Arc<dyn Target>
        };
        let origin = store(self.origin(), origin);
        let cow = store(self.cow(), Access::ReadWrite);
        let snapshot = Arc::new(Snapshot::open(origin, cow, nr_pages(chunk), nr_pages(pages))?);
        let region = Region::try_new(Arc::clone(&snapshot) as Arc<dyn Target>).unwrap();
        Ok((snapshot, region))
    }

    fn open(&self) -> (Arc<Snapshot>, Region) {
        self.try_open(Access::ReadOnly, CHUNK, PAGES).unwrap()
    }

    fn refusal(&self, chunk: u64, pages: u64) -> InvalidSnapshot {
        self.try_open(Access::ReadOnly, chunk, pages).unwrap_err()
    }
}

fn original() -> Vec<u8> {
    fill(&(0..u8::try_from(PAGES).unwrap()).collect::<Vec<_>>())
}

pub(crate) fn read(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(region.nr_pages().bytes()).unwrap()];
    region.read(region.pages(), &mut bytes).unwrap();
    bytes
}

pub(crate) fn write(region: &Region, page: u64, bytes: &[u8]) -> Result<(), BioError> {
    region.write(range(page, bytes.len() as u64), &fill(bytes))
}

/// The original with some pages changed.
fn changed(pages: &[(u64, u8)]) -> Vec<u8> {
    let mut bytes = original();
    for &(page, byte) in pages {
        let at = usize::try_from(page * 4096).unwrap();
        bytes[at..at + 4096].fill(byte);
    }
    bytes
}

#[test]
fn changes_are_kept_and_the_origin_is_not_touched() {
    let files = Files::new(8);
    let (snapshot, region) = files.open();
    assert_eq!(read(&region), original());
    write(&region, 3, &[0xa1]).unwrap();
    write(&region, 7, &[0xa2, 0xa3, 0xa4]).unwrap();
    let expected = changed(&[(3, 0xa1), (7, 0xa2), (8, 0xa3), (9, 0xa4)]);
    assert_eq!(read(&region), expected);
    assert_eq!(snapshot.usage().used, 3);
    region.persist(region.pages()).unwrap();
    drop((snapshot, region));

    assert_eq!(std::fs::read(files.origin()).unwrap(), original());
    let (snapshot, region) = files.open();
    let usage = snapshot.usage();
    assert_eq!((usage.used, usage.capacity, usage.chunk.get()), (3, 8, CHUNK));
    assert_eq!(read(&region), expected);
    drop((snapshot, region));
    // Without the changes there is the origin.
    std::fs::write(files.cow(), vec![0; 20 * 4096]).unwrap();
    assert_eq!(read(&files.open().1), original());
}

#[test]
fn write_of_what_is_there_takes_no_chunk() {
    let files = Files::new(1);
    let (snapshot, region) = files.open();
    let all: Vec<_> = (0..u8::try_from(PAGES).unwrap()).collect();
    // Whole chunks, and a half of one.
    write(&region, 0, &all).unwrap();
    write(&region, 5, &[5]).unwrap();
    assert_eq!(snapshot.usage().used, 0);
    // One page of it is another, in the second of two chunks.
    write(&region, 2, &[2, 3, 4, 0xa5]).unwrap();
    assert_eq!(snapshot.usage().used, 1);
    // That one is written from now on, also with what the origin has; and a full store takes what
    // takes no room.
    write(&region, 4, &[4, 5]).unwrap();
    write(&region, 8, &[8]).unwrap();
    assert_eq!(read(&region), original());
    assert!(matches!(write(&region, 8, &[0xa8]), Err(BioError::Full { chunks: 1 })));
}

#[test]
fn full_store_fails_writes_and_keeps_what_it_has() {
    let files = Files::new(2);
    let (snapshot, region) = files.open();
    write(&region, 0, &[0xa1]).unwrap();
    // Of two chunks the first still fits.
    let error = write(&region, 4, &[0xa2, 0xa3, 0xa4, 0xa5]).unwrap_err();
    assert!(matches!(error, BioError::Full { chunks: 2 }), "{error:?}");
    let error = write(&region, 15, &[0xa6]).unwrap_err();
    assert!(matches!(error, BioError::Full { chunks: 2 }), "{error:?}");
    // What has its chunk can be written still.
    write(&region, 1, &[0xa7]).unwrap();
    let expected = changed(&[(0, 0xa1), (1, 0xa7), (4, 0xa2), (5, 0xa3)]);
    assert_eq!(read(&region), expected);
    assert_eq!((snapshot.usage().used, snapshot.usage().capacity), (2, 2));
    region.persist(region.pages()).unwrap();
    drop((snapshot, region));
    assert_eq!(read(&files.open().1), expected);

    files.resize_cow(100);
    let (snapshot, region) = files.open();
    assert_eq!(snapshot.usage().capacity, PAGES / CHUNK);
    write(&region, 15, &[0xa6]).unwrap();
    region.persist(region.pages()).unwrap();
    drop((snapshot, region));
    let (_, region) = files.open();
    assert_eq!(read(&region)[15 * 4096..], [0xa6; 4096]);
}

#[test]
fn merge_brings_changes_to_the_origin_and_frees_the_store() {
    let files = Files::new(8);
    let (snapshot, region) = files.try_open(Access::ReadWrite, CHUNK, PAGES).unwrap();
    write(&region, 3, &[0xa1, 0xa2]).unwrap();
    region.persist(region.pages()).unwrap();
    write(&region, 14, &[0xa3]).unwrap();
    assert_eq!(snapshot.merge(u64::MAX).unwrap(), 3);
    assert_eq!(snapshot.usage().used, 0);
    let expected = changed(&[(3, 0xa1), (4, 0xa2), (14, 0xa3)]);
    assert_eq!(read(&region), expected);
    assert_eq!(snapshot.merge(u64::MAX).unwrap(), 0);
    write(&region, 0, &[0xa4]).unwrap();
    region.persist(region.pages()).unwrap();
    drop((snapshot, region));
    assert_eq!(std::fs::read(files.origin()).unwrap(), expected);
    let (snapshot, region) = files.open();
    assert_eq!(snapshot.usage().used, 1);
    assert_eq!(read(&region)[..4096], [0xa4; 4096]);
}

#[test]
fn merge_into_an_origin_that_is_read_only_fails_and_loses_nothing() {
    let files = Files::new(8);
    let (snapshot, region) = files.open();
    write(&region, 3, &[0xa1]).unwrap();
    assert!(matches!(snapshot.merge(u64::MAX), Err(BioError::ReadOnly { .. })));
    assert_eq!(read(&region), changed(&[(3, 0xa1)]));
    region.persist(region.pages()).unwrap();
    drop((snapshot, region));
    assert_eq!(read(&files.open().1), changed(&[(3, 0xa1)]));
}

#[test]
fn snapshot_of_other_geometry_is_refused() {
    let files = Files::new(8);
    let (_, region) = files.open();
    write(&region, 3, &[0xa1]).unwrap();
    region.persist(region.pages()).unwrap();
    drop(region);
    let refused = |chunk, pages| match files.refusal(chunk, pages) {
        InvalidSnapshot::Metadata(error) => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(
        refused(1, PAGES)
            .ends_with("made for chunks of 8 KiB (8192 bytes), not 4 KiB (4096 bytes)")
    );
    assert!(
        refused(CHUNK, 15)
            .ends_with("made for a size of 64 KiB (65536 bytes), not 60 KiB (61440 bytes)")
    );
    assert!(matches!(
        files.refusal(CHUNK, 17),
        InvalidSnapshot::LargerThanOrigin { nr_pages, .. } if nr_pages == NrPages::try_new(17).unwrap()
    ));
    assert!(matches!(files.refusal(9, PAGES), InvalidSnapshot::SmallCow { .. }));
}

/// The origin and, behind its end, zeroes that are never written.
fn with_tail(files: &Files, pages: u64) -> Result<Region, InvalidSnapshot> {
    let mut space = PfnSpace::new();
    let mut store = |path: PathBuf, access| {
        let store = FileStore::open(&path, access).unwrap();
        space.add(Box::new(store)).unwrap() as Arc<dyn Target>
    };
    let mut entries = vec![(range(0, PAGES), store(files.origin(), Access::ReadOnly))];
    if let tail @ 1.. = pages - PAGES {
        entries.push((range(PAGES, tail), Arc::new(ZeroTarget::new(nr_pages(tail)))));
    }
    let (origin, cow) = (Table::try_new(entries).unwrap(), store(files.cow(), Access::ReadWrite));
    let snapshot = Snapshot::open(Arc::new(origin), cow, nr_pages(CHUNK), nr_pages(pages))?;
    Ok(Region::try_new(Arc::new(snapshot)).unwrap())
}

#[test]
fn snapshot_grows_and_keeps_its_size() {
    let files = Files::new(20);
    let open = |pages| with_tail(&files, pages);
    let region = open(PAGES).unwrap();
    write(&region, 3, &[0xa1]).unwrap();
    region.persist(region.pages()).unwrap();
    drop(region);
    let region = open(PAGES + 9).unwrap();
    write(&region, PAGES + 3, &[0xa2]).unwrap();
    region.persist(region.pages()).unwrap();
    drop(region);
    let mut expected = changed(&[(3, 0xa1)]);
    expected.extend(fill(&[0, 0, 0, 0xa2, 0, 0, 0, 0, 0]));
    assert_eq!(read(&open(PAGES + 9).unwrap()), expected);
    let refused = open(PAGES).unwrap_err().to_string();
    assert!(refused.contains("can't be used"), "{refused}");
    assert_eq!(CowFile::read(&files.cow()).unwrap().nr_pages, nr_pages(PAGES + 9));
    // A half of a chunk at the end: nothing may be read from the other half.
    let region = open(PAGES + 9).unwrap();
    write(&region, PAGES + 8, &[0xa3]).unwrap();
    region.persist(region.pages()).unwrap();
    drop(region);
    open(PAGES + 10).unwrap_err();
    open(PAGES + 9).unwrap();
    assert_eq!(std::fs::read(files.origin()).unwrap(), original());
}

#[test]
fn store_that_lost_its_end_is_refused() {
    let files = Files::new(8);
    let (_, region) = files.open();
    write(&region, 0, &[0xa1; 8]).unwrap();
    region.persist(region.pages()).unwrap();
    drop(region);
    files.resize_cow((2 + 3) * CHUNK);
    let refused = files.refusal(CHUNK, PAGES);
    assert!(matches!(refused, InvalidSnapshot::CutOff { used: 4, capacity: 3 }), "{refused}");
}

#[test]
fn chunks_of_several_areas_are_found_again() {
    let files = Files::new(0);
    // An area has 512 chunks of a page.
    let pages = 1300;
    std::fs::write(files.origin(), vec![0; pages * 4096]).unwrap();
    files.resize_cow(2000);
    let open = || files.try_open(Access::ReadOnly, 1, pages as u64).unwrap();
    let (snapshot, region) = open();
    let bytes: Vec<u8> = (0..pages).map(|page| u8::try_from(1 + page % 251).unwrap()).collect();
    // The end first, so that the order in the store is another.
    write(&region, 700, &bytes[700..]).unwrap();
    write(&region, 0, &bytes[..700]).unwrap();
    assert_eq!(snapshot.usage().used, pages as u64);
    assert!(read(&region) == fill(&bytes));
    region.persist(region.pages()).unwrap();
    drop((snapshot, region));
    assert!(read(&open().1) == fill(&bytes));
}

/// A store with some chunks in use, and what it and the snapshot hold.
fn used(pages: &[u64]) -> (Files, Vec<u8>, Vec<u8>) {
    let files = Files::new(8);
    let (_, region) = files.open();
    for page in pages {
        write(&region, *page, &[0xa1]).unwrap();
        region.persist(region.pages()).unwrap();
    }
    let held = read(&region);
    drop(region);
    let cow = std::fs::read(files.cow()).unwrap();
    (files, cow, held)
}

#[test]
fn damage_is_refused_by_what_is_wrong() {
    let refused = |damage: &dyn Fn(&mut [u8])| {
        let (files, mut cow, _) = used(&[3, 9]);
        damage(&mut cow);
        std::fs::write(files.cow(), cow).unwrap();
        files.refusal(CHUNK, PAGES)
    };
    let metadata = |damage: &dyn Fn(&mut [u8])| match refused(damage) {
        InvalidSnapshot::Metadata(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(metadata(&|cow| cow[0] ^= 1), InvalidMetadata::Foreign(_)));
    // The version counts only where the checksum is right.
    assert!(matches!(metadata(&|cow| cow[8] ^= 2), InvalidMetadata::Header));
    assert!(matches!(metadata(&|cow| cow[40] ^= 1), InvalidMetadata::Header));
    assert!(matches!(metadata(&|cow| cow[..4096].fill(0)), InvalidMetadata::HeaderLost));
    // The map begins with the second chunk, and has 8 bytes for each entry.
    let map = 2 * 4096;
    let entry = |damage: &dyn Fn(&mut [u8])| match refused(damage) {
        InvalidSnapshot::Entry(entry) => entry,
        other => panic!("{other}"),
    };
    assert_eq!(entry(&|cow| cow[map] ^= 1), 0);
    assert_eq!(entry(&|cow| cow[map + 8 + 4] ^= 1), 1);
    assert_eq!(entry(&|cow| cow[map..map + 512].fill(0)), 0);
    // The second entry in place of the first.
    assert_eq!(entry(&|cow| cow.copy_within(map + 8..map + 16, map)), 0);
}

/// A chunk was taken and never persisted; the next process took it for another page, and its map
/// never arrived. What is found at its place is a good entry, and not the one that was counted.
#[test]
fn map_with_an_entry_of_another_life_is_refused() {
    let (_, other, _) = used(&[3, 9]);
    let (files, mut cow, _) = used(&[3, 5]);
    let map = 2 * 4096..3 * 4096;
    cow[map.clone()].copy_from_slice(&other[map]);
    std::fs::write(files.cow(), cow).unwrap();
    assert!(matches!(files.refusal(CHUNK, PAGES), InvalidSnapshot::Entry(2)));
}

proptest! {
    #![proptest_config(cases(400))]

    /// Whatever is done to header and map: they are refused, or nothing has changed.
    #[test]
    fn damaged_metadata_is_refused_or_harmless(
        pages in prop::collection::vec(0..PAGES, 1..8),
        at in any::<Index>(),
        len in 1..600usize,
        with in prop::option::of(any::<u8>()),
    ) {
        let (files, mut cow, held) = used(&pages);
        let at = [0, 2 * 4096][at.index(2)] + at.index(128);
        cow[at..at + len].iter_mut().for_each(|byte| *byte = with.unwrap_or(!*byte));
        std::fs::write(files.cow(), cow).unwrap();
        if let Ok((_, region)) = files.try_open(Access::ReadOnly, CHUNK, PAGES) {
            prop_assert!(read(&region) == held);
        }
    }

    #[test]
    fn any_store_is_read_as_by_the_oracle(data in prop::collection::vec(any::<u8>(), 0..80)) {
        cow_oracle::check(&data);
    }

    /// The map as it once was, with a header that counts more: a write that never arrived.
    #[test]
    fn map_of_before_is_refused(pages in prop::collection::vec(0..PAGES, 2..8)) {
        let (earlier, before, _) = used(&pages[..1]);
        let (files, mut cow, held) = used(&pages);
        drop(earlier);
        let map = 2 * 4096..3 * 4096;
        cow[map.clone()].copy_from_slice(&before[map]);
        std::fs::write(files.cow(), cow).unwrap();
        match files.try_open(Access::ReadOnly, CHUNK, PAGES) {
            // All writes were to one chunk.
            Ok((snapshot, region)) => {
                prop_assert_eq!(snapshot.usage().used, 1);
                prop_assert!(read(&region) == held);
            }
            Err(refused) => prop_assert!(matches!(refused, InvalidSnapshot::Entry(1))),
        }
    }
}

/// Writers, readers, persists and merges, all at once: each finds what it wrote.
#[test]
fn threads_find_what_they_wrote() {
    for _ in 0..10 {
        let files = Files::new(8);
        let (snapshot, region) = files.try_open(Access::ReadWrite, CHUNK, PAGES).unwrap();
        let done = AtomicBool::new(false);
        let going = || !done.load(Ordering::SeqCst);
        let last = thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let region = &region;
                    // Pages 0, 4, 8 … of the first, so that chunks are shared.
                    scope.spawn(move || {
                        let mut buffer = vec![0; 4096];
                        for round in 0..100u8 {
                            for page in (writer..PAGES).step_by(4) {
                                write(region, page, &[round]).unwrap();
                                region.read(range(page, 1), &mut buffer).unwrap();
                                assert!(buffer.iter().all(|byte| *byte == round));
                            }
                        }
                    })
                })
                .collect();
            let persist = scope.spawn(|| {
                while going() {
                    region.persist(region.pages()).unwrap();
                }
            });
            let merge = scope.spawn(|| {
                while going() {
                    snapshot.merge(u64::MAX).unwrap();
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::SeqCst);
            persist.join().unwrap();
            merge.join().unwrap();
            read(&region)
        });
        assert!(last.iter().all(|byte| *byte == 99));
        region.persist(region.pages()).unwrap();
        drop((snapshot, region));
        assert!(read(&files.open().1) == last);
    }
}
