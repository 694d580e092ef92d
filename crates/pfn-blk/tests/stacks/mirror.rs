// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mirrors: legs that fail, come back, and are brought up.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pfn_blk::LegState::{Failed, Healthy, Recovering};
use pfn_blk::{
    BioError, FileStore, HookedStore, InSync, InvalidMirror, LegState, MemoryStore, Mirror,
    MirrorLog, Pagemap, PfnSpace, Pgoff, Region, ReplaceError, StoreOperation, Target,
};

use crate::model::{fill, range};
use crate::stack::{nr_pages, read};

/// A leg of 16 pages, or a log of 2.
pub(crate) struct Part {
    pub(crate) pagemap: Arc<Pagemap>,
    pub(crate) control: Arc<Control>,
}

#[derive(Default)]
pub(crate) struct Control {
    is_broken: AtomicBool,
    /// Whether it syncs all the same: a sync that fails is never forgotten.
    syncs: AtomicBool,
    /// The pages that were written, in order.
    written: Mutex<Vec<u64>>,
    /// Called once, in the midst of the next operation of this kind.
    meanwhile: Mutex<Option<(Kind, Meanwhile)>>,
}

type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Persist,
    Note,
}

impl Control {
    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::SeqCst);
    }

    fn meanwhile(&self, kind: Kind, act: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some((kind, Box::new(act)));
    }

    /// Has another thread write to the first page, in the midst of the next operation of this
    /// kind: it has to wait, and has time enough not to.
    fn write_meanwhile(
        &self,
        kind: Kind,
        region: &Arc<Region>,
        byte: u8,
    ) -> Receiver<Result<(), BioError>> {
        let region = Arc::clone(region);
        let (done, is_done) = std::sync::mpsc::channel();
        self.meanwhile(kind, move || {
            thread::spawn(move || done.send(write(&region, 0, byte)));
            thread::sleep(Duration::from_millis(50));
        });
        is_done
    }

    pub(crate) fn take_written(&self) -> Vec<u64> {
        std::mem::take(&mut self.written.lock().unwrap())
    }

    fn hook(&self, operation: StoreOperation) -> io::Result<()> {
        let kind = match operation {
            StoreOperation::Read(_) => Kind::Read,
            StoreOperation::Write(_) => Kind::Write,
            StoreOperation::Persist => Kind::Persist,
            StoreOperation::Attribute | StoreOperation::SetAttribute => Kind::Note,
        };
        let meanwhile = self.meanwhile.lock().unwrap().take_if(|(of, _)| *of == kind);
        if let Some((_, act)) = meanwhile {
            act();
        }
        let spared = kind == Kind::Persist && self.syncs.load(Ordering::SeqCst);
        if self.is_broken.load(Ordering::SeqCst) && !spared {
            return Err(io::Error::other("broken"));
        }
        if let StoreOperation::Write(pages) = operation {
            self.written.lock().unwrap().extend(pages.start().get()..pages.end());
        }
        Ok(())
    }
}

/// Two legs and a log.
pub(crate) struct Parts {
    pub(crate) legs: [Part; 2],
    pub(crate) log: Part,
}

pub(crate) const LEG_PAGES: u64 = 16;
/// Pages of a region.
pub(crate) const REGION: u64 = 2;

impl Parts {
    pub(crate) fn new() -> Self {
        let mut space = PfnSpace::new();
        let mut part = |name, pages| {
            let control = Arc::new(Control::default());
            let hooked = Arc::clone(&control);
            let store = MemoryStore::new(name, nr_pages(pages)).unwrap();
            let store = HookedStore::new(store, move |operation| hooked.hook(operation));
            Part { pagemap: space.add(Box::new(store)).unwrap(), control }
        };
        let legs = [part("one", LEG_PAGES), part("two", LEG_PAGES)];
        Self { legs, log: part("log", 2) }
    }

    pub(crate) fn try_open(&self, in_sync: InSync) -> Result<(Arc<Mirror>, Region), InvalidMirror> {
        let leg = |part: &Part| (Arc::clone(&part.pagemap) as Arc<dyn Target>, Pgoff::ZERO);
        let device = Some(Arc::clone(&self.log.pagemap) as Arc<dyn Target>);
        let log = MirrorLog { device, region: nr_pages(REGION), in_sync };
        let mirror = Mirror::open(self.legs.iter().map(leg).collect(), log, nr_pages(LEG_PAGES))?;
        let mirror = Arc::new(mirror);
        let region = Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap();
        Ok((mirror, region))
    }

    pub(crate) fn open(&self, in_sync: InSync) -> (Arc<Mirror>, Region) {
        self.try_open(in_sync).unwrap()
    }

    pub(crate) fn controls(&self) -> [&Control; 2] {
        [&self.legs[0].control, &self.legs[1].control]
    }

    pub(crate) fn legs_are_equal(&self) -> bool {
        read(&*self.legs[0].pagemap) == read(&*self.legs[1].pagemap)
    }
}

pub(crate) fn states(mirror: &Mirror) -> Vec<LegState> {
    mirror.status().legs
}

pub(crate) fn write(region: &Region, page: u64, byte: u8) -> Result<(), BioError> {
    region.write(range(page, 1), &fill(&[byte]))
}

pub(crate) fn read_page(region: &Region, page: u64) -> Result<u8, BioError> {
    let mut bytes = vec![0; 4096];
    region.read(range(page, 1), &mut bytes)?;
    Ok(bytes[0])
}

#[test]
fn leg_that_fails_a_write_is_dropped_and_gets_what_it_missed() {
    let parts = Parts::new();
    let [_, two] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    assert_eq!(states(&mirror), [Healthy, Healthy]);
    write(&region, 0, 1).unwrap();
    region.persist(region.pages()).unwrap();
    region.persist(region.pages()).unwrap();
    two.set_broken(true);
    write(&region, 6, 2).unwrap();
    assert_eq!(states(&mirror), [Healthy, Failed]);
    two.set_broken(false);
    write(&region, 11, 3).unwrap();
    region.persist(region.pages()).unwrap();
    region.persist(region.pages()).unwrap();
    assert_eq!(two.take_written(), [0]);
    assert_eq!(mirror.status().stale, 2);

    let status = mirror.resync().unwrap();
    // What differs in the regions of pages 6 and 11.
    assert_eq!(two.take_written(), [6, 11]);
    assert_eq!((status.legs, status.stale, status.regions), (vec![Healthy, Healthy], 0, 8));
    assert!(parts.legs_are_equal());
}

#[test]
fn leg_that_fails_a_sync_is_dropped_with_what_was_not_synced() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 4, 1).unwrap();
    one.set_broken(true);
    region.persist(region.pages()).unwrap();
    assert_eq!(states(&mirror), [Failed, Healthy]);
    assert_eq!(mirror.status().stale, 1);
    one.set_broken(false);
    assert_eq!(read_page(&region, 4).unwrap(), 1);
    // Its store can't be believed any more: see `Pagemap::persist`. Until an operator knows better.
    assert_eq!(mirror.resync().unwrap().legs, [Failed, Healthy]);
    assert!(parts.legs[0].pagemap.clear_failure().unwrap());
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
    assert!(parts.legs_are_equal());
}

#[test]
fn leg_that_fails_a_read_is_dropped_and_another_one_answers() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 3, 7).unwrap();
    one.set_broken(true);
    assert_eq!(read_page(&region, 3).unwrap(), 7);
    assert_eq!(states(&mirror), [Failed, Healthy]);
    // Before a write misses it the log must know.
    write(&region, 3, 8).unwrap();
    drop((mirror, region));
    one.set_broken(false);
    let (mirror, region) = parts.open(InSync::AsLogged);
    assert_eq!(states(&mirror), [Recovering, Healthy]);
    assert_eq!(read_page(&region, 3).unwrap(), 8);
    mirror.resync().unwrap();
    assert!(parts.legs_are_equal());
}

#[test]
fn leg_that_is_cut_off_is_dropped_and_gets_all_again() {
    for (how, at_once) in [("read", true), ("write", true), ("persist", true), ("read", false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let open = || {
            let mut space = PfnSpace::new();
            let mut store = |name: &str, size| {
                let (store, _) = FileStore::open_sized(&path(name), nr_pages(size)).unwrap();
                space.add(Box::new(store)).unwrap() as Arc<dyn Target>
            };
            let legs = ["one", "two"].map(|leg| (store(leg, 16), Pgoff::ZERO));
            let device = Some(store("log", 2));
            let log = MirrorLog { device, region: nr_pages(1), in_sync: InSync::Yes };
            let mirror = Arc::new(Mirror::open(legs.into(), log, nr_pages(16)).unwrap());
            (Arc::clone(&mirror), Region::try_new(mirror as _).unwrap())
        };
        let (mirror, region) = open();
        region.write(range(0, 16), &vec![1; 16 * 4096]).unwrap();
        // None of it is being written any more, as far as the log knows.
        (0..3).for_each(|_| region.persist(region.pages()).unwrap());
        let file = std::fs::File::options().write(true).open(path("one")).unwrap();
        file.set_len(4096).unwrap();
        match how {
            "read" => assert_eq!(read_page(&region, 15).unwrap(), 1),
            // It must not grow the leg, which would then hold zeroes.
            "write" => write(&region, 12, 1).unwrap(),
            _ => region.persist(region.pages()).unwrap(),
        }
        assert_eq!(states(&mirror), [Failed, Healthy], "{how}");
        assert_eq!(read_page(&region, 5).unwrap(), 1, "{how}");
        file.set_len(16 * 4096).unwrap();
        let (mirror, region) = match at_once {
            true => (mirror, region),
            false => {
                drop((mirror, region));
                open()
            }
        };
        let whole = mirror.resync();
        if how == "persist" {
            // A sync that has failed is never forgotten, and so the leg neither.
            assert_eq!(whole.unwrap().legs, [Failed, Healthy]);
            continue;
        }
        assert_eq!(whole.unwrap().legs, [Healthy, Healthy], "{how}");
        drop((mirror, region));
        assert!(std::fs::read(path("one")).unwrap() == [1; 16 * 4096], "{how}: a page is lost");
    }
}

#[test]
fn leg_that_was_dropped_is_known_to_the_next_process() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    one.set_broken(true);
    write(&region, 3, 8).unwrap();
    drop((mirror, region));
    one.set_broken(false);
    let (mirror, region) = parts.open(InSync::AsLogged);
    assert_eq!(states(&mirror), [Recovering, Healthy]);
    assert_eq!(read_page(&region, 3).unwrap(), 8);
}

#[test]
fn leg_that_misses_a_persist_is_known_to_the_next_process() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 3, 8).unwrap();
    one.set_broken(true);
    // The read drops it, and the persist must not have been for the other leg alone.
    assert_eq!(read_page(&region, 3).unwrap(), 8);
    region.persist(region.pages()).unwrap();
    drop((mirror, region));
    one.set_broken(false);
    assert_eq!(states(&parts.open(InSync::AsLogged).0), [Recovering, Healthy]);
}

#[test]
fn resync_that_fails_leaves_all_that_it_copied_to_be_copied_again() {
    let parts = Parts::new();
    let [one, two] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 3, 7).unwrap();
    assert_eq!(two.take_written(), [3]);
    two.set_broken(true);
    write(&region, 3, 8).unwrap();
    two.set_broken(false);
    let broken = Arc::clone(&parts.legs[0].control);
    one.meanwhile(Kind::Persist, move || broken.set_broken(true));
    mirror.resync().unwrap_err();
    assert_eq!(two.take_written(), [3]);
    assert_eq!((states(&mirror), mirror.status().stale), (vec![Healthy, Failed], 1));
}

#[test]
fn leg_is_told_that_it_is_brought_up_before_it_is_copied_to() {
    let parts = Parts::new();
    let [one, two] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    two.set_broken(true);
    write(&region, 3, 8).unwrap();
    two.set_broken(false);
    // An image that has this label lacks what bits won't tell once it is copied.
    let leg = Arc::clone(&parts.legs[1].pagemap);
    let label = move || leg.store().attribute("leg.0").unwrap();
    let before = label();
    let (tell, told) = std::sync::mpsc::channel();
    one.meanwhile(Kind::Read, move || tell.send(label()).unwrap());
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
    assert_ne!(told.recv().unwrap(), before);
}

#[test]
fn writes_to_one_page_reach_the_legs_in_one_order() {
    let parts = Parts::new();
    let [_, two] = parts.controls();
    let (_, region) = parts.open(InSync::Yes);
    let region = Arc::new(region);
    let is_done = two.write_meanwhile(Kind::Write, &region, 2);
    write(&region, 0, 1).unwrap();
    is_done.recv().unwrap().unwrap();
    assert_eq!(read_page(&region, 0).unwrap(), 2);
    assert!(parts.legs_are_equal());
}

#[test]
fn write_during_a_persist_keeps_its_bit() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    let region = Arc::new(region);
    let writer = Arc::clone(&region);
    one.meanwhile(Kind::Persist, move || write(&writer, 4, 1).unwrap());
    region.persist(region.pages()).unwrap();
    drop((mirror, region));
    assert_eq!(parts.open(InSync::AsLogged).0.status().stale, 1);
}

#[test]
fn write_that_takes_long_keeps_its_bit() {
    let parts = Parts::new();
    let [_, two] = parts.controls();
    let (_, region) = parts.open(InSync::Yes);
    let region = Arc::new(region);
    let other = Arc::clone(&region);
    let log = Arc::clone(&parts.log.pagemap);
    two.meanwhile(Kind::Write, move || {
        (0..4).for_each(|_| other.persist(other.pages()).unwrap());
        // The third region.
        assert_eq!(read(&*log)[4096], 1 << 2);
    });
    write(&region, 4, 1).unwrap();
    assert_eq!(two.take_written(), [4]);
}

#[test]
fn write_to_a_region_that_is_copied_reaches_all_legs() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::No);
    let region = Arc::new(region);
    let is_done = one.write_meanwhile(Kind::Read, &region, 1);
    mirror.resync().unwrap();
    is_done.recv().unwrap().unwrap();
    assert_eq!(read_page(&region, 0).unwrap(), 1);
    assert!(parts.legs_are_equal());
}

#[test]
fn resync_makes_way_for_a_leg_that_is_replaced() {
    let (parts, spare) = (Parts::new(), Parts::new());
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::No);
    write(&region, 3, 8).unwrap();
    let (replacing, new) = (Arc::clone(&mirror), Arc::clone(&spare.legs[0].pagemap));
    let (done, is_done) = std::sync::mpsc::channel();
    one.meanwhile(Kind::Read, move || {
        thread::spawn(move || done.send(replacing.replace(1, new as _, Pgoff::ZERO)));
        thread::sleep(Duration::from_millis(500));
    });
    assert!(matches!(mirror.resync(), Err(BioError::Interrupted)));
    is_done.recv().unwrap().unwrap();
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
    assert!(read(&*parts.legs[0].pagemap) == read(&*spare.legs[0].pagemap));
}

#[test]
fn resync_goes_on_while_a_leg_that_can_not_be_replaced_is_refused() {
    let (parts, spare) = (Parts::new(), Parts::new());
    let [one, _] = parts.controls();
    let (mirror, region) = parts.open(InSync::No);
    write(&region, 3, 8).unwrap();
    let (replacing, new) = (Arc::clone(&mirror), Arc::clone(&spare.legs[0].pagemap));
    let (done, is_done) = std::sync::mpsc::channel();
    one.meanwhile(Kind::Read, move || {
        thread::spawn(move || done.send(replacing.replace(0, new as _, Pgoff::ZERO)));
        thread::sleep(Duration::from_millis(500));
    });
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
    let refused = is_done.recv().unwrap();
    assert!(matches!(refused, Err(ReplaceError::LastHealthy)), "{refused:?}");
}

#[test]
fn resync_of_what_was_opened_leaves_a_leg_that_was_replaced_alone() {
    let (parts, spare) = (Parts::new(), Parts::new());
    let (mirror, _) = parts.open(InSync::Yes);
    assert_eq!(mirror.resync_as_opened().unwrap().legs, [Healthy, Healthy]);
    mirror.replace(1, Arc::clone(&spare.legs[0].pagemap) as _, Pgoff::ZERO).unwrap();
    assert!(matches!(mirror.resync_as_opened(), Err(BioError::Interrupted)));
    assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
}

#[test]
fn what_fails_on_all_legs_fails_and_drops_none() {
    let parts = Parts::new();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 3, 7).unwrap();
    parts.controls().iter().for_each(|control| control.set_broken(true));
    write(&region, 3, 8).unwrap_err();
    read_page(&region, 3).unwrap_err();
    region.persist(region.pages()).unwrap_err();
    assert_eq!(states(&mirror), [Healthy, Healthy]);
    parts.controls().iter().for_each(|control| control.set_broken(false));
    assert_eq!(read_page(&region, 3).unwrap(), 7);
    // Nobody knows how far the write got on each.
    assert_eq!(mirror.status().stale, 1);
}

#[test]
fn last_healthy_leg_is_never_dropped() {
    let parts = Parts::new();
    let [one, two] = parts.controls();
    let (mirror, region) = parts.open(InSync::Yes);
    write(&region, 3, 7).unwrap();
    two.set_broken(true);
    write(&region, 3, 8).unwrap();
    one.set_broken(true);
    two.set_broken(false);
    // The other leg has something else.
    read_page(&region, 3).unwrap_err();
    write(&region, 3, 9).unwrap_err();
    mirror.resync().unwrap_err();
    assert_eq!(states(&mirror), [Healthy, Failed]);
    one.set_broken(false);
    assert_eq!(read_page(&region, 3).unwrap(), 8);
}

#[test]
fn leg_that_may_hold_something_else_is_not_read() {
    let parts = Parts::new();
    let [one, _] = parts.controls();
    let leg = Region::try_new(Arc::clone(&parts.legs[0].pagemap) as Arc<dyn Target>).unwrap();
    write(&leg, 5, 1).unwrap();
    drop(leg);
    let (mirror, region) = parts.open(InSync::AsLogged);
    assert_eq!((states(&mirror), mirror.status().stale), (vec![Healthy, Recovering], 8));
    one.set_broken(true);
    read_page(&region, 5).unwrap_err();
    one.set_broken(false);
    mirror.resync().unwrap();
    one.set_broken(true);
    assert_eq!(read_page(&region, 5).unwrap(), 1);
}

#[test]
fn mirror_has_its_legs_and_its_log_to_itself() {
    let parts = Parts::new();
    let (mirror, region) = parts.open(InSync::Yes);
    for part in parts.legs.iter().chain([&parts.log]) {
        let other = Region::try_new(Arc::clone(&part.pagemap) as Arc<dyn Target>);
        assert!(other.unwrap_err().to_string().contains("is used twice"));
    }
    assert!(matches!(parts.try_open(InSync::Yes), Err(InvalidMirror::Claimed(_))));
    drop((mirror, region));
    Region::try_new(Arc::clone(&parts.log.pagemap) as Arc<dyn Target>).unwrap();
    parts.open(InSync::Yes);
}

#[test]
fn legs_and_logs_that_make_no_mirror_are_refused() {
    let mut space = PfnSpace::new();
    let mut store = |pages| {
        let store = MemoryStore::new("store", nr_pages(pages)).unwrap();
        space.add(Box::new(store)).unwrap() as Arc<dyn Target>
    };
    let mut refusal = |sizes: &[u64], log: Option<u64>, region, size| {
        let legs = sizes.iter().map(|pages| (store(*pages), Pgoff::ZERO)).collect();
        let device = log.map(&mut store);
        let log = MirrorLog { device, region: nr_pages(region), in_sync: InSync::Yes };
        Mirror::open(legs, log, nr_pages(size)).unwrap_err()
    };
    assert!(matches!(refusal(&[4], None, 1, 4), InvalidMirror::Legs(1)));
    assert!(matches!(refusal(&[4; 9], None, 1, 4), InvalidMirror::Legs(9)));
    assert!(matches!(refusal(&[4, 3], None, 1, 4), InvalidMirror::Leg { leg: 1, .. }));
    let large = 1 << 28;
    assert!(matches!(refusal(&[large; 2], None, 1, large), InvalidMirror::SmallRegion(_)));
    assert!(matches!(refusal(&[4; 2], Some(1), 1, 4), InvalidMirror::SmallLog { .. }));
    let two_pages_of_bits = 40_000;
    let refused = refusal(&[two_pages_of_bits; 2], Some(2), 1, two_pages_of_bits);
    let InvalidMirror::SmallLog { least, .. } = refused else { panic!("{refused}") };
    assert_eq!(least.get(), 3);
}

/// Writers, a resync and legs that come and go, all at once.
#[test]
fn legs_are_the_same_after_any_amount_of_trouble() {
    for round in 0..20 {
        let parts = Parts::new();
        let (mirror, region) = parts.open(InSync::Yes);
        parts.controls().iter().for_each(|control| control.syncs.store(true, Ordering::SeqCst));
        let stop = AtomicBool::new(false);
        let go_on = || !stop.load(Ordering::SeqCst);
        let one_is_healthy = || {
            let states = states(&mirror);
            assert!(states.contains(&Healthy), "{states:?}");
        };
        thread::scope(|scope| {
            for writer in 0..3u8 {
                let region = &region;
                scope.spawn(move || {
                    let mut byte = writer;
                    while go_on() {
                        byte = byte.wrapping_add(3);
                        // Overlapping those of the others.
                        let start = u64::from(byte.wrapping_mul(7)) % (LEG_PAGES - 3);
                        // It fails where the one leg is broken, and the other behind.
                        let _ = region.write(range(start, 3), &fill(&[byte; 3]));
                    }
                });
            }
            scope.spawn(|| {
                while go_on() {
                    let _ = mirror.resync();
                    one_is_healthy();
                }
            });
            for trouble in 0..200 {
                let leg = (trouble + round) % 2;
                let broken = parts.controls()[leg];
                broken.set_broken(true);
                thread::yield_now();
                broken.set_broken(false);
                one_is_healthy();
            }
            stop.store(true, Ordering::SeqCst);
        });
        assert_eq!(mirror.resync().unwrap().legs, [Healthy, Healthy]);
        assert!(parts.legs_are_equal(), "round {round}");
    }
}
