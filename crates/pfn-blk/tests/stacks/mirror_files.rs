// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the legs of a mirror have their labels: files, parts and copies of files, and what has no
//! attributes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use pfn_blk::LegState::{Healthy, Missing, Recovering};
use pfn_blk::{
    Access, ErrorTarget, FileStore, InSync, InvalidMetadata, InvalidMirror, Mirror, MirrorLog,
    PfnSpace, Pgoff, Region, Store, Striped, Target, leave_mirrors,
};

use crate::mirror_legs::{Disks, PAGES, REGION, Served, page_of};
use crate::model::{fill, range};
use crate::stack::nr_pages;

/// A file with room for two legs, if it can have labels.
fn file(dir: &Path, name: &str) -> Option<FileStore> {
    let (store, _) = FileStore::open_sized(&dir.join(name), nr_pages(2 * PAGES)).unwrap();
    if let Err(error) = store.attribute("leg.0") {
        eprintln!("skipped: {error}");
        return None;
    }
    Some(store)
}

/// A mirror of the pages of two files from `start` on.
fn open_files(dir: &Path, names: [&str; 2], start: u64) -> Option<Served> {
    let mut space = PfnSpace::new();
    let mut legs: Vec<(Arc<dyn Target>, Pgoff)> = Vec::new();
    for name in names {
        let store = space.add(Box::new(file(dir, name)?)).unwrap();
        legs.push((store, Pgoff::try_new(start).unwrap()));
    }
    let log = MirrorLog { device: None, region: nr_pages(REGION), in_sync: InSync::Yes };
    let mirror = Arc::new(Mirror::open(legs, log, nr_pages(PAGES)).unwrap());
    let region = Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap();
    Some(Served { mirror, region })
}

/// The label of a file, which may be served.
fn label_of(path: &Path) -> Vec<u8> {
    let mut label = vec![0; 512];
    let name = "user.pfn-blk.leg.0";
    assert_eq!(rustix::fs::getxattr(path, name, &mut label).unwrap(), 512);
    label
}

#[test]
fn copy_of_a_leg_is_not_believed_beside_legs_that_may_have_been_written_since() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let Some(served) = open_files(dir.path(), ["one", "two"], 0) else { return };
    served.flush(3, 1);
    // As `cp -a` makes one.
    let copy = |from, to| {
        let label = label_of(&path(from));
        std::fs::copy(path(from), path(to)).unwrap();
        file(dir.path(), to).unwrap().set_attribute("leg.0", Some(&label)).unwrap();
    };
    copy("one", "copy");
    served.flush(3, 2);
    drop(served);
    for names in [["copy", "two"], ["two", "copy"]] {
        let served = open_files(dir.path(), names, 0).unwrap();
        assert_eq!(served.page(3), 2, "{names:?}");
        assert!(served.mirror.status().stale > 0);
        drop(served);
    }
    // Copies of all are all there is, and may differ.
    copy("one", "one.moved");
    copy("two", "two.moved");
    let served = open_files(dir.path(), ["one.moved", "two.moved"], 0).unwrap();
    assert_eq!((served.states(), served.page(3)), (vec![Healthy, Healthy], 2));
}

#[test]
fn leg_at_any_place_of_a_file_that_is_written_without_its_mirror_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    for start in [0, PAGES] {
        let Some(served) = open_files(dir.path(), ["one", "two"], start) else { return };
        served.flush(3, 1);
    }
    let mut space = PfnSpace::new();
    let alone = space.add(Box::new(file(dir.path(), "two").unwrap())).unwrap();
    leave_mirrors([&alone]).unwrap();
    let region = Region::try_new(Arc::clone(&alone) as Arc<dyn Target>).unwrap();
    for page in [3, PAGES + 3] {
        region.write(range(page, 1), &fill(&[9])).unwrap();
    }
    drop((space, alone, region));
    for start in [0, PAGES] {
        let served = open_files(dir.path(), ["one", "two"], start).unwrap();
        assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 9), "{start}");
    }
}

#[test]
fn read_only_mirror_is_read_without_a_leg() {
    let dir = tempfile::tempdir().unwrap();
    let Some(served) = open_files(dir.path(), ["one", "two"], 0) else { return };
    served.flush(3, 1);
    drop(served);
    let store = FileStore::open(&dir.path().join("two"), Access::ReadOnly).unwrap();
    let store = PfnSpace::new().add(Box::new(store)).unwrap();
    let nothing = Arc::new(ErrorTarget::new(nr_pages(PAGES)));
    let legs: Vec<(Arc<dyn Target>, Pgoff)> =
        vec![(nothing, Pgoff::ZERO), (Arc::clone(&store) as _, Pgoff::ZERO)];
    let log = MirrorLog { device: None, region: nr_pages(REGION), in_sync: InSync::AsLogged };
    let mirror = Arc::new(Mirror::open(legs, log, nr_pages(PAGES)).unwrap());
    assert_eq!((mirror.access(), mirror.status().legs[0]), (Access::ReadOnly, Missing));
    assert_eq!(page_of(&Region::try_new(mirror).unwrap(), 3), 1);
}

#[test]
fn part_of_a_leg_that_was_written_without_the_rest_is_refused_until_it_is_given_up() {
    let disks = Disks::new();
    let open = || {
        let parts = [0, 1].map(|disk| (Arc::clone(&disks.0[disk]) as Arc<dyn Target>, Pgoff::ZERO));
        let striped = Striped::try_new(parts.into(), nr_pages(1), nr_pages(PAGES)).unwrap();
        let legs: Vec<(Arc<dyn Target>, Pgoff)> =
            vec![(Arc::new(striped), Pgoff::ZERO), (Arc::clone(&disks.0[2]) as _, Pgoff::ZERO)];
        let log = MirrorLog { device: None, region: nr_pages(REGION), in_sync: InSync::AsLogged };
        let mirror = Arc::new(Mirror::open(legs, log, nr_pages(PAGES))?);
        let region = Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap();
        Ok::<_, InvalidMirror>(Served { mirror, region })
    };
    let served = open().unwrap();
    served.flush(3, 1);
    served.resync();
    drop(served);
    leave_mirrors([&disks.0[1]]).unwrap();
    disks.region(1).write(range(1, 1), &fill(&[9])).unwrap();
    let refused = open().map(|served| served.states());
    assert!(matches!(refused, Err(InvalidMirror::Label { .. })), "{refused:?}");
    disks.unmark(0);
    let served = open().unwrap();
    assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 1));
}

#[test]
fn leg_of_a_device_that_is_written_without_its_mirror_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = |name| {
        let (store, _) = FileStore::open_sized(&dir.path().join(name), nr_pages(8)).unwrap();
        PfnSpace::new().add(Box::new(NoNotes(store))).unwrap()
    };
    let [one, two] = ["one", "two"].map(disk);
    let open = || {
        let legs = [&one, &two].map(|disk| (Arc::clone(disk) as Arc<dyn Target>, Pgoff::ZERO));
        let log = MirrorLog { device: None, region: nr_pages(1), in_sync: InSync::Yes };
        let mirror = Arc::new(Mirror::open(legs.into(), log, nr_pages(7)).unwrap());
        let region = Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap();
        Served { mirror, region }
    };
    open().flush(3, 1);
    leave_mirrors([&two]).unwrap();
    let region = Region::try_new(Arc::clone(&two) as Arc<dyn Target>).unwrap();
    region.write(range(3, 1), &fill(&[9])).unwrap();
    let served = open();
    assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 9));
}

#[test]
fn leg_whose_stores_have_no_attributes_has_its_label_in_the_page_that_follows() {
    let dir = tempfile::tempdir().unwrap();
    let open = |one: &Path, two: &Path, pages| {
        let mut space = PfnSpace::new();
        let mut leg = |path: &Path| -> (Arc<dyn Target>, Pgoff) {
            let (store, _) = FileStore::open_sized(path, nr_pages(8)).unwrap();
            let below = NoNotes(store);
            (space.add(Box::new(below)).unwrap(), Pgoff::ZERO)
        };
        let legs = vec![leg(one), leg(two)];
        let log = MirrorLog { device: None, region: nr_pages(1), in_sync: InSync::AsLogged };
        Mirror::open(legs, log, nr_pages(pages)).map(Arc::new)
    };
    let [one, two, new] = ["one", "two", "new"].map(|name| dir.path().join(name));
    assert!(matches!(open(&one, &two, 8), Err(InvalidMirror::NoPlace { leg: 0 })));
    let write = |mirror: &Arc<Mirror>, byte| {
        let region = Region::try_new(Arc::clone(mirror) as Arc<dyn Target>).unwrap();
        region.write(range(0, 1), &fill(&[byte])).unwrap();
        region.persist(region.pages()).unwrap();
    };
    let mirror = open(&one, &two, 7).unwrap();
    write(&mirror, 1);
    mirror.resync().unwrap();
    drop(mirror);
    let held = std::fs::read(&one).unwrap();
    assert!(held[7 * 4096..].starts_with(b"pfnblkLG"));
    let mirror = open(&new, &two, 7).unwrap();
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
    assert_eq!(std::fs::read(&new).unwrap()[..4096], [1; 4096]);
    // What isn't a label is somebody's data.
    drop(mirror);
    std::fs::write(&one, vec![7; 8 * 4096]).unwrap();
    let refused = open(&one, &two, 7);
    let Err(InvalidMirror::Label { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(matches!(source, InvalidMetadata::NoRoomForLabel { sector: 56 }), "{source:?}");
}

/// As a block device is.
#[derive(Debug)]
struct NoNotes(FileStore);

impl Store for NoNotes {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn nr_pages(&self) -> pfn_blk::NrPages {
        self.0.nr_pages()
    }
    fn access(&self) -> pfn_blk::Access {
        self.0.access()
    }
    fn is_persistent(&self) -> bool {
        self.0.is_persistent()
    }
    fn is_removed(&self) -> bool {
        self.0.is_removed()
    }
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd()
    }
    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read(at, buffer)
    }
    fn write(&self, at: Pgoff, buffer: &[u8]) -> std::io::Result<()> {
        self.0.write(at, buffer)
    }
    fn persist(&self) -> std::io::Result<()> {
        self.0.persist()
    }
    fn attribute(&self, _: &str) -> std::io::Result<Option<Vec<u8>>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn set_attribute(&self, _: &str, _: Option<&[u8]>) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn attributes(&self) -> std::io::Result<Vec<String>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn identity(&self) -> std::io::Result<u64> {
        Ok(0)
    }
}

#[test]
fn resync_leaves_holes_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut space = PfnSpace::new();
    let mut leg = |name: &str| -> (Arc<dyn Target>, Pgoff) {
        let (store, _) = FileStore::open_sized(&dir.path().join(name), nr_pages(2048)).unwrap();
        (space.add(Box::new(store)).unwrap(), Pgoff::ZERO)
    };
    let legs = vec![leg("one"), leg("two")];
    let log = MirrorLog { device: None, region: nr_pages(64), in_sync: InSync::AsLogged };
    let mirror = Mirror::open(legs, log, nr_pages(2048)).unwrap();
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
    let blocks = |name| std::fs::metadata(dir.path().join(name)).unwrap().blocks();
    // The attribute may take one.
    assert!(blocks("one") <= 8 && blocks("two") <= 8, "{} {}", blocks("one"), blocks("two"));
}
