// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Logs of mirrors that are another's, or damaged.

use std::sync::Arc;

use pfn_blk::LegState::{Healthy, Recovering};
use pfn_blk::{InSync, InvalidMetadata, InvalidMirror, Mirror, MirrorLog, Pgoff, Region, Target};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::mirror::{LEG_PAGES, Part, Parts, REGION, states, write};
use crate::stack::{nr_pages, read};

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
