// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which leg of a mirror is believed: legs that come back old, blank or another's, legs that are away,
//! logs that are lost, and legs that are replaced.

use std::sync::Arc;

use pfn_blk::LegState::{Failed, Healthy, Missing, Recovering};
use pfn_blk::{
    ErrorTarget, InSync, InvalidMetadata, InvalidMirror, LegState, MemoryStore, Mirror, MirrorLog,
    Pagemap, PfnSpace, Pgoff, Region, ReplaceError, Target, leave_mirrors,
};

use crate::model::{fill, range};
use crate::stack::{nr_pages, read};

pub(crate) const PAGES: u64 = 16;
pub(crate) const REGION: u64 = 2;

/// Disks that are there whatever becomes of mirrors: the last one is for a log.
pub(crate) struct Disks(pub(crate) Vec<Arc<Pagemap>>);

/// What is in a leg's place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum At {
    Disk(usize),
    Nothing,
}
use At::{Disk, Nothing};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Log {
    Core,
    Kept,
}

impl Disks {
    pub(crate) fn new() -> Self {
        let mut space = PfnSpace::new();
        let mut disk = |pages| {
            let store = MemoryStore::new("disk", nr_pages(pages)).unwrap();
            space.add(Box::new(store)).unwrap()
        };
        let mut disks: Vec<_> = (0..4).map(|_| disk(PAGES)).collect();
        disks.push(disk(2));
        Self(disks)
    }

    pub(crate) fn try_open(
        &self,
        legs: &[At],
        log: Log,
        in_sync: InSync,
    ) -> Result<Served, InvalidMirror> {
        let leg = |at: &At| -> (Arc<dyn Target>, Pgoff) {
            match *at {
                Disk(number) => (Arc::clone(&self.0[number]) as _, Pgoff::ZERO),
                Nothing => (Arc::new(ErrorTarget::new(nr_pages(PAGES))), Pgoff::ZERO),
            }
        };
        let device = (log == Log::Kept).then(|| Arc::clone(&self.0[4]) as Arc<dyn Target>);
        let log = MirrorLog { device, region: nr_pages(REGION), in_sync };
        let mirror = Mirror::open(legs.iter().map(leg).collect(), log, nr_pages(PAGES))?;
        let mirror = Arc::new(mirror);
        let region = Region::try_new(Arc::clone(&mirror) as Arc<dyn Target>).unwrap();
        Ok(Served { mirror, region })
    }

    fn open(&self, legs: &[At], log: Log) -> Served {
        self.try_open(legs, log, InSync::AsLogged).unwrap()
    }

    fn refusal(&self, legs: &[At], log: Log) -> InvalidMirror {
        self.try_open(legs, log, InSync::AsLogged).map(|served| served.states()).unwrap_err()
    }

    pub(crate) fn region(&self, disk: usize) -> Region {
        Region::try_new(Arc::clone(&self.0[disk]) as Arc<dyn Target>).unwrap()
    }

    /// Another disk is in its place, which holds nothing and says nothing.
    pub(crate) fn blank(&self, disk: usize) {
        let region = self.region(disk);
        let pages = usize::try_from(region.nr_pages().get()).unwrap();
        region.write(region.pages(), &vec![0; pages * 4096]).unwrap();
        self.unmark(disk);
    }

    /// It says nothing of itself any more.
    pub(crate) fn unmark(&self, disk: usize) {
        self.0[disk].store().set_attribute("leg.0", None).unwrap();
    }

    /// What it holds, and what it says: an image of it.
    pub(crate) fn image(&self, disk: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        (read(&*self.0[disk]), self.0[disk].store().attribute("leg.0").unwrap())
    }

    pub(crate) fn restore(&self, disk: usize, (bytes, label): &(Vec<u8>, Option<Vec<u8>>)) {
        self.region(disk).write(self.region(disk).pages(), bytes).unwrap();
        self.0[disk].store().set_attribute("leg.0", label.as_deref()).unwrap();
    }

    fn page(&self, disk: usize, page: u64) -> u8 {
        read(&*self.0[disk])[usize::try_from(page).unwrap() * 4096]
    }
}

pub(crate) struct Served {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) region: Region,
}

impl Served {
    pub(crate) fn states(&self) -> Vec<LegState> {
        self.mirror.status().legs
    }

    /// Writes a page, and has it be acknowledged.
    pub(crate) fn flush(&self, page: u64, byte: u8) {
        self.region.write(range(page, 1), &fill(&[byte])).unwrap();
        self.region.persist(self.region.pages()).unwrap();
    }

    pub(crate) fn page(&self, page: u64) -> u8 {
        page_of(&self.region, page)
    }

    pub(crate) fn resync(&self) -> Vec<LegState> {
        self.mirror.resync().unwrap().legs
    }
}

pub(crate) fn page_of(region: &Region, page: u64) -> u8 {
    let mut bytes = vec![0; 4096];
    region.read(range(page, 1), &mut bytes).unwrap();
    bytes[0]
}

/// Two legs that hold the same, page 3 a 1.
fn settled(log: Log) -> Disks {
    let disks = Disks::new();
    let served = disks.open(&[Disk(0), Disk(1)], log);
    served.flush(3, 1);
    assert_eq!(served.resync(), [Healthy, Healthy]);
    // By then the log has forgotten what was written to.
    (0..3).for_each(|_| served.region.persist(served.region.pages()).unwrap());
    drop(served);
    disks
}

#[test]
fn leg_that_was_away_is_copied_to_when_it_is_back() {
    for log in [Log::Core, Log::Kept] {
        for away in [0, 1] {
            let disks = settled(log);
            let mut legs = [Disk(0), Disk(1)];
            legs[away] = Nothing;
            let served = disks.open(&legs, log);
            assert_eq!(served.states()[away], Missing);
            served.flush(3, 2);
            drop(served);
            let served = disks.open(&[Disk(0), Disk(1)], log);
            assert_eq!(served.states()[away], Recovering);
            assert_eq!(served.page(3), 2, "leg {away} was away");
            assert_eq!(served.resync(), [Healthy, Healthy]);
            assert_eq!((disks.page(0, 3), disks.page(1, 3)), (2, 2));
        }
    }
}

#[test]
fn leg_that_was_away_for_long_is_known_still() {
    let disks = settled(Log::Core);
    for byte in 0..40 {
        disks.open(&[Disk(0), Nothing], Log::Core).flush(3, byte);
    }
    let served = disks.open(&[Disk(0), Disk(1)], Log::Core);
    assert_eq!((served.states(), served.page(3)), (vec![Healthy, Recovering], 39));
}

#[test]
fn what_was_read_before_a_flush_is_the_same_whichever_leg_is_the_first_then() {
    for log in [Log::Core, Log::Kept] {
        let disks = settled(log);
        let served = disks.open(&[Disk(0), Disk(1)], log);
        served.region.write(range(3, 1), &fill(&[2])).unwrap();
        drop(served);
        // Power was cut, and one of the legs has lost what wasn't flushed.
        disks.region(1).write(range(3, 1), &fill(&[1])).unwrap();
        let served = disks.open(&[Disk(0), Disk(1)], log);
        assert_eq!((served.states()[1], served.page(3)), (Recovering, 2));
        served.region.persist(served.region.pages()).unwrap();
        drop(served);
        assert_eq!(disks.open(&[Disk(1), Disk(0)], log).page(3), 2);
    }
}

#[test]
fn log_tells_what_a_leg_that_was_away_lacks() {
    let disks = settled(Log::Kept);
    let served = disks.open(&[Disk(0), Nothing], Log::Kept);
    served.flush(3, 2);
    drop(served);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Kept);
    assert_eq!(served.mirror.status().stale, 1);
    // One that is away for longer than the others were all the same lacks more than that.
    let served = {
        drop(served);
        let served = disks.open(&[Disk(0), Disk(2)], Log::Kept);
        assert_eq!((served.resync(), served.page(3)), (vec![Healthy, Healthy], 2));
        served
    };
    served.flush(9, 5);
    drop(served);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Kept);
    assert_eq!((served.states(), served.mirror.status().stale), (vec![Healthy, Recovering], 8));
    assert_eq!(served.resync(), [Healthy, Healthy]);
    assert_eq!((disks.page(1, 3), disks.page(1, 9)), (2, 5));
}

#[test]
fn log_that_is_lost_does_not_make_an_old_leg_a_good_one() {
    let disks = settled(Log::Kept);
    let served = disks.open(&[Nothing, Disk(1)], Log::Kept);
    served.flush(3, 2);
    drop(served);
    disks.blank(4);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Kept);
    assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 2));
    assert_eq!(served.mirror.status().stale, PAGES / REGION);
    assert_eq!(served.resync(), [Healthy, Healthy]);
    assert_eq!(disks.page(0, 3), 2);
}

#[test]
fn log_that_missed_something_is_not_believed() {
    let disks = settled(Log::Kept);
    let log = disks.image(4);
    disks.open(&[Disk(0), Disk(1)], Log::Kept).flush(5, 7);
    disks.restore(4, &log);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Kept);
    assert_eq!(served.mirror.status().stale, PAGES / REGION);
}

#[test]
fn leg_that_was_replaced_by_a_blank_one_is_copied_to_wherever_it_stands() {
    for log in [Log::Core, Log::Kept] {
        for in_sync in [InSync::AsLogged, InSync::No, InSync::Yes] {
            for leg in [0, 1] {
                let disks = settled(log);
                disks.blank(leg);
                let served = disks.try_open(&[Disk(0), Disk(1)], log, in_sync).unwrap();
                assert_eq!((served.states()[leg], served.page(3)), (Recovering, 1), "{in_sync:?}");
                assert_eq!(served.resync(), [Healthy, Healthy]);
                assert_eq!((disks.page(0, 3), disks.page(1, 3)), (1, 1));
            }
        }
    }
}

#[test]
fn resync_that_is_cut_short_is_known_to_the_next_process() {
    for log in [Log::Core, Log::Kept] {
        let disks = settled(log);
        disks.blank(1);
        let served = disks.open(&[Disk(0), Disk(1)], log);
        // It is written to, and so says what it is; most of it isn't copied yet.
        served.flush(9, 7);
        drop(served);
        let served = disks.open(&[Disk(0), Disk(1)], log);
        assert_eq!((served.states(), served.page(3)), (vec![Healthy, Recovering], 1));
        drop(served);
        // By itself it is nothing.
        assert!(matches!(
            disks.refusal(&[Nothing, Disk(1)], log),
            InvalidMirror::NoneCurrent | InvalidMirror::LogNewer
        ));
        assert_eq!(disks.open(&[Disk(0), Disk(1)], log).resync(), [Healthy, Healthy]);
        assert_eq!(disks.page(1, 3), 1);
    }
}

#[test]
fn legs_are_known_wherever_they_stand_in_the_table() {
    for log in [Log::Core, Log::Kept] {
        let disks = settled(log);
        disks.open(&[Disk(0), Nothing], log).flush(3, 2);
        let served = disks.open(&[Disk(1), Disk(0)], log);
        assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 2));
        assert_eq!(served.resync(), [Healthy, Healthy]);
        assert_eq!(disks.page(1, 3), 2);
    }
}

#[test]
fn legs_that_both_went_on_alone_are_refused_until_one_is_given_up() {
    for log in [Log::Core, Log::Kept] {
        let disks = settled(log);
        disks.open(&[Disk(0), Nothing], log).flush(3, 2);
        // As if the other half of the machine had never heard of it.
        disks.blank(4);
        let alone = disks.open(&[Nothing, Disk(1)], log);
        alone.flush(4, 3);
        alone.flush(4, 3);
        drop(alone);
        let both = [Disk(0), Disk(1)];
        assert!(matches!(disks.refusal(&both, Log::Core), InvalidMirror::Diverged { .. }));
        disks.unmark(0);
        let served = disks.open(&both, log);
        assert_eq!((served.page(3), served.page(4)), (1, 3));
        assert_eq!(served.resync(), [Healthy, Healthy]);
    }
}

#[test]
fn leg_that_was_written_without_its_mirror_is_the_one_that_is_believed() {
    let disks = settled(Log::Kept);
    leave_mirrors([&disks.0[1]]).unwrap();
    disks.region(1).write(range(3, 1), &fill(&[9])).unwrap();
    let served = disks.open(&[Disk(0), Disk(1)], Log::Kept);
    assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 9));
    // The log knows nothing of it.
    assert_eq!(served.mirror.status().stale, PAGES / REGION);
    // Legs that are part of a mirror stay so.
    let label = disks.image(0).1;
    leave_mirrors(&disks.0).unwrap();
    assert_eq!(disks.image(0).1, label);
}

#[test]
fn leg_that_is_being_copied_to_is_not_served_alone() {
    let disks = settled(Log::Core);
    disks.blank(1);
    // It is told that it lacks something, and most isn't copied yet.
    disks.open(&[Disk(0), Disk(1)], Log::Core).flush(9, 7);
    let refused = leave_mirrors([&disks.0[1]]).unwrap_err();
    assert!(matches!(refused, InvalidMetadata::LegBehind), "{refused}");
    let served = disks.open(&[Disk(0), Disk(1)], Log::Core);
    assert_eq!((served.states(), served.page(3)), (vec![Healthy, Recovering], 1));
}

#[test]
fn leg_of_an_older_image_is_copied_to() {
    let disks = settled(Log::Core);
    let image = disks.image(0);
    disks.open(&[Disk(0), Disk(1)], Log::Core).flush(3, 2);
    disks.restore(0, &image);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Core);
    assert_eq!((served.states(), served.page(3)), (vec![Recovering, Healthy], 2));
}

#[test]
fn legs_and_logs_of_other_mirrors_are_refused() {
    let disks = settled(Log::Kept);
    let log = disks.image(4);
    disks.blank(4);
    disks.open(&[Disk(2), Disk(3)], Log::Kept).flush(0, 9);
    let of_another = disks.refusal(&[Disk(0), Disk(2)], Log::Core);
    assert!(matches!(of_another, InvalidMirror::OfAnother { .. }), "{of_another}");
    let refused = disks.refusal(&[Disk(0), Disk(1)], Log::Kept);
    assert!(matches!(refused, InvalidMirror::LogOfAnother), "{refused}");
    // A copy of a leg, with all that it says of itself.
    disks.restore(3, &disks.image(0));
    let copied = disks.refusal(&[Disk(0), Disk(3)], Log::Core);
    assert!(matches!(copied, InvalidMirror::Copied { leg: 0, other: 1 }), "{copied}");
    // Its own log is good still.
    disks.restore(4, &log);
    assert_eq!(disks.open(&[Disk(0), Disk(1)], Log::Kept).states(), [Healthy, Healthy]);
}

#[test]
fn legs_that_are_older_than_the_log_are_refused() {
    let disks = settled(Log::Kept);
    disks.open(&[Disk(0), Nothing], Log::Kept).flush(3, 2);
    let refused = disks.refusal(&[Nothing, Disk(1)], Log::Kept);
    assert!(matches!(refused, InvalidMirror::LogNewer), "{refused}");
    // The way out where the other one is lost for good.
    disks.blank(4);
    assert_eq!(disks.open(&[Nothing, Disk(1)], Log::Kept).page(3), 1);
}

#[test]
fn new_mirror_takes_all_its_legs_and_is_not_copied_from_nothing() {
    let disks = Disks::new();
    let refused = disks.refusal(&[Disk(0), Nothing], Log::Core);
    assert!(matches!(refused, InvalidMirror::NewWithout(1)), "{refused}");
    disks.region(1).write(range(0, 1), &fill(&[5])).unwrap();
    let refused = disks.refusal(&[Disk(0), Disk(1)], Log::Core);
    assert!(matches!(refused, InvalidMirror::BlankFirst(1)), "{refused}");
    let served = disks.open(&[Disk(1), Disk(0)], Log::Core);
    assert_eq!((served.page(0), served.resync()), (5, vec![Healthy, Healthy]));
    drop(served);
    // A log whose legs have all lost their labels tells nothing.
    let disks = settled(Log::Kept);
    [0, 1].into_iter().for_each(|leg| disks.unmark(leg));
    let refused = disks.refusal(&[Disk(0), Disk(1)], Log::Kept);
    assert!(matches!(refused, InvalidMirror::NoLabels), "{refused}");
}

#[test]
fn opening_a_mirror_changes_nothing() {
    let disks = settled(Log::Kept);
    disks.blank(1);
    let before: Vec<_> = (0..5).map(|disk| disks.image(disk)).collect();
    drop(disks.open(&[Disk(0), Disk(1)], Log::Kept));
    let after: Vec<_> = (0..5).map(|disk| disks.image(disk)).collect();
    assert!(before == after);
}

#[test]
fn leg_is_replaced_while_the_mirror_is_written() {
    let disks = settled(Log::Core);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Core);
    served.resync();
    let replace =
        |leg, disk: usize| served.mirror.replace(leg, Arc::clone(&disks.0[disk]) as _, Pgoff::ZERO);
    replace(0, 2).unwrap();
    assert_eq!(served.states(), [Failed, Healthy]);
    served.flush(4, 6);
    assert!(matches!(replace(1, 3), Err(ReplaceError::LastHealthy)));
    assert!(matches!(replace(2, 3), Err(ReplaceError::NoLeg(2))));
    assert_eq!(served.resync(), [Healthy, Healthy]);
    served.flush(5, 7);
    drop(served);
    assert_eq!([3, 4, 5].map(|page| disks.page(2, page)), [1, 6, 7]);
    // The one that was taken away is out of date, and known to be.
    let served = disks.open(&[Disk(0), Disk(1)], Log::Core);
    assert_eq!((served.states(), served.page(5)), (vec![Recovering, Healthy], 7));
    drop(served);
    // A leg of another mirror isn't taken.
    disks.open(&[Disk(0), Disk(3)], Log::Core);
    let disks = settled(Log::Core);
    disks.open(&[Disk(2), Disk(3)], Log::Core).flush(0, 1);
    let served = disks.open(&[Disk(0), Disk(1)], Log::Core);
    let refused = served.mirror.replace(1, Arc::clone(&disks.0[2]) as _, Pgoff::ZERO);
    assert!(matches!(refused, Err(ReplaceError::OfAnother)), "{refused:?}");
    assert_eq!(served.states(), [Healthy, Recovering]);
}

#[test]
fn leg_that_is_replaced_by_a_copy_is_compared_as_a_whole() {
    for log in [Log::Core, Log::Kept] {
        for copied in [0, 1] {
            let disks = settled(log);
            let served = disks.open(&[Disk(0), Disk(1)], log);
            served.flush(3, 2);
            assert_eq!(served.resync(), [Healthy, Healthy]);
            // As `cp -a` makes one while the mirror is served, to save the time of a resync.
            disks.restore(2, &disks.image(copied));
            served.flush(9, 5);
            (0..3).for_each(|_| served.region.persist(served.region.pages()).unwrap());
            served.mirror.replace(1, Arc::clone(&disks.0[2]) as _, Pgoff::ZERO).unwrap();
            assert_eq!(served.resync(), [Healthy, Healthy]);
            assert_eq!((disks.page(2, 3), disks.page(2, 9)), (2, 5), "a copy of {copied}");
        }
    }
}

#[test]
fn leg_that_went_on_by_itself_takes_no_place_in_a_mirror_that_is_served() {
    for log in [Log::Core, Log::Kept] {
        let disks = settled(log);
        let served = disks.open(&[Disk(0), Nothing], log);
        served.flush(3, 2);
        leave_mirrors([&disks.0[1]]).unwrap();
        disks.region(1).write(range(9, 1), &fill(&[9])).unwrap();
        let replace = || served.mirror.replace(1, Arc::clone(&disks.0[1]) as _, Pgoff::ZERO);
        let refused = replace();
        assert!(matches!(refused, Err(ReplaceError::Diverged)), "{refused:?}");
        assert_eq!(served.resync(), [Healthy, Missing]);
        assert_eq!(disks.page(1, 9), 9);
        disks.unmark(1);
        replace().unwrap();
        assert_eq!(served.resync(), [Healthy, Healthy]);
        assert_eq!((disks.page(1, 3), disks.page(1, 9)), (2, 0));
    }
}
