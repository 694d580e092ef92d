// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power is cut, processes end and stores break at any point: what a persist has answered for is
//! there again, and the rest is old or new, never anything else.

use std::collections::BTreeSet;

use pfn_blk::Region;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::model::{cases, fill, range};
use crate::power::{Power, SECTOR};
use crate::stack::{Built, BuiltMirror, Stack, any_solid, read};

const SECTORS_PER_PAGE: usize = 4096 / SECTOR;

#[derive(Debug, Clone)]
enum Step {
    Write(Index, Index, u8),
    Persist(Index, Index),
    /// All mirrors are made whole.
    Resync,
    /// All snapshots are merged into their origins.
    Merge,
    /// The process ends, and another one opens the stack.
    Restart,
    /// Rotates the legs of mirrors by this number at the next opening.
    Turn(usize),
    /// Power is cut in the midst of the write or sync after so many.
    Cut(usize),
    /// A store fails everything after so many operations.
    Break(Index, usize),
    /// All stores work, and an operator says so.
    Mend,
}

fn any_step(can_break: bool) -> impl Strategy<Value = Step> {
    let pages = || (any::<Index>(), any::<Index>());
    let broken = u32::from(can_break);
    prop_oneof![
        12 => (pages(), 1..=255u8).prop_map(|((start, len), byte)| Step::Write(start, len, byte)),
        6 => pages().prop_map(|(start, len)| Step::Persist(start, len)),
        1 => Just(Step::Resync),
        1 => Just(Step::Merge),
        1 => Just(Step::Restart),
        1 => (0..4usize).prop_map(Step::Turn),
        1 => (0..12usize).prop_map(Step::Cut),
        2 * broken => (any::<Index>(), 0..6usize).prop_map(|(store, after)| Step::Break(store, after)),
        2 * broken => Just(Step::Mend),
    ]
}

/// What a page may hold.
#[derive(Debug, Clone)]
struct Held {
    /// What it holds, sector by sector, unless a write has failed since or a store is broken.
    now: [u8; SECTORS_PER_PAGE],
    /// What each sector may hold after a crash.
    may: [BTreeSet<u8>; SECTORS_PER_PAGE],
    /// Whether the last write failed.
    unsure: bool,
}

struct Subject<'a> {
    stack: &'a Stack,
    power: Power,
    built: Built,
    region: Region,
    held: Vec<Held>,
    turn: usize,
    /// Whether no store has been broken yet.
    sound: bool,
}

impl<'a> Subject<'a> {
    fn new(stack: &'a Stack, seed: u64) -> Self {
        let power = Power::new(seed);
        let built = stack.build_on(&mut |number, nr_pages| power.store(number, nr_pages));
        let region = Region::try_new(built.target.clone()).unwrap();
        region.persist(region.pages()).unwrap();
        let mut subject =
            Self { stack, power, built, region, held: Vec::new(), turn: 0, sound: true };
        let size = usize::try_from(subject.region.nr_pages().get()).unwrap();
        let anything = BTreeSet::from_iter(0..=255);
        let may = std::array::from_fn(|_| anything.clone());
        subject.held = vec![Held { now: [0; SECTORS_PER_PAGE], may, unsure: true }; size];
        subject.check_content();
        subject.held.iter_mut().for_each(Held::settle);
        subject
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Write(start, len, byte) => {
                let (start, len) = self.pick(start, len);
                let bytes: Vec<u8> =
                    (0..len).map(|at| byte.wrapping_add(u8::try_from(at % 251).unwrap())).collect();
                let done = self.region.write(range(start as u64, len as u64), &fill(&bytes));
                self.expect(done.is_ok());
                for (held, byte) in self.held[start..].iter_mut().zip(bytes) {
                    held.may.iter_mut().for_each(|may| _ = may.insert(byte));
                    held.unsure = done.is_err();
                    if done.is_ok() {
                        held.now = [byte; SECTORS_PER_PAGE];
                    }
                }
            }
            Step::Persist(start, len) => {
                let (start, len) = self.pick(start, len);
                let done = self.region.persist(range(start as u64, len as u64));
                self.expect(done.is_ok());
                if done.is_ok() {
                    self.held[start..start + len].iter_mut().for_each(Held::settle);
                }
            }
            Step::Resync => self.resync(),
            Step::Merge => {
                for snapshot in &self.built.snapshots {
                    let done = snapshot.merge(u64::MAX);
                    self.expect(done.is_ok());
                    assert!(done.is_err() || snapshot.usage().used == 0);
                }
            }
            Step::Restart => self.restart(),
            Step::Turn(by) => self.turn = by,
            Step::Cut(after) => self.power.cut_after(after),
            Step::Break(store, after) => {
                self.power.break_after(store.index(self.power.stores()), after);
                self.sound = false;
            }
            Step::Mend => self.mend(),
        }
        if self.power.is_cut() {
            self.power.restore();
            self.restart();
            // All is durable then, except that another leg of a mirror may be read after a restart.
            if self.built.mirrors.is_empty() {
                self.held.iter_mut().for_each(Held::settle);
            }
        }
        self.check_content();
    }

    fn pick(&self, start: Index, len: Index) -> (usize, usize) {
        let start = start.index(self.held.len());
        (start, 1 + len.index(self.held.len() - start))
    }

    /// Nothing fails but for a reason.
    fn expect(&self, done: bool) {
        assert!(done || !self.sound || self.power.is_cut());
    }

    fn restart(&mut self) {
        // A stack has its stores to itself, so the old one goes first.
        self.built = Stack::Store(1).build();
        self.region = Region::try_new(self.built.target.clone()).unwrap();
        self.power.mend();
        let mut make = |number, nr_pages| self.power.store(number, nr_pages);
        self.built = self.power.spare(|| self.stack.build_again(&mut make, self.turn));
        self.region = Region::try_new(self.built.target.clone()).unwrap();
        self.sound = true;
        self.held.iter_mut().for_each(|held| held.unsure = true);
        self.check_content();
    }

    fn mend(&self) {
        self.power.mend();
        let stores = self.built.stores.iter().map(|store| store.clear_failure());
        let snapshots = self.built.snapshots.iter().map(|snapshot| snapshot.clear_failure());
        // A mirror whose log failed must be opened again.
        let has_log = |built: &BuiltMirror| built.mirror.log_failure().is_none();
        let have_logs = self.built.mirrors.iter().all(has_log);
        for cleared in stores.chain(snapshots) {
            assert!(cleared.is_ok() || self.power.is_cut() || !have_logs, "{cleared:?}");
        }
    }

    fn resync(&mut self) {
        for built in &self.built.mirrors {
            let done = built.mirror.resync();
            self.expect(done.is_ok());
            if self.sound && !self.power.is_cut() {
                let whole = read(&*built.legs[0]);
                assert!(built.legs.iter().all(|leg| read(&**leg) == whole), "legs differ");
            }
        }
    }

    /// Each sector holds what it may, and what it held before.
    fn check_content(&mut self) {
        for (page, held) in self.held.iter_mut().enumerate() {
            let mut bytes = vec![0; 4096];
            let done = self.region.read(range(page as u64, 1), &mut bytes);
            assert!(done.is_ok() || !self.sound, "{done:?}");
            if done.is_err() {
                continue;
            }
            let sectors = bytes.chunks_exact(SECTOR).zip(held.now.iter_mut().zip(&held.may));
            for (bytes, (now, may)) in sectors {
                let byte = bytes[0];
                assert!(
                    bytes.iter().all(|other| *other == byte),
                    "page {page} is torn in a sector"
                );
                assert!(may.contains(&byte), "page {page} holds {byte}, not one of {may:?}");
                if self.sound && !held.unsure {
                    assert_eq!(byte, *now, "page {page}");
                }
                *now = byte;
            }
            held.unsure &= !self.sound;
        }
    }
}

impl Held {
    /// What it holds now is durable.
    fn settle(&mut self) {
        if !self.unsure {
            for (may, now) in self.may.iter_mut().zip(self.now) {
                *may = BTreeSet::from([now]);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn power_cut_at_any_point_loses_nothing_that_was_persisted(
        stack in any_solid(),
        steps in prop::collection::vec(any_step(false), 1..30),
        seed in any::<u64>(),
    ) {
        run(&stack, &steps, seed);
    }

    #[test]
    fn stores_that_break_at_any_point_lose_nothing_that_was_persisted(
        stack in any_solid(),
        steps in prop::collection::vec(any_step(true), 1..40),
        seed in any::<u64>(),
    ) {
        run(&stack, &steps, seed);
    }
}

fn run(stack: &Stack, steps: &[Step], seed: u64) {
    let mut subject = Subject::new(stack, seed);
    for step in steps {
        subject.run(step);
    }
    subject.run(&Step::Restart);
    subject.run(&Step::Resync);
}
