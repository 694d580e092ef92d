// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bringing legs up, and putting others in their place.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::belief::Found;
use super::label::Label;
use super::leg::Leg;
use super::log::Log;
use super::{Mirror, MirrorStatus, ReplaceError, States, bit, random};
use crate::bio::{BioError, BioVec, Buffer};
use crate::lock::lock;
use crate::page::{NrPages, PAGE_SIZE, Pgoff, PgoffRange};
use crate::persist::SyncPoint;
use crate::store::Access;
use crate::target::{Target, metadata};

/// A resync that meets bios waits for as long as it has worked, so often.
const BIOS_SHARE: u32 = 3;
/// It never waits longer: by then a busy disk has done what was ahead.
const WAIT_MAX: Duration = Duration::from_millis(100);

impl Mirror {
    /// Brings back the legs that were dropped, and makes all legs the same: compares the regions in
    /// which they may differ, and no other, and copies what does differ from a healthy leg. Returns
    /// how the mirror is then: a leg that fails on the way is dropped.
    ///
    /// Bios go on, and go first. After an error the legs that were dropped before are dropped again,
    /// and the call may be repeated.
    pub fn resync(&self) -> Result<MirrorStatus, BioError> {
        self.resync_alone(&lock(&self.resyncing))
    }

    /// The same, unless a leg was replaced since the mirror was opened. For a thread that has the fds
    /// of then only: those of later ones may be other files in its table.
    pub fn resync_as_opened(&self) -> Result<MirrorStatus, BioError> {
        let one = lock(&self.resyncing);
        match self.is_replaced.load(Ordering::SeqCst) {
            true => Err(BioError::Interrupted),
            false => self.resync_alone(&one),
        }
    }

    fn resync_alone(&self, _one: &MutexGuard<'_, ()>) -> Result<MirrorStatus, BioError> {
        if self.access() == Access::ReadOnly {
            return Err(BioError::ReadOnly { store: "the mirror".to_owned() });
        }
        self.bring_back()?;
        let done = self.copy_regions().and_then(|()| Ok(SyncPoint::sync(self)?));
        let done = done.and_then(|()| self.share_mark(!self.states().failed));
        let mut log = lock(&self.log);
        let states = self.states();
        let done = done.and_then(|()| self.record(&mut log, states.recovered()));
        if done.is_err() {
            let recovering = (0..self.leg_count()).filter(|leg| states.recovering & bit(*leg) != 0);
            self.set_states(recovering.fold(states, States::without));
            log.differ_where_written();
        }
        drop(log);
        done?;
        Ok(self.status_by(&lock(&self.log)))
    }

    /// Marks the legs that have everything as the [origins](crate::mark_origin) that others of them are.
    /// One that was away when a snapshot was taken has no mark, and must not be served without the
    /// changes since. A resync does the same with those that it brings up. For a caller who has the
    /// changes, before anything is written to them.
    pub fn mark_legs(&self) -> Result<(), BioError> {
        match self.access() {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite => self.share_mark(!self.states().behind()),
        }
    }

    /// Writes down which legs have everything, before their marks change. A leg that is away gets no
    /// mark, and loses none, so it is behind from then on.
    pub fn record_legs(&self) -> Result<(), BioError> {
        let mut log = lock(&self.log);
        self.record(&mut log, self.states())
    }

    /// Keeps a resync from marking legs as others are. To be held by a caller that marks its stores as
    /// origins, or unmarks them, one after another.
    pub fn hold_marks(&self) -> MutexGuard<'_, ()> {
        lock(&self.marking)
    }

    /// Marks `legs`, a bit for each. One that lacks something must not be: it would be taken for what the
    /// changes are about.
    fn share_mark(&self, legs: u8) -> Result<(), BioError> {
        let _marking = lock(&self.marking);
        let of = |mask: u8| {
            let legs = self.legs().into_iter().enumerate();
            legs.filter(move |(leg, _)| mask & bit(*leg) != 0).map(|(_, leg)| leg)
        };
        let behind = self.states().behind();
        let mut source = None;
        for from in of(!behind) {
            source = source.map_or_else(|| from.origin(), |source| Ok(Some(source)))?;
        }
        if of(!behind).any(|leg| leg.has_attributes()) {
            // Their marks are out of date.
            of(legs & behind).try_for_each(|leg| leg.forget_marks_but(source.as_deref()))?;
        }
        source.map_or(Ok(()), |source| of(legs).try_for_each(|leg| leg.mark_as(&source)))
    }

    /// The legs that were dropped are written again. Before they are, it is written down what they
    /// lack, and that they lack it.
    fn bring_back(&self) -> Result<(), BioError> {
        let failed = |states: States, leg: usize| states.failed & bit(leg) != 0;
        let before = self.states();
        let legs = (0..self.leg_count()).filter(|leg| failed(before, *leg));
        // Without the log locked: a disk that hangs must not hold up writes to the others.
        let found: Vec<_> = legs.map(|leg| (leg, self.leg(leg).inspect(leg))).collect();
        let mut log = lock(&self.log);
        let mut states = self.states();
        for (leg, found) in found {
            let label = match found {
                Ok(found @ (Found::Blank | Found::Labelled(_) | Found::Copied(_))) => found.label(),
                // That was logged.
                Ok(Found::Missing) => continue,
                Err(error) => {
                    warn!(%error, "mirror: a leg can't be brought back");
                    continue;
                }
            };
            let members = log.roll().members();
            if let Some(Err(error)) = label.map(|label| label.check_lost(members)) {
                warn!(leg = self.leg(leg).name(), %error, "mirror: a leg can't be brought back");
                continue;
            }
            if !label.is_some_and(|label| log.roll().covers(label.events())) {
                log.differ_everywhere();
            }
            log.roll().identify(leg, label.as_ref(), random()?);
            states = states.recover(leg);
        }
        self.record(&mut log, states)
    }

    /// Puts `nr_pages` pages of `beneath`, from `start` on, in a leg's place, while bios go on. A
    /// [`resync`](Self::resync) then copies to it.
    ///
    /// The new one is claimed; the old one is out of date from now on, and the other legs say so. A
    /// resync that is under way is interrupted, and fails.
    pub fn replace(
        &self,
        leg: usize,
        beneath: Arc<dyn Target>,
        start: Pgoff,
    ) -> Result<(), ReplaceError> {
        if self.access() == Access::ReadOnly || beneath.access() == Access::ReadOnly {
            return Err(ReplaceError::ReadOnly);
        }
        if leg >= self.leg_count() {
            return Err(ReplaceError::NoLeg(leg));
        }
        let new = Leg::open(leg, (beneath, start), self.geometry.nr_pages)?;
        let found = new.inspect(leg)?;
        // Before a resync is interrupted for nothing.
        self.check_replaced(leg, &found, &mut lock(&self.log))?;
        self.replacing.fetch_add(1, Ordering::SeqCst);
        let _one = lock(&self.resyncing);
        self.replacing.fetch_sub(1, Ordering::SeqCst);
        let mut log = lock(&self.log);
        let label = self.check_replaced(leg, &found, &mut log)?;
        let states = self.states();
        let id = random().map_err(ReplaceError::Record)?;
        // Whatever its label says: it may be a copy of a leg that was written to since.
        log.differ_everywhere();
        self.record(&mut log, states.without(leg)).map_err(ReplaceError::Record)?;
        log.roll().identify(leg, label.as_ref(), id);
        self.legs.write().unwrap_or_else(PoisonError::into_inner)[leg] = Arc::new(new);
        self.is_replaced.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Checks that what is `found` may take a leg's place. Returns its label.
    fn check_replaced(
        &self,
        leg: usize,
        found: &Found,
        log: &mut Log,
    ) -> Result<Option<Label>, ReplaceError> {
        if !self.states().has_other(leg, self.leg_count()) {
            return Err(ReplaceError::LastHealthy);
        }
        if *found == Found::Missing {
            return Err(ReplaceError::Unreadable);
        }
        let label = found.label();
        label.map_or(Ok(()), |label| label.check_lost(log.roll().members()))?;
        Ok(label)
    }

    /// Copies all regions that are stale.
    fn copy_regions(&self) -> Result<(), BioError> {
        let next = |from| lock(&self.log).next_stale(from);
        let mut from = 0;
        while let Some(region) = next(from) {
            if self.replacing.load(Ordering::SeqCst) > 0 {
                return Err(BioError::Interrupted);
            }
            let began = Instant::now();
            self.copy_region(region)?;
            if self.bios.swap(0, Ordering::Relaxed) > 0 {
                std::thread::sleep((began.elapsed() * BIOS_SHARE).min(WAIT_MAX));
            }
            from = region + 1;
        }
        Ok(())
    }

    /// Copies stale regions that were read to all current legs, which may differ there after a power
    /// cut. A flush also covers what was read before it, and another leg may be read after a restart.
    pub(super) fn copy_what_was_read(&self) -> Result<(), BioError> {
        let mut log = lock(&self.log);
        if log.next_read(0).is_none() {
            return Ok(());
        }
        // Labels are written before any write to a leg.
        self.record(&mut log, self.states())?;
        drop(log);
        let next = |from| lock(&self.log).next_read(from);
        let mut from = 0;
        while let Some(region) = next(from) {
            self.copy_region(region)?;
            from = region + 1;
        }
        Ok(())
    }

    fn copy_region(&self, region: u64) -> Result<(), BioError> {
        let _region = self.lock_region(region);
        for piece in self.geometry.pages_of(region).pieces() {
            let mut data = metadata::buffer(piece.nr_pages());
            let from = self.read(BioVec::try_new(piece, Buffer::Read(&mut data))?)?;
            for leg in self.written_legs().filter(|leg| *leg != from) {
                if let Err(error) = self.leg(leg).copy(piece, &data) {
                    self.drop_leg(leg, &error);
                }
            }
        }
        let mut log = lock(&self.log);
        log.copied(region, self.states().failed == 0);
        Ok(())
    }
}

impl Leg {
    /// Has `pages` hold `data`. Pages that do are not written: what takes no space goes on taking none.
    fn copy(&self, pages: PgoffRange, data: &[u8]) -> Result<(), BioError> {
        let mut held = metadata::buffer(pages.nr_pages());
        if self.pages().submit(BioVec::try_new(pages, Buffer::Read(&mut held))?).is_err() {
            // It may be written all the same, as a disk's bad sectors are.
            return self.pages().submit(BioVec::try_new(pages, Buffer::Write(data))?);
        }
        let page = usize::try_from(PAGE_SIZE).expect("a page fits in memory");
        let differs: Vec<_> =
            data.chunks(page).zip(held.chunks(page)).map(|(new, old)| new != old).collect();
        let mut at = 0;
        for run in differs.chunk_by(|one, next| one == next) {
            if run[0] {
                let start = pages.start().get() + at as u64;
                let start = Pgoff::try_new(start).expect("a page of a range");
                let nr_pages = NrPages::try_new(run.len() as u64).expect("a run isn't empty");
                let run_pages = PgoffRange::try_new(start, nr_pages).expect("a part of a range");
                let bytes = &data[at * page..(at + run.len()) * page];
                self.pages().submit(BioVec::try_new(run_pages, Buffer::Write(bytes))?)?;
            }
            at += run.len();
        }
        Ok(())
    }
}
