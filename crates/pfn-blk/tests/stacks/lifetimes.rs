// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long pfns may be used, and that nothing uses them after: the tests that the thread of 2015
//! never had.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pfn_blk::{
    AccessError, BioError, DisableError, InSync, Lease, LegState, MemoryStore, Mirror, MirrorLog,
    NotDirectReason, NrPages, Pagemap, PersistError, Pfn, PfnSpace, Pgoff, Region, Target,
};

use crate::model::{fill, range};

/// Without end: whoever isn't woken hangs.
const LONG: Duration = Duration::MAX;

/// A region of one store, and what disables it.
fn region(name: &str) -> (Region, Arc<Pagemap>, PfnSpace) {
    let mut space = PfnSpace::new();
    let store = MemoryStore::new(name, NrPages::try_new(4).unwrap()).unwrap();
    let pagemap = space.add(Box::new(store)).unwrap();
    (Region::try_new(Arc::clone(&pagemap) as Arc<dyn Target>).unwrap(), pagemap, space)
}

#[test]
fn use_after_disable_fails_by_name_in_every_way() {
    let (region, pagemap, mut space) = region("gone");
    let pfn = pagemap.pfns().start();
    let extent = region.direct_access(range(0, 4)).unwrap();
    space.disable(pfn, Duration::ZERO).unwrap();

    let disabled = |shown: String| assert_eq!(shown, "gone was disabled");
    disabled(extent.lease().unwrap_err().to_string());
    disabled(extent.lease_revocable(|| panic!("it was never held")).unwrap_err().to_string());
    match region.direct_access(range(0, 1)).unwrap_err() {
        AccessError::NotDirect(not) => match not.because {
            NotDirectReason::Disabled(error) => disabled(error.to_string()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    region.pin(range(0, 1)).unwrap_err();
    region.kmap(range(0, 1)).unwrap_err();
    let error = region.read(range(0, 1), &mut [0; 4096]).unwrap_err();
    assert!(matches!(error, BioError::Disabled(_)), "{error:?}");
    let error = region.write(range(0, 1), &[0; 4096]).unwrap_err();
    assert!(matches!(error, BioError::Disabled(_)), "{error:?}");
    let error = region.persist(range(0, 1)).unwrap_err();
    assert!(matches!(error, PersistError::Disabled(_)), "{error:?}");
    assert!(space.find(pfn).is_none());
    assert_eq!(space.disable(pfn, Duration::ZERO), Err(DisableError::Stale(pfn)));
}

#[test]
fn disable_waits_for_leases_and_says_how_many() {
    let (region, pagemap, mut space) = region("held");
    let pfn = pagemap.pfns().start();
    let sg = region.pin(range(0, 2)).unwrap();
    let lease = region.direct_access(range(2, 1)).unwrap().lease().unwrap();
    let in_use = |users| DisableError::InUse { store: "held".to_owned(), users };
    assert_eq!(space.disable(pfn, Duration::from_millis(5)), Err(in_use(2)));
    // Half-way: what is held is good, and nothing new begins.
    assert_eq!(sg.runs()[0].nr_pages().get(), 2);
    assert!(region.pin(range(0, 1)).is_err());
    drop(lease);
    assert_eq!(space.disable(pfn, Duration::ZERO), Err(in_use(1)));
    drop(sg);
    space.disable(pfn, Duration::ZERO).unwrap();
}

#[test]
fn kmap_outlives_the_call_and_not_the_store() {
    let (region, pagemap, mut space) = region("mapped");
    let mapped = region.kmap(range(0, 4)).unwrap();
    thread::scope(|scope| {
        let disable = scope.spawn(|| space.disable(pagemap.pfns().start(), LONG));
        thread::sleep(Duration::from_millis(20));
        assert!(!disable.is_finished());
        mapped.write(4096, &fill(&[7])).unwrap();
        drop(mapped);
        disable.join().unwrap().unwrap();
    });
}

#[test]
fn holders_are_told_last_first_and_once() {
    let (region, pagemap, mut space) = region("revoked");
    let told = Arc::new(Mutex::new(Vec::new()));
    let held: Arc<Mutex<Vec<Option<Lease>>>> = Arc::default();
    for holder in 0..4 {
        let (told, holding) = (Arc::clone(&told), Arc::clone(&held));
        let revoke = move || {
            told.lock().unwrap().push(holder);
            // Giving it back from within is as good as later.
            let lease = holding.lock().unwrap()[holder].take();
            drop(lease);
        };
        let extent = region.direct_access(range(holder as u64, 1)).unwrap();
        held.lock().unwrap().push(Some(extent.lease_revocable(revoke).unwrap()));
    }
    // Who gave it back before isn't told.
    let early = held.lock().unwrap()[2].take();
    drop(early);
    space.disable(pagemap.pfns().start(), LONG).unwrap();
    assert_eq!(*told.lock().unwrap(), [3, 1, 0]);
}

#[test]
fn racing_users_all_fail_once_the_store_is_gone() {
    for _ in 0..100 {
        let (region, pagemap, mut space) = region("raced");
        let gone = AtomicBool::new(false);
        thread::scope(|scope| {
            let use_it = |mut one: Box<dyn FnMut() -> bool + Send>| {
                let gone = &gone;
                scope.spawn(move || {
                    loop {
                        let was_gone = gone.load(Ordering::SeqCst);
                        let worked = one();
                        assert!(!(was_gone && worked), "used after it was gone");
                        if !worked {
                            return;
                        }
                    }
                });
            };
            let region = &region;
            use_it(Box::new(|| region.write(range(0, 2), &fill(&[1, 2])).is_ok()));
            use_it(Box::new(|| region.read(range(1, 1), &mut [0; 4096]).is_ok()));
            use_it(Box::new(|| region.persist(range(0, 4)).is_ok()));
            use_it(Box::new(|| region.pin(range(0, 4)).is_ok()));
            use_it(Box::new(|| {
                region.kmap(range(3, 1)).is_ok_and(|map| map.write(0, &[1]).is_ok())
            }));
            use_it(Box::new(|| region.direct_access(range(0, 1)).is_ok()));
            space.disable(pagemap.pfns().start(), LONG).unwrap();
            gone.store(true, Ordering::SeqCst);
        });
    }
}

#[test]
fn no_pfn_is_handed_out_twice_in_a_million_rounds() {
    /// Nothing but a size: a million files take their time.
    #[derive(Debug)]
    struct Sized(u64);
    impl pfn_blk::Store for Sized {
        fn name(&self) -> &str {
            "sized"
        }
        fn nr_pages(&self) -> NrPages {
            NrPages::try_new(self.0).unwrap()
        }
        fn access(&self) -> pfn_blk::Access {
            pfn_blk::Access::ReadWrite
        }
        fn is_persistent(&self) -> bool {
            true
        }
        fn is_removed(&self) -> bool {
            false
        }
        fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
            rustix::stdio::stdin()
        }
        fn read(&self, _: pfn_blk::Pgoff, _: &mut [u8]) -> std::io::Result<()> {
            unreachable!("nobody reads it")
        }
        fn write(&self, _: pfn_blk::Pgoff, _: &[u8]) -> std::io::Result<()> {
            unreachable!("nobody writes it")
        }
        fn persist(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn attribute(&self, _: &str) -> std::io::Result<Option<Vec<u8>>> {
            Ok(None)
        }
        fn set_attribute(&self, _: &str, _: Option<&[u8]>) -> std::io::Result<()> {
            Ok(())
        }
        fn attributes(&self) -> std::io::Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn identity(&self) -> std::io::Result<u64> {
            Ok(0)
        }
    }

    let mut space = PfnSpace::new();
    let mut end = 0;
    let mut live: Vec<(Pfn, u64)> = Vec::new();
    for round in 0..1_000_000u64 {
        let pfns = space.add(Box::new(Sized(1 + round % 7))).unwrap().pfns();
        assert!(pfns.start().get() >= end, "round {round}");
        end = pfns.end();
        live.push((pfns.start(), pfns.end()));
        if live.len() > 10 {
            // Neither the oldest nor the newest first.
            let at = usize::try_from(round * 7919 % 10).unwrap();
            let (start, end) = live.swap_remove(at);
            space.disable(start, Duration::ZERO).unwrap();
            assert!(space.find(start).is_none());
            assert!(space.find(Pfn::try_new(end - 1).unwrap()).is_none());
        }
    }
}

#[test]
fn mirror_goes_on_without_a_store_that_is_gone() {
    let mut space = PfnSpace::new();
    let mut store = |name| {
        let store = MemoryStore::new(name, NrPages::try_new(4).unwrap()).unwrap();
        space.add(Box::new(store)).unwrap()
    };
    let (one, two, log) = (store("one"), store("two"), store("log"));
    let leg = |store: &Arc<Pagemap>| (Arc::clone(store) as Arc<dyn Target>, Pgoff::ZERO);
    let device = Some(Arc::clone(&log) as Arc<dyn Target>);
    let log = MirrorLog { device, region: NrPages::ONE, in_sync: InSync::Yes };
    let nr_pages = NrPages::try_new(4).unwrap();
    let mirror = Arc::new(Mirror::open(vec![leg(&one), leg(&two)], log, nr_pages).unwrap());
    let region = Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap();
    region.write(range(0, 4), &fill(&[1, 2, 3, 4])).unwrap();
    space.disable(one.pfns().start(), LONG).unwrap();
    let mut bytes = vec![0; 4 * 4096];
    region.read(range(0, 4), &mut bytes).unwrap();
    assert!(bytes == fill(&[1, 2, 3, 4]));
    region.persist(range(0, 4)).unwrap();
    assert_eq!(mirror.status().legs, [LegState::Failed, LegState::Healthy]);
    space.disable(two.pfns().start(), LONG).unwrap();
    let error = region.read(range(0, 4), &mut bytes).unwrap_err();
    assert_eq!(error.to_string(), "two was disabled");
}
