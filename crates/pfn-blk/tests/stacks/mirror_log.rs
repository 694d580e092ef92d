// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Logs of mirrors: what they know, and those that can't be written, are another's, or damaged.

use std::sync::Arc;

use pfn_blk::LegState::{Healthy, Recovering};
use pfn_blk::{
    Access, BioError, FileStore, InSync, InvalidMetadata, InvalidMirror, Mirror, MirrorLog,
    PfnSpace, Pgoff, Region, Target,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::mirror::{LEG_PAGES, Part, Parts, REGION, read_page, states, write};
use crate::stack::{nr_pages, read};

#[test]
fn log_knows_what_was_written_when_the_process_ended() {
    let parts = Parts::new();
    let [_, two] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 1, 1).unwrap();
    write(&region, 15, 1).unwrap();
    drop((mirror, region));
    two.take_written();
    let (mirror, region) = parts.open(InSync::AsLogged);
    assert_eq!(mirror.status().stale, 2);
    mirror.resync().unwrap();
    // All that was written had reached both.
    assert!(two.take_written().is_empty());
    // Regions that are left alone are forgotten some persists later.
    (0..3).for_each(|_| region.persist(region.pages()).unwrap());
    drop((mirror, region));
    let (mirror, _) = parts.open(InSync::AsLogged);
    assert_eq!((mirror.status().stale, states(&mirror)), (0, vec![Healthy, Healthy]));
}

#[test]
fn sync_of_a_known_mirror_copies_everything() {
    let parts = Parts::new();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 1, 1).unwrap();
    drop((mirror, region));
    let (mirror, _) = parts.open(InSync::No);
    assert_eq!(mirror.status().stale, 8);
    drop(mirror);
    // A log that is there is believed.
    let (mirror, _) = parts.open(InSync::Yes);
    assert_eq!(mirror.status().stale, 1);
}

#[test]
fn log_that_can_not_be_written_fails_writes_and_not_reads() {
    let parts = Parts::new();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 0, 1).unwrap();
    parts.log.control.set_broken(true);
    // Known to be written to.
    write(&region, 0, 2).unwrap();
    write(&region, 8, 3).unwrap_err();
    assert_eq!((read_page(&region, 0).unwrap(), read_page(&region, 8).unwrap()), (2, 0));
    // What it says now isn't known.
    parts.log.control.set_broken(false);
    write(&region, 8, 3).unwrap_err();
    assert_eq!(states(&mirror), [Healthy, Healthy]);
    assert!(mirror.log_failure().is_some());
}

#[test]
fn read_only_mirror_is_read_and_its_log_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let open = |access| {
        let mut space = PfnSpace::new();
        let mut part = |name| {
            let store = FileStore::open(&path(name), access).unwrap();
            space.add(Box::new(store)).unwrap() as Arc<dyn Target>
        };
        let legs = vec![(part("one"), Pgoff::ZERO), (part("two"), Pgoff::ZERO)];
        let (region, in_sync) = (nr_pages(1), InSync::AsLogged);
        let log = MirrorLog { device: Some(part("log")), region, in_sync };
        let mirror = Arc::new(Mirror::open(legs, log, nr_pages(2)).unwrap());
        (Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap(), mirror)
    };
    for name in ["one", "two", "log"] {
        std::fs::write(path(name), [0; 8192]).unwrap();
    }
    let (region, _) = open(Access::ReadWrite);
    write(&region, 1, 5).unwrap();
    drop(region);
    let before = std::fs::read(path("log")).unwrap();

    let (region, mirror) = open(Access::ReadOnly);
    assert_eq!(region.access(), Access::ReadOnly);
    assert_eq!(read_page(&region, 1).unwrap(), 5);
    region.persist(region.pages()).unwrap();
    assert!(matches!(mirror.resync(), Err(BioError::ReadOnly { .. })));
    write(&region, 1, 6).unwrap_err();
    assert_eq!(states(&mirror), [Healthy, Recovering]);
    assert_eq!(std::fs::read(path("log")).unwrap(), before);
}

#[test]
fn log_of_another_mirror_is_refused() {
    let parts = Parts::new();
    let (_, region) = parts.open(InSync::Yes);
    write(&region, 0, 1).unwrap();
    drop(region);
    let open = |region, pages| {
        let leg = |part: &Part| (Arc::clone(&part.pagemap) as Arc<dyn Target>, Pgoff::ZERO);
        let device = Some(Arc::clone(&parts.log.pagemap) as Arc<dyn Target>);
        let log = MirrorLog { device, region: nr_pages(region), in_sync: InSync::AsLogged };
        let refused = Mirror::open(parts.legs.iter().map(leg).collect(), log, nr_pages(pages));
        match refused.unwrap_err() {
            InvalidMirror::Metadata(error) => error.to_string(),
            other => panic!("{other}"),
        }
    };
    assert!(
        open(REGION, 8)
            .ends_with("it was made for a size of 64 KiB (65536 bytes), not 32 KiB (32768 bytes)")
    );
    assert!(
        open(1, LEG_PAGES)
            .ends_with("it was made for regions of 8 KiB (8192 bytes), not 4 KiB (4096 bytes)")
    );
}

/// Changes what stands in the log.
fn damage(parts: &Parts, change: impl FnOnce(&mut [u8])) {
    let log = Region::try_new(Arc::clone(&parts.log.pagemap) as Arc<dyn Target>).unwrap();
    let mut bytes = read(&*parts.log.pagemap);
    change(&mut bytes);
    log.write(log.pages(), &bytes).unwrap();
}

proptest! {
    /// Whatever is done to a log that was good: it is refused, or it still says all that it did.
    #[test]
    fn damaged_log_is_refused_or_says_too_much(
        written in prop::collection::vec(0..LEG_PAGES, 0..6),
        drops in any::<bool>(),
        at in any::<Index>(),
        len in 1..600usize,
        with in prop::option::of(any::<u8>()),
    ) {
        let parts = Parts::new();
        let (mirror, region) = parts.open(InSync::Yes);
        for page in &written {
            write(&region, *page, 1).unwrap();
        }
        parts.legs[1].control.set_broken(drops);
        write(&region, 0, 1).unwrap();
        parts.legs[1].control.set_broken(false);
        drop((mirror, region));
        let (mirror, _) = parts.open(InSync::AsLogged);
        let (states_before, stale_before) = (states(&mirror), mirror.status().stale);
        drop(mirror);

        damage(&parts, |bytes| {
            // Where something stands.
            let at = [0, 4096][at.index(2)] + at.index(1024);
            let end = (at + len).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|byte| *byte = with.unwrap_or(!*byte));
        });
        if let Ok((mirror, _)) = parts.try_open(InSync::AsLogged) {
            prop_assert!(mirror.status().stale >= stale_before);
            prop_assert_eq!(states(&mirror), states_before);
        }
    }
}

#[test]
fn damaged_bitmap_has_all_its_regions_copied() {
    let parts = Parts::new();
    let (_, region) = parts.open(InSync::Yes);
    write(&region, 0, 1).unwrap();
    drop(region);
    damage(&parts, |bytes| bytes[4096] = 0);
    let (mirror, _) = parts.open(InSync::AsLogged);
    assert_eq!((mirror.status().stale, states(&mirror)), (8, vec![Healthy, Recovering]));
}

#[test]
fn damaged_header_is_refused_by_what_is_wrong() {
    let refused = |change: &dyn Fn(&mut [u8])| {
        let parts = Parts::new();
        let (_, region) = parts.open(InSync::Yes);
        write(&region, 0, 1).unwrap();
        drop(region);
        damage(&parts, change);
        match parts.try_open(InSync::AsLogged) {
            Err(InvalidMirror::Metadata(error)) => error,
            other => panic!("{:?}", other.map(|(mirror, _)| mirror)),
        }
    };
    assert!(matches!(refused(&|bytes| bytes[0] ^= 1), InvalidMetadata::Foreign(_)));
    assert!(matches!(refused(&|bytes| bytes[20] ^= 1), InvalidMetadata::Header));
    assert!(matches!(refused(&|bytes| bytes[..4096].fill(0)), InvalidMetadata::HeaderLost));
}

#[test]
fn log_that_was_made_before_any_leg_was_told_says_nothing() {
    let parts = Parts::new();
    let (mirror, region) = parts.open(InSync::AsLogged);
    parts.legs.iter().for_each(|leg| leg.control.set_broken(true));
    write(&region, 0, 1).unwrap_err();
    parts.legs.iter().for_each(|leg| leg.control.set_broken(false));
    drop((mirror, region));
    assert!(read(&*parts.log.pagemap).starts_with(b"pfnblkML"));
    let (mirror, region) = parts.open(InSync::AsLogged);
    assert_eq!((mirror.status().stale, states(&mirror)), (8, vec![Healthy, Recovering]));
    write(&region, 0, 1).unwrap();
    drop((mirror, region));
    parts.open(InSync::AsLogged);
}
