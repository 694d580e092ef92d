// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that lose their power, through the kernel.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use guest_harness::{VolatileDisks, serve_volatile_disks};
use tempfile::TempDir;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;

#[test]
#[ignore = "no test: the process that serves the disks of the others"]
fn serve() {
    serve_volatile_disks().unwrap();
}

/// Media of zeroes.
fn media() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "other"] {
        File::create(dir.path().join(name)).unwrap().set_len(PAGES * PAGE).unwrap();
    }
    dir
}

/// Writes a page of `byte` to each page.
fn write_all(file: &File, byte: u8) {
    (0..PAGES).for_each(|page| file.write_all_at(&[byte; PAGE as usize], page * PAGE).unwrap());
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
    Some(["one", "other"].map(|name| fs::read(media.path().join(name)).unwrap()))
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
    assert_eq!(done, Some(vec![0; (PAGES * PAGE) as usize]));
    disks.cut_after(PAGES + 1).unwrap();
    let one = File::options().write(true).open(disks.path("one")).unwrap();
    assert!(disks.unless_cut(|| write_all(&one, 7)).unwrap().is_some());
    assert!(disks.unless_cut(|| one.sync_data().unwrap()).unwrap().is_some());
    assert!(disks.unless_cut(|| one.sync_data()).unwrap().is_none());
    assert_eq!(fs::read(media.path().join("one")).unwrap(), vec![7; (PAGES * PAGE) as usize]);
}
