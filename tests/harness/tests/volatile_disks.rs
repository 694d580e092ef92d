// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that lose their power, through the kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use guest_harness::{VolatileDisks, serve_volatile_disks};
use tempfile::TempDir;

const PAGE: usize = 4096;
const PAGES: usize = 64;
/// The size of a disk.
const BYTES: u64 = (PAGES * PAGE) as u64;

#[test]
#[ignore = "no test: the process that serves the disks of the others"]
fn serve() {
    serve_volatile_disks().unwrap();
}

/// Media of zeroes.
fn media() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("media")).unwrap();
    for name in ["one", "other"] {
        File::create(dir.path().join("media").join(name)).unwrap().set_len(BYTES).unwrap();
    }
    dir
}

/// Writes a page of `byte` to each page.
fn write_all(file: &File, byte: u8) {
    (0..BYTES).step_by(PAGE).for_each(|at| file.write_all_at(&[byte; PAGE], at).unwrap());
}

/// What the media hold after the power was cut in the midst of another sync of `other`.
fn cut_after_sync_of_one(seed: u64, lying: &[&str]) -> Option<[Vec<u8>; 2]> {
    let media = media();
    let mut disks = VolatileDisks::start("serve", media.path(), seed, lying).unwrap()?;
    let open = |name| File::options().read(true).write(true).open(disks.path(name)).unwrap();
    let [one, other] = ["one", "other"].map(open);
    for file in [&one, &other] {
        write_all(file, 7);
    }
    one.sync_data().unwrap();
    let mut byte = [0];
    other.read_exact_at(&mut byte, 5).unwrap();
    assert_eq!(byte, [7]);
    disks.cut_after(0).unwrap();
    assert!(disks.unless_cut(|| other.sync_data()).unwrap().is_none());
    other.sync_data().unwrap_err();
    Some(["one", "other"].map(|name| fs::read(media.path().join("media").join(name)).unwrap()))
}

#[test]
fn cut_in_the_midst_of_a_sync_loses_what_only_that_would_have_synced() {
    let (mut lost, mut kept) = (false, false);
    for seed in 0..10 {
        let Some([one, other]) = cut_after_sync_of_one(seed, &[]) else { return };
        assert!(one.iter().all(|byte| *byte == 7));
        lost |= other.contains(&0);
        kept |= other.contains(&7);
    }
    assert!(lost && kept);
}

#[test]
fn disk_that_lies_loses_what_was_synced() {
    let lost = (0..10)
        .any(|seed| cut_after_sync_of_one(seed, &["one"]).is_none_or(|[one, _]| one.contains(&0)));
    assert!(lost);
}

#[test]
fn power_that_is_not_cut_cuts_nobody_off() {
    let media = media();
    let Some(mut disks) = VolatileDisks::start("serve", media.path(), 0, &[]).unwrap() else {
        return;
    };
    let path = disks.path("one");
    let done = disks.unless_cut(|| fs::read(path).unwrap()).unwrap();
    assert_eq!(done, Some(vec![0; PAGES * PAGE]));
    disks.cut_in_sync_after(1).unwrap();
    let one = File::options().write(true).open(disks.path("one")).unwrap();
    assert!(disks.unless_cut(|| write_all(&one, 7)).unwrap().is_some());
    assert!(disks.unless_cut(|| one.sync_data().unwrap()).unwrap().is_some());
    assert!(disks.unless_cut(|| one.sync_data()).unwrap().is_none());
    assert_eq!(fs::read(media.path().join("media/one")).unwrap(), vec![7; PAGES * PAGE]);
}

#[test]
fn file_that_is_made_grown_and_removed_is_as_it_was_synced_last() {
    let (mut sizes, mut exist) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..20 {
        let dir = media();
        let media = |name: &str| dir.path().join("media").join(name);
        let disks = VolatileDisks::start("serve", dir.path(), seed, &[]).unwrap();
        let Some(mut disks) = disks else { return };
        let make = |name: &str| File::create_new(disks.path(name)).unwrap();
        let synced = make("synced");
        synced.set_len(BYTES).unwrap();
        synced.write_all_at(&[7; PAGE], BYTES - PAGE as u64).unwrap();
        synced.sync_all().unwrap();
        make("unsynced").set_len(BYTES).unwrap();
        fs::remove_file(disks.path("other")).unwrap();
        assert!(!disks.path("other").exists());
        disks.cut_after(0).unwrap();
        assert!(disks.unless_cut(|| synced.sync_data()).unwrap().is_none());
        assert_eq!(fs::read(media("synced")).unwrap()[PAGES * PAGE - PAGE..], [7; PAGE]);
        sizes.insert(fs::metadata(media("unsynced")).unwrap().len());
        exist.insert(media("other").exists());
    }
    assert_eq!((Vec::from_iter(sizes), Vec::from_iter(exist)), (vec![0, BYTES], vec![false, true]));
}
