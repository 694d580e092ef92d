// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a COW store is kept over: the right base is taken, also after a crash in a merge, and any
//! other is refused.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use pfn_blk::{
    Access, BaseChange, CowFile, FileStore, HookedStore, InvalidSnapshot, OriginMark, Origins,
    PfnSpace, Region, Snapshot, Store, StoreOperation, Target, mark_origin, origin_mark,
};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};

use crate::model::{fill, range};
use crate::stack::{nr_pages, read};

const PAGES: u64 = 16;
const CHUNK: u64 = 2;
const GENERATION: &str = "user.pfn-blk.generation";

/// A base and COW stores over it.
struct Place(tempfile::TempDir);

/// How many operations of stores go well until all fail.
type Left = Arc<AtomicUsize>;

impl Place {
    /// None where files have no attributes.
    fn new() -> Option<Self> {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("base"), original()).unwrap();
        fs::write(place.path("probe"), []).unwrap();
        place.write("probe cow", 0, 1);
        place.set_time("base", 1_000_000);
        match place.generation("base") {
            Some(_) => {
                fs::remove_file(place.path("probe cow")).unwrap();
                Some(place)
            }
            None => {
                eprintln!("skipped: no extended attributes here");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn generation(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 64];
        let file = File::open(self.path(name)).unwrap();
        let len = fgetxattr(file, GENERATION, &mut bytes).ok()?;
        Some(bytes[..len].to_vec())
    }

    /// When the file was written last, in seconds.
    fn set_time(&self, name: &str, seconds: u64) {
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    fn cow(&self, name: &str) -> FileStore {
        let size = Snapshot::ample_cow(nr_pages(PAGES), nr_pages(CHUNK)).unwrap();
        FileStore::open_sized(&self.path(name), size).unwrap().0
    }

    fn open_over(
        &self,
        origins: Origins,
        base: FileStore,
        cow: &str,
    ) -> Result<Arc<Snapshot>, InvalidSnapshot> {
        let mut space = PfnSpace::new();
        let (base, cow) = (Box::new(base), Box::new(self.cow(cow)));
        let (base, cow) = (space.add(base).unwrap(), space.add(cow).unwrap());
        Snapshot::open_over(origins, base, cow, nr_pages(CHUNK), nr_pages(PAGES)).map(Arc::new)
    }

    fn open(&self, cow: &str) -> Result<Arc<Snapshot>, InvalidSnapshot> {
        let base = FileStore::open(&self.path("base"), Access::ReadOnly).unwrap();
        self.open_over(Origins::Same, base, cow)
    }

    /// Writes a page through `cow`, durably.
    fn write(&self, cow: &str, page: u64, byte: u8) {
        let region = Region::try_new(self.open(cow).unwrap()).unwrap();
        region.write(range(page, 1), &fill(&[byte])).unwrap();
        region.persist(region.pages()).unwrap();
    }

    fn merge(&self, cow: &str) {
        let base = FileStore::open_origin(&self.path("base")).unwrap();
        self.open_over(Origins::Same, base, cow).unwrap().merge(u64::MAX).unwrap();
    }

    #[track_caller]
    fn is_refused(&self, cow: &str) -> BaseChange {
        match self.open(cow) {
            Err(InvalidSnapshot::Base(change)) => change,
            other => panic!("{other:?}"),
        }
    }

    fn shown(&self, cow: &str) -> Vec<u8> {
        read(&*self.open(cow).unwrap())
    }
}

fn original() -> Vec<u8> {
    fill(&vec![0xee; usize::try_from(PAGES).unwrap()])
}

fn with(pages: &[(u64, u8)]) -> Vec<u8> {
    let mut bytes = original();
    for (page, byte) in pages {
        let at = usize::try_from(page * 4096).unwrap();
        bytes[at..at + 4096].fill(*byte);
    }
    bytes
}

#[test]
fn base_that_another_program_wrote_is_refused() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    place.shown("cow");
    fs::write(place.path("base"), original()).unwrap();
    let BaseChange::Modified(Some(_)) = place.is_refused("cow") else { panic!() };
    // A copy of before that has its time also is as good as it was.
    place.set_time("base", 1_000_000);
    assert_eq!(place.shown("cow"), with(&[(3, 1)]));
    let file = File::options().write(true).open(place.path("base")).unwrap();
    file.set_len(8 * PAGES * 4096).unwrap();
    place.set_time("base", 1_000_000);
    assert_eq!(place.is_refused("cow"), BaseChange::Size { was: PAGES, is: 8 * PAGES });
}

/// The times of before prove nothing: after a power cut a file may have them, and be written.
#[test]
fn base_that_was_opened_for_writing_is_refused_whatever_its_times() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    drop(FileStore::open(&place.path("base"), Access::ReadWrite).unwrap());
    place.set_time("base", 1_000_000);
    assert_eq!(place.is_refused("cow"), BaseChange::Written);
    // One that never was a base stays without.
    drop(FileStore::open_sized(&place.path("probe"), nr_pages(1)).unwrap());
    assert_eq!(place.generation("probe"), None);
}

/// A copy that has the times, and no attributes, is as good as the file of before.
#[test]
fn base_that_lost_its_attributes_is_told_by_its_times() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    FileStore::forget_records(&place.path("base")).unwrap();
    assert_eq!(place.shown("cow"), with(&[(3, 1)]));
    assert_eq!(place.shown("cow"), with(&[(3, 1)]));
    (0..3).for_each(|byte| place.write("cow", 3, byte));
    assert_eq!(place.shown("cow"), with(&[(3, 2)]));
    // It has one again.
    drop(FileStore::open(&place.path("base"), Access::ReadWrite).unwrap());
    assert_eq!(place.is_refused("cow"), BaseChange::Written);
    FileStore::forget_records(&place.path("base")).unwrap();
    place.set_time("base", 2_000_000);
    let BaseChange::Modified(Some(at)) = place.is_refused("cow") else { panic!() };
    assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000));
}

#[test]
fn overlay_of_a_base_that_another_was_merged_into_is_refused() {
    let Some(place) = Place::new() else { return };
    place.write("one", 3, 1);
    place.write("two", 4, 2);
    place.write("empty", 0, 0xee);
    place.merge("one");
    place.set_time("base", 1_000_000);
    assert_eq!(place.is_refused("two"), BaseChange::Written);
    // Nothing is mixed up where nothing is kept, and the store is for this base from then on.
    assert_eq!(place.shown("empty"), with(&[(3, 1)]));
    place.write("empty", 9, 9);
    assert_eq!(place.shown("empty"), with(&[(3, 1), (9, 9)]));
}

#[test]
fn overlay_that_was_merged_stays_good_for_its_base() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    place.merge("cow");
    place.write("cow", 4, 2);
    place.merge("cow");
    place.write("cow", 5, 3);
    assert_eq!(place.shown("cow"), with(&[(3, 1), (4, 2), (5, 3)]));
}

#[test]
fn base_that_is_accepted_is_the_right_one_from_then_on() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    fs::write(place.path("base"), original()).unwrap();
    place.is_refused("cow");
    let base = FileStore::open(&place.path("base"), Access::ReadOnly).unwrap();
    drop(place.open_over(Origins::Any, base, "cow").unwrap());
    assert_eq!(place.shown("cow"), with(&[(3, 1)]));
}

/// A COW store as version 1 had it: its header ends before the id.
fn make_version_1(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[8] = 1;
    bytes[44..512].fill(0);
    bytes[12..16].fill(0);
    let sum = crc32fast::hash(&bytes[..512]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn cow_store_of_version_1_is_read_and_tied_to_its_base_by_the_next_persist() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    make_version_1(&place.path("cow"));
    assert_eq!(CowFile::read(&place.path("cow")).unwrap().id, None);
    place.set_time("base", 2_000_000);
    assert_eq!(place.shown("cow"), with(&[(3, 1)]));
    place.write("cow", 3, 2);
    assert!(CowFile::read(&place.path("cow")).unwrap().id.is_some());
    assert_eq!(place.shown("cow"), with(&[(3, 2)]));
    place.set_time("base", 3_000_000);
    place.is_refused("cow");
}

#[test]
fn blank_store_over_a_base_that_has_its_changes_elsewhere_is_refused() {
    let Some(place) = Place::new() else { return };
    let cow = PfnSpace::new().add(Box::new(place.cow("cow"))).unwrap();
    let id = Snapshot::make_cow(&*cow, nr_pages(CHUNK), nr_pages(PAGES)).unwrap();
    drop(cow);
    mark_origin(File::open(place.path("base")).unwrap(), id, &place.path("cow")).unwrap();
    match place.open("other") {
        Err(InvalidSnapshot::Marked(marked)) => assert_eq!(marked.mark.cow, place.path("cow")),
        other => panic!("{other:?}"),
    }
    let found = CowFile::read(&place.path("cow")).unwrap();
    assert_eq!((found.id, found.used, found.nr_pages), (Some(id), 0, nr_pages(PAGES)));
    assert_eq!(place.open("cow").unwrap().id(), Some(id));
    place.write("cow", 1, 1);
    assert_eq!(CowFile::read(&place.path("cow")).unwrap().id, Some(id));
    let base = FileStore::open(&place.path("base"), Access::ReadOnly).unwrap();
    place.open_over(Origins::Any, base, "other").unwrap();
}

/// Nothing can be mixed up, but the changes that the mark names are not there.
#[test]
fn store_without_changes_is_refused_over_a_base_that_says_where_they_are() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    let before = place.generation("base").unwrap();
    let base = File::open(place.path("base")).unwrap();
    let id = place.open("cow").unwrap().id().unwrap();
    mark_origin(&base, id, &place.path("cow")).unwrap();
    place.merge("cow");
    assert_eq!(place.shown("cow"), with(&[(3, 1)]), "power was cut before the mark was gone");
    let other = PfnSpace::new().add(Box::new(place.cow("other"))).unwrap();
    Snapshot::make_cow(&*other, nr_pages(CHUNK), nr_pages(PAGES)).unwrap();
    drop(other);
    assert!(matches!(place.open("other"), Err(InvalidSnapshot::Marked(_))));
    // The base comes back as it was before.
    fs::write(place.path("base"), original()).unwrap();
    fsetxattr(&base, GENERATION, &before, XattrFlags::empty()).unwrap();
    assert_eq!(place.is_refused("cow"), BaseChange::Written);
}

/// A copy that took the mark along isn't the file that was marked.
#[test]
fn mark_of_a_copy_says_that_it_is_one() {
    let Some(place) = Place::new() else { return };
    let id = place.open("cow").unwrap().id().unwrap();
    let marked = File::open(place.path("base")).unwrap();
    mark_origin(&marked, id, &place.path("cow")).unwrap();
    let mut value = vec![0; 4096];
    let len = rustix::fs::fgetxattr(&marked, "user.pfn-blk.changes", &mut value).unwrap();
    fs::copy(place.path("base"), place.path("copy")).unwrap();
    let copy = File::open(place.path("copy")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&copy, "user.pfn-blk.changes", &value[..len], flags).unwrap();
    let mark = OriginMark { cow: place.path("cow"), id: Some(id), is_copied: false };
    assert_eq!(origin_mark(&marked).unwrap(), Some(mark.clone()));
    assert_eq!(origin_mark(&copy).unwrap(), Some(OriginMark { is_copied: true, ..mark }));
    let forgotten = FileStore::forget_records(&place.path("copy")).unwrap();
    assert_eq!(forgotten, [("user.pfn-blk.changes".to_owned(), value[..len].to_vec())]);
    FileStore::open(&place.path("copy"), Access::ReadWrite).unwrap();
}

/// A store that fails everything once no operations are left.
fn breaking(store: FileStore, left: &Left) -> Box<dyn Store> {
    let left = Arc::clone(left);
    Box::new(HookedStore::new(store, move |operation| {
        let counts = !matches!(operation, StoreOperation::Read(_));
        let is_left = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            if counts { left.checked_sub(1) } else { Some(left) }
        });
        is_left.map(drop).map_err(|_| io::Error::other("the process has ended"))
    }))
}

/// If anything was merged the store says so, also after it was opened and written since.
fn has_merged_somewhat(place: &Place) {
    let has_merged = || CowFile::read(&place.path("cow")).unwrap().has_merged;
    if fs::read(place.path("base")).unwrap() != original() {
        assert!(has_merged());
        place.write("cow", 3, 1);
        assert!(has_merged() && place.open("cow").unwrap().has_merged());
    }
}

/// The process ends at any point of a merge. The store is still good for the base, another one that
/// was kept over it isn't once anything was written there, and the merge can be done again.
#[test]
fn merge_that_ended_at_any_point_is_gone_on_with() {
    let mut ended = 0;
    for operations in 0..40 {
        let Some(place) = Place::new() else { return };
        place.write("other", 0, 7);
        place.write("cow", 3, 1);
        place.write("cow", 8, 2);
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let mut space = PfnSpace::new();
        let base = FileStore::open_origin(&place.path("base")).unwrap();
        let mut add = |store| space.add(breaking(store, &left)).unwrap() as Arc<dyn Target>;
        let (base, cow) = (add(base), add(place.cow("cow")));
        let snapshot = Snapshot::open(base, cow, nr_pages(CHUNK), nr_pages(PAGES)).unwrap();
        left.store(operations, Ordering::SeqCst);
        let merged = snapshot.merge(u64::MAX);
        ended += usize::from(merged.is_err());
        drop((snapshot, space));

        let expected = with(&[(3, 1), (8, 2)]);
        if fs::read(place.path("base")).unwrap() == original() {
            // Also where the merge has begun and got no further.
            let refused = place.open("other").err();
            assert!(
                matches!(refused, None | Some(InvalidSnapshot::Base(BaseChange::Written))),
                "{operations}: {refused:?}"
            );
        } else {
            place.is_refused("other");
        }
        assert_eq!(place.shown("cow"), expected, "{operations}: {merged:?}");
        has_merged_somewhat(&place);
        if operations % 2 == 0 {
            place.write("cow", 9, 3);
            place.merge("cow");
            assert_eq!(fs::read(place.path("base")).unwrap(), with(&[(3, 1), (8, 2), (9, 3)]));
        } else {
            place.merge("cow");
            assert_eq!(fs::read(place.path("base")).unwrap(), expected);
        }
        place.is_refused("other");
    }
    assert!((5..40).contains(&ended), "{ended} of 40");
}

/// What was written after the end of a base is merged into one that was grown for it.
#[test]
fn base_may_grow_once_a_merge_has_begun() {
    let Some(place) = Place::new() else { return };
    place.write("cow", 3, 1);
    let grow = |len: u64| {
        let file = File::options().write(true).open(place.path("base")).unwrap();
        file.set_len(len * 4096).unwrap();
    };
    let base = FileStore::open_origin(&place.path("base")).unwrap();
    place.open_over(Origins::Same, base, "cow").unwrap().begin_merge().unwrap();
    grow(PAGES * 2);
    assert_eq!(place.shown("cow"), with(&[(3, 1)]));
    // Not as it grows into another one.
    drop(FileStore::open(&place.path("base"), Access::ReadWrite).unwrap());
    assert_eq!(place.is_refused("cow"), BaseChange::Written);
}

/// What is kept over a COW store is refused when that has changed, and the COW store itself if it is
/// empty and what it is kept over has changed.
#[test]
fn snapshot_of_a_snapshot_is_tied_to_the_one_beneath() {
    let Some(place) = Place::new() else { return };
    place.write("one", 3, 1);
    let open = || {
        let mut space = PfnSpace::new();
        let mut add = |store| space.add(Box::new(store)).unwrap() as Arc<dyn Target>;
        let base = add(FileStore::open(&place.path("base"), Access::ReadOnly).unwrap());
        let one = add(FileStore::open(&place.path("one"), Access::ReadOnly).unwrap());
        let two = add(place.cow("two"));
        let (chunk, size) = (nr_pages(CHUNK), nr_pages(PAGES));
        Snapshot::open(Arc::new(Snapshot::open(base, one, chunk, size)?), two, chunk, size)
    };
    let region = Region::try_new(Arc::new(open().unwrap())).unwrap();
    region.write(range(8, 1), &fill(&[2])).unwrap();
    region.persist(region.pages()).unwrap();
    drop(region);
    assert_eq!(read(&open().unwrap()), with(&[(3, 1), (8, 2)]));
    place.write("one", 3, 9);
    assert!(matches!(open(), Err(InvalidSnapshot::Base(BaseChange::Written))), "{:?}", open());
}
