// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots on stores that break and lose power: what a persist answered for is there again, whatever
//! fails in it or in a merge.

use std::sync::Arc;

use pfn_blk::{Access, InvalidSnapshot, PfnSpace, Pgoff, Region, Snapshot, Table, Target};

use crate::model::range;
use crate::power::Power;
use crate::snapshot::{read, write};
use crate::stack::nr_pages;

/// A snapshot of two pages on stores that break and lose power: the origin is store 0, the COW
/// store's header is store 1, the rest of it store 2.
fn open_on(power: &Power) -> (Arc<Snapshot>, Region) {
    let mut space = PfnSpace::new();
    let mut store =
        |number, pages| space.add(power.store(number, nr_pages(pages))).unwrap() as Arc<dyn Target>;
    let (origin, header, rest) = (store(0, 2), store(1, 1), store(2, 5));
    let cow = Arc::new(Table::try_new(vec![(range(0, 1), header), (range(1, 5), rest)]).unwrap());
    let snapshot = Arc::new(Snapshot::open(origin, cow, nr_pages(1), nr_pages(2)).unwrap());
    let region = Region::try_new(Arc::clone(&snapshot) as Arc<dyn Target>).unwrap();
    (snapshot, region)
}

/// A write of what the origin holds takes no chunk. Another process left it there without a sync.
#[test]
fn flush_of_what_only_the_origins_cache_holds_survives_a_power_cut() {
    for seed in 0..16 {
        let power = Power::new(seed);
        power.store(0, nr_pages(2)).write(Pgoff::ZERO, &[7; 4096]).unwrap();
        let open = || {
            let mut space = PfnSpace::new();
            let mut store = |access, number, pages| {
                let store = power.store_to(access, number, nr_pages(pages));
                space.add(store).unwrap() as Arc<dyn Target>
            };
            let (origin, cow) = (store(Access::ReadOnly, 0, 2), store(Access::ReadWrite, 1, 6));
            let snapshot = Snapshot::open(origin, cow, nr_pages(1), nr_pages(2)).unwrap();
            Region::try_new(Arc::new(snapshot)).unwrap()
        };
        let region = open();
        write(&region, 0, &[7]).unwrap();
        region.persist(region.pages()).unwrap();
        power.cut_after(0);
        write(&region, 1, &[9]).unwrap_err();
        drop(region);
        power.restore();
        assert_eq!(read(&open())[..4096], [7; 4096], "seed {seed}");
    }
}

/// No one can write to it any more.
#[test]
fn read_only_store_is_synced_once() {
    let power = Power::new(0);
    let mut space = PfnSpace::new();
    let store = space.add(power.store_to(Access::ReadOnly, 0, nr_pages(2))).unwrap();
    let region = Region::try_new(store as Arc<dyn Target>).unwrap();
    (0..3).for_each(|_| region.persist(region.pages()).unwrap());
    assert_eq!(power.syncs(0), 1);
}

#[test]
fn origin_that_cannot_be_synced_is_refused() {
    let power = Power::new(0);
    let mut space = PfnSpace::new();
    let mut store =
        |access, number| space.add(power.store_to(access, number, nr_pages(6))).unwrap();
    let (origin, cow) = (store(Access::ReadOnly, 0), store(Access::ReadWrite, 1));
    power.break_after(0, 0);
    let refused = Snapshot::open(origin, cow, nr_pages(1), nr_pages(6)).unwrap_err();
    assert!(matches!(refused, InvalidSnapshot::Origin(_)), "{refused}");
}

/// What the first page holds after power was cut, now or in what is under way.
fn after_cut(power: &Power, region: Region) -> u8 {
    power.cut_after(0);
    if !power.is_cut() {
        write(&region, 1, &[9]).unwrap_err();
    }
    drop(region);
    power.restore();
    read(&open_on(power).1)[0]
}

/// Ways to fail: what comes to pass of it, and after how many operations.
fn breaks(operations: usize) -> impl Iterator<Item = (Power, usize)> {
    (0..8).flat_map(move |seed| (0..operations).map(move |after| (Power::new(seed), after)))
}

/// The header may say already that the chunk is free: nothing that is persisted later is lost.
#[test]
fn merge_that_failed_gives_no_chunk_away() {
    for (power, after) in breaks(6) {
        let (snapshot, region) = open_on(&power);
        write(&region, 0, &[1]).unwrap();
        region.persist(region.pages()).unwrap();
        power.break_after(1, after);
        let merged = snapshot.merge(u64::MAX);
        power.mend();
        write(&region, 0, &[2]).unwrap();
        let may: &[u8] = if region.persist(region.pages()).is_ok() { &[2] } else { &[1, 2] };
        drop(snapshot);
        let byte = after_cut(&power, region);
        assert!(may.contains(&byte), "after {after}: {byte}, not one of {may:?}; {merged:?}");
    }
}

/// As on a disk that was full.
#[test]
fn header_that_was_not_written_is_when_the_failure_is_cleared() {
    let mut cleared = 0;
    for (power, after) in breaks(6) {
        let (snapshot, region) = open_on(&power);
        write(&region, 0, &[1]).unwrap();
        power.break_after(1, after);
        let persisted = region.persist(region.pages());
        power.mend();
        assert_eq!(region.persist(region.pages()).is_ok(), persisted.is_ok());
        // A failed sync of the store is another failure.
        if snapshot.clear_failure().is_ok_and(|had_failed| had_failed) {
            cleared += 1;
            write(&region, 0, &[2]).unwrap();
            region.persist(region.pages()).unwrap();
            drop(snapshot);
            assert_eq!(after_cut(&power, region), 2, "after {after}");
        }
    }
    assert!(cleared > 0);
}

/// What the merge wrote to the origin may not be durable there, when the entry that hid it is gone.
#[test]
fn merge_that_failed_leaves_nothing_to_be_lost_in_the_origin() {
    for (power, after) in breaks(4) {
        let (snapshot, region) = open_on(&power);
        write(&region, 0, &[1]).unwrap();
        power.break_after(0, after);
        let merged = snapshot.merge(u64::MAX);
        power.mend();
        // Another process persists what it finds.
        drop((snapshot, region));
        let (snapshot, region) = open_on(&power);
        let found = read(&region)[0];
        region.persist(region.pages()).unwrap();
        drop(snapshot);
        assert_eq!(after_cut(&power, region), found, "after {after}: {merged:?}");
    }
}

/// A header that a process before left unsynced is not built upon.
#[test]
fn header_that_was_not_synced_is_lost_with_all_that_it_leads_to() {
    for (cut, (power, after)) in (0..8).flat_map(|cut| breaks(4).map(move |one| (cut, one))) {
        let (_, region) = open_on(&power);
        write(&region, 0, &[1]).unwrap();
        power.break_after(1, after);
        let first = region.persist(region.pages());
        power.mend();
        drop(region);
        let (_, region) = open_on(&power);
        write(&region, 0, &[2]).unwrap();
        power.cut_after(cut);
        let second = region.persist(region.pages());
        let may: &[u8] = if second.is_ok() { &[2] } else { &[0, 1, 2] };
        let byte = after_cut(&power, region);
        assert!(may.contains(&byte), "after {after}, {cut}: {byte}; {first:?}, {second:?}");
    }
}
