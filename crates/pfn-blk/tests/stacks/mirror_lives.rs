// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random lives of a mirror: its legs are away, come back old, blank, or as copies, change places, and
//! its log is lost. What is served is all that was acknowledged, or the mirror is refused for a reason.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::mirror_legs::At::{Disk, Nothing};
use crate::mirror_legs::{At, Disks, Log, Served};
use crate::model::cases;

const DISKS: usize = 4;
/// The pages that are written to.
const PAGES: u64 = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A process opens a mirror of these legs, flushes to these pages, copies what differs or doesn't,
    /// and ends.
    Run {
        legs: Vec<Option<Index>>,
        log: bool,
        flushes: Vec<Index>,
        resync: bool,
    },
    /// Another disk is in its place.
    Blank(Index),
    /// An operator gives up what it has.
    Unmark(Index),
    /// An image of it is kept, and comes back.
    Keep(Index),
    Restore(Index),
    LoseLog,
    KeepLog,
    RestoreLog,
}

fn any_step() -> impl Strategy<Value = Step> {
    let leg = || prop::option::weighted(0.8, any::<Index>());
    let run = (
        prop::collection::vec(leg(), 2..4),
        any::<bool>(),
        prop::collection::vec(any::<Index>(), 0..3),
        any::<bool>(),
    );
    let disk = any::<Index>;
    prop_oneof![
        12 => run.prop_map(|(legs, log, flushes, resync)| Step::Run { legs, log, flushes, resync }),
        1 => disk().prop_map(Step::Blank),
        1 => disk().prop_map(Step::Unmark),
        1 => disk().prop_map(Step::Keep),
        1 => disk().prop_map(Step::Restore),
        1 => Just(Step::LoseLog),
        1 => Just(Step::KeepLog),
        1 => Just(Step::RestoreLog),
    ]
}

/// Which flushes a disk has all of, a bit for each.
type History = u128;

/// What the model knows of a disk.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The mirror that it is a leg of.
    mirror: Option<usize>,
    history: History,
    /// It is being copied to, and holds a bit of everything.
    is_mixed: bool,
    /// It may be less than the mirror says, or came back as it was before.
    is_unsure: bool,
}

type Image = (Vec<u8>, Option<Vec<u8>>);

struct Life {
    disks: Disks,
    known: [Known; DISKS],
    kept: Vec<(usize, Image, Known)>,
    kept_log: Option<Image>,
    /// Whether the log is what the last run that had one left, and no run since was without.
    log_is_in_step: bool,
    mirrors: usize,
    /// The page of each flush.
    flushes: Vec<u64>,
    served: usize,
}

impl Life {
    fn new() -> Self {
        Self {
            disks: Disks::new(),
            known: [Known::default(); DISKS],
            kept: Vec::new(),
            kept_log: None,
            log_is_in_step: true,
            mirrors: 0,
            flushes: Vec::new(),
            served: 0,
        }
    }

    fn live(&mut self, step: &Step) {
        match step {
            Step::Run { legs, log, flushes, resync } => {
                let mut places: Vec<At> = Vec::new();
                for leg in legs {
                    let disk = leg.map_or(Nothing, |leg| Disk(leg.index(DISKS)));
                    places.push(if places.contains(&disk) { Nothing } else { disk });
                }
                let log = if *log { Log::Kept } else { Log::Core };
                self.run(&places, log, flushes, *resync);
            }
            Step::Blank(disk) => {
                self.disks.blank(disk.index(DISKS));
                self.known[disk.index(DISKS)] = Known::default();
            }
            Step::Unmark(disk) => {
                self.disks.unmark(disk.index(DISKS));
                self.known[disk.index(DISKS)].mirror = None;
            }
            Step::Keep(disk) => {
                let disk = disk.index(DISKS);
                self.kept.push((disk, self.disks.image(disk), self.known[disk]));
            }
            Step::Restore(kept) if !self.kept.is_empty() => {
                let (disk, image, known) = &self.kept[kept.index(self.kept.len())];
                self.disks.restore(*disk, image);
                self.known[*disk] = Known { is_unsure: true, ..*known };
            }
            Step::LoseLog => {
                self.disks.blank(DISKS);
                self.log_is_in_step = true;
            }
            Step::KeepLog => self.kept_log = Some(self.disks.image(DISKS)),
            Step::RestoreLog => {
                if let Some(log) = &self.kept_log {
                    self.disks.restore(DISKS, log);
                    self.log_is_in_step = false;
                }
            }
            Step::Restore(_) => {}
        }
    }

    /// The history that all others among these legs are part of, if there is one, of a leg whose
    /// content is whole. An error if the legs aren't of one mirror.
    fn expected(&self, legs: &[usize]) -> Result<Option<Known>, ()> {
        let members = || legs.iter().map(|leg| self.known[*leg]).filter(|leg| leg.mirror.is_some());
        let Some(first) = members().next() else { return Ok(None) };
        if members().any(|leg| leg.mirror != first.mirror) {
            return Err(());
        }
        let all = members().filter(|leg| !leg.is_mixed).fold(0, |all, leg| all | leg.history);
        let has_all = |leg: &Known| !leg.is_mixed && leg.history == all;
        let best = members().filter(has_all).min_by_key(|leg| leg.is_unsure);
        best.map(Some).ok_or(())
    }

    fn run(&mut self, places: &[At], log: Log, flushes: &[Index], resync: bool) {
        let legs: Vec<usize> = places
            .iter()
            .filter_map(|at| if let Disk(disk) = at { Some(*disk) } else { None })
            .collect();
        let opened = self.disks.try_open(places, log, pfn_blk::InSync::AsLogged);
        let expected = self.expected(&legs);
        let served = match opened {
            Ok(served) => served,
            Err(error) => {
                // All that there is to know says the same: then it must be served.
                let is_plain = log == Log::Core
                    && matches!(expected, Ok(Some(leg)) if !leg.is_unsure)
                    && legs.iter().all(|leg| !self.known[*leg].is_unsure);
                assert!(!is_plain, "refused: {error}; {:?} of {:?}", legs, self.known);
                return;
            }
        };
        let Ok(expected) = expected else {
            panic!("served, and nobody knows what: {legs:?} of {:?}", self.known)
        };
        let mut history = expected.map_or(0, |leg| leg.history);
        if expected.is_some() {
            self.check(&served, history);
        }
        self.served += 1;
        if flushes.is_empty() && !resync {
            return;
        }
        let mirror = expected.and_then(|leg| leg.mirror).unwrap_or_else(|| {
            self.mirrors += 1;
            self.mirrors
        });
        let had_all: Vec<_> = legs
            .iter()
            .map(|leg| {
                let Known { mirror: of, history: has, is_mixed, .. } = self.known[*leg];
                of == Some(mirror) && has == history && !is_mixed
            })
            .collect();
        // That there was a run is a part of what its legs know of.
        self.flushes.push(u64::MAX);
        history |= 1 << self.flushes.len();
        if expected.is_none() {
            // A new mirror holds what its first leg held, whatever that is.
            (0..PAGES).for_each(|page| self.flush(&served, page, &mut history));
        }
        for page in flushes {
            self.flush(&served, page.index(3) as u64, &mut history);
        }
        let copied = resync && served.mirror.resync().is_ok();
        let states = served.states();
        for ((leg, had_all), at) in legs.iter().zip(had_all).zip(0..) {
            let is_first = expected.is_none() && at == 0;
            let place = places.iter().position(|place| *place == Disk(*leg)).unwrap();
            let is_healthy = states[place] == pfn_blk::LegState::Healthy;
            let known = &mut self.known[*leg];
            *known = Known { mirror: Some(mirror), history, is_mixed: false, is_unsure: false };
            if !copied && !is_first && !is_healthy {
                known.is_mixed = !had_all;
                known.is_unsure = true;
            }
        }
        self.log_is_in_step &= log == Log::Kept;
        self.check(&served, history);
    }

    fn flush(&mut self, served: &Served, page: u64, history: &mut History) {
        self.flushes.push(page);
        let number = self.flushes.len();
        served.flush(page, u8::try_from(number).unwrap());
        *history |= 1 << number;
    }

    /// All of these flushes are there.
    fn check(&self, served: &Served, history: History) {
        for page in 0..PAGES {
            let mut of_page =
                (1..=self.flushes.len()).rev().filter(|at| self.flushes[at - 1] == page);
            let last = of_page.find(|at| history & 1 << at != 0).unwrap_or(0);
            assert_eq!(usize::from(served.page(page)), last, "page {page}, {:?}", self.known);
        }
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn mirror_serves_all_that_was_acknowledged_or_is_refused_for_a_reason(
        steps in prop::collection::vec(any_step(), 1..25),
    ) {
        let mut life = Life::new();
        steps.iter().for_each(|step| life.live(step));
    }
}
