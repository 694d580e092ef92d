// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mirror`: the same pages on several legs.

mod belief;
mod error;
mod label;
mod leg;
mod log;
mod resync;
mod roll;
mod state;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{info, warn};

use self::belief::{Belief, Found, believe};
pub use self::error::{InvalidMirror, ReplaceError};
pub use self::label::leave_mirrors;
use self::leg::Leg;
use self::log::{Geometry, Loaded, Log};
use self::state::States;
pub use self::state::{LegState, MirrorStatus};
use super::{Holder, Target, access_of};
use crate::bio::{BioError, BioVec, Direction};
use crate::claim::Claim;
use crate::extent::{Extent, NotDirect, NotDirectReason};
use crate::lock::lock;
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::{PersistError, SyncPoint, SyncSet, at_once, persist_all};
use crate::store::Access;

/// The most legs there can be, as in `dm-mirror`.
const LEGS_MAX: usize = 8;
/// As many locks as are shared out among the regions.
const REGION_LOCKS: u64 = 64;

/// What a mirror takes for the same when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InSync {
    /// What the log says; without one, or where it is blank, nothing.
    #[default]
    AsLogged,
    /// What the log says; without one, or where it is blank, everything.
    Yes,
    /// Nothing: all is compared, and copied from a leg that has everything.
    No,
}

/// Where a mirror keeps in mind in which regions its legs differ.
#[derive(Debug, Clone)]
pub struct MirrorLog {
    /// Where it is written down; in memory only if nowhere.
    pub device: Option<Arc<dyn Target>>,
    /// The size of a region: what is copied for a page that may differ.
    pub region: NrPages,
    /// What to take for the same now.
    pub in_sync: InSync,
}

/// The same pages on several legs, as in Linux's `dm-mirror`.
///
/// Reads go to the first healthy leg, writes and persists to all. A leg that fails what another one
/// does is dropped: the mirror goes on without it, and says so on the other legs, in the log and in
/// its [`status`](Self::status), before anything that the leg lacks is acknowledged. One whose end
/// was cut off has lost all it had. What fails on all healthy legs fails, and drops none. Of a write
/// that fails any part may be done, on any leg. What was dropped comes back with
/// [`resync`](Self::resync), or is [replaced](Self::replace).
///
/// # Which leg is believed
///
/// Each leg has a label: which mirror it belongs to, which leg it is, and which legs had everything
/// when the label was written, with a count of such events. A leg that has the latest label, and is
/// named by it, has all that was acknowledged. A leg without a label, or with an older one, is only
/// ever copied to. So is a copy of a leg, unless copies are all there is: the leg may have been written
/// to since. A leg that isn't there is missed, not waited for. What contradicts itself is
/// refused: see [`InvalidMirror`]. A mirror none of whose legs has a label is new, and copied from its
/// first leg. Labels are written before the first write, so that opening a mirror changes nothing.
///
/// # Layout
///
/// The legs hold the pages and nothing else: each is good by itself. Its label is an attribute of its
/// stores, or, where they have none, in the page that follows its last one:
///
/// ```text
/// label    0 magic "pfnblkLG"   8 version 1   12 CRC-32 of the sector, with zeroes here
///         16 mirror   32 events   40 tag   48 16 legs: identity, and the tags of the label that it
///            had before, and was given then   432 those that have everything, a bit for each
///        440 this leg's identity   448 which file it was written to, or 0
///        456 1 if that was written without the mirror   464 generation of what the mirror holds
/// ```
///
/// Where the legs may differ stands in a log, a bit for each region:
///
/// ```text
/// page 0   header  0 magic "pfnblkML"   8 version 2   12 CRC-32 of the sector, with zeroes here
///                 16 pages of the mirror   24 pages of a region
///                 32 mirror, events and legs, as in a label
///                456 the first event since which the bits tell all that a leg lacks
/// page 1…  bitmap  sectors of 508 bytes of bits, the lowest first, and the CRC-32 of the sector's
///                  number (8 bytes) and the bits; a set bit is a region to be copied
/// ```
///
/// A region's bit is set, and the log synced, before a write to it begins, and cleared some time
/// after a persist; while a leg misses writes, not at all. So a leg that comes back needs those
/// regions only. A log that wasn't there for the last event isn't believed: all is compared.
///
/// Where bits are set when a mirror is opened, legs that have everything acknowledged may still differ:
/// one is read, the first, and the others are not until a resync has copied those regions to them. The
/// next persist copies regions that were read in between: another leg may be first at the next opening. A
/// mirror whose believed leg fails before that fails too: it never answers with what might be
/// something else.
///
/// A header or label that is damaged is refused; a sector of the bitmap that is has all its regions
/// copied. Where the log can't be written all later writes fail: a crash would leave nothing that tells
/// where the legs differ. Where no healthy leg's label can be written, what would depend on it fails.
///
/// # Example
///
/// ```
/// use std::sync::Arc;
/// use pfn_blk::{
///     InSync, LegState, MemoryStore, Mirror, MirrorLog, NrPages, PfnSpace, Pgoff, Region, Target,
/// };
///
/// let mut space = PfnSpace::new();
/// let mut store = |name, pages| -> Result<Arc<dyn Target>, Box<dyn std::error::Error>> {
///     Ok(space.add(Box::new(MemoryStore::new(name, NrPages::try_new(pages)?)?))?)
/// };
/// let legs = vec![(store("one", 64)?, Pgoff::ZERO), (store("other", 64)?, Pgoff::ZERO)];
/// let (region, in_sync) = (NrPages::try_new(16)?, InSync::AsLogged);
/// let log = MirrorLog { device: Some(store("log", 2)?), region, in_sync };
/// let mirror = Arc::new(Mirror::open(legs, log, NrPages::try_new(64)?)?);
///
/// // The log is blank: the legs may hold anything.
/// let status = mirror.status();
/// assert_eq!(status.legs, [LegState::Healthy, LegState::Recovering]);
/// assert_eq!(status.stale, 4);
/// assert_eq!(mirror.resync()?.legs, [LegState::Healthy, LegState::Healthy]);
///
/// let region = Region::try_new(mirror)?;
/// region.write(region.pages(), &[7; 64 * 4096])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Mirror {
    legs: RwLock<Vec<Arc<Leg>>>,
    access: Access,
    geometry: Geometry,
    log: Mutex<Log>,
    /// How many regions were stale when that was last looked at.
    known_stale: AtomicU64,
    /// How the legs are. Changed with the log locked.
    states: AtomicU32,
    /// Held while a region is written or copied: the legs get writes to it in one order.
    regions: Vec<Mutex<()>>,
    /// Held during a resync.
    resyncing: Mutex<()>,
    /// Held while the marks of the legs are read or changed.
    marking: Mutex<()>,
    /// How many legs are about to be replaced, for which a resync ends.
    replacing: AtomicU32,
    /// Whether any was, since the mirror was opened.
    is_replaced: AtomicBool,
    /// Whether there was any bio since the mirror was opened.
    is_used: AtomicBool,
    /// How many bios there were, for a resync to let them go first.
    bios: AtomicU64,
    _log_claims: Vec<Claim>,
}

/// The bit of a leg.
fn bit(leg: usize) -> u8 {
    1 << leg
}

/// A number that no other leg or mirror has.
fn random() -> Result<u64, BioError> {
    let mut bytes = [0; 8];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        // Zero is nobody's identity.
        Ok(_) => Ok(u64::from_le_bytes(bytes).max(1)),
        Err(errno) => Err(BioError::Random(Arc::new(errno.into()))),
    }
}

/// What a leg could not do.
type Broken<E> = Vec<(usize, E)>;

impl Mirror {
    /// `nr_pages` pages on `legs`, each a target and the first page of it that is used. A leg that
    /// can't be read, such as an [`ErrorTarget`](crate::ErrorTarget) in its place, is missing.
    ///
    /// All are claimed as far as they can be written: nobody else may use them at the same time.
    pub fn open(
        legs: Vec<(Arc<dyn Target>, Pgoff)>,
        log: MirrorLog,
        nr_pages: NrPages,
    ) -> Result<Self, InvalidMirror> {
        let count = legs.len();
        if !(2..=LEGS_MAX).contains(&count) {
            return Err(InvalidMirror::Legs(count));
        }
        let legs = (0..).zip(legs).map(|(at, leg)| Leg::open(at, leg, nr_pages).map(Arc::new));
        let legs: Vec<_> = legs.collect::<Result<_, _>>()?;
        let found = legs.iter().enumerate().map(|(at, leg)| leg.inspect(at));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        // What isn't there is neither writable nor not.
        let present = legs.iter().zip(&found).filter(|(_, found)| **found != Found::Missing);
        let pages = present.map(|(leg, _)| leg.pages() as &dyn Target);
        let parts = pages.chain(log.device.as_deref());
        let access = access_of(parts.clone());
        let is_writable = access == Access::ReadWrite;
        if !is_writable && parts.clone().any(|part| part.access() == Access::ReadWrite) {
            return Err(InvalidMirror::ReadOnly);
        }
        let log_claims = log.device.as_deref().map(Claim::all).transpose()?.unwrap_or_default();
        let MirrorLog { device, region, in_sync } = log;
        let geometry = Geometry { nr_pages, region };
        let loaded = Loaded::read(device, geometry)?;
        let belief = believe(&found, loaded.members(), in_sync)?;
        if belief.is_new && in_sync != InSync::Yes {
            check_first(&legs)?;
        }
        say(&belief, &legs);
        let is_blank = loaded.members().is_none();
        let may_trust = belief.is_logged || (is_blank && in_sync == InSync::Yes);
        let may_trust = may_trust && in_sync != InSync::No;
        let log = loaded.open(&belief, may_trust, &found, is_writable);
        let recovering = log.recovering(&belief, count);
        let Belief { missing, behind: lacking, .. } = belief;
        let states = States { failed: missing, recovering, lacking, missing };
        Ok(Self {
            legs: RwLock::new(legs),
            access,
            geometry,
            known_stale: AtomicU64::new(log.stale_count()),
            log: Mutex::new(log),
            states: AtomicU32::new(states.into()),
            regions: (0..REGION_LOCKS).map(|_| Mutex::new(())).collect(),
            resyncing: Mutex::new(()),
            marking: Mutex::new(()),
            is_used: AtomicBool::new(false),
            replacing: AtomicU32::new(0),
            is_replaced: AtomicBool::new(false),
            bios: AtomicU64::new(0),
            _log_claims: log_claims,
        })
    }

    /// How it is.
    ///
    /// Doesn't wait for the log while that is written, as a disk may hang: what is stale is then told
    /// as it was last known.
    pub fn status(&self) -> MirrorStatus {
        let log = match self.log.try_lock() {
            Ok(log) => Some(log),
            Err(TryLockError::Poisoned(log)) => Some(log.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        match log {
            Some(log) => self.status_by(&log),
            None => self.status_with(self.known_stale.load(Ordering::Relaxed)),
        }
    }

    /// The same, as the log has it.
    fn status_by(&self, log: &Log) -> MirrorStatus {
        let stale = log.stale_count();
        self.known_stale.store(stale, Ordering::Relaxed);
        self.status_with(stale)
    }

    fn status_with(&self, stale: u64) -> MirrorStatus {
        let states = self.states();
        MirrorStatus {
            legs: (0..self.leg_count()).map(|leg| states.of(leg)).collect(),
            stale,
            regions: self.geometry.regions(),
        }
    }

    /// Why the log can't be written any more, if it can't: then no write is done until the mirror is
    /// opened again.
    pub fn log_failure(&self) -> Option<BioError> {
        lock(&self.log).failure().cloned()
    }

    /// The first store of each leg, if it has any of its own.
    pub fn leg_stores(&self) -> Vec<Option<Arc<Pagemap>>> {
        self.legs().iter().map(|leg| leg.store().cloned()).collect()
    }

    fn legs(&self) -> Vec<Arc<Leg>> {
        self.legs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn leg(&self, leg: usize) -> Arc<Leg> {
        Arc::clone(&self.legs.read().unwrap_or_else(PoisonError::into_inner)[leg])
    }

    fn leg_count(&self) -> usize {
        self.legs.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Has the legs and the log say how the legs are. With the log locked.
    fn record(&self, log: &mut Log, states: States) -> Result<(), BioError> {
        let states = match self.access {
            Access::ReadWrite => log.record_states(states, &self.legs())?,
            // Others may use the same legs.
            Access::ReadOnly => states,
        };
        self.set_states(states);
        Ok(())
    }

    fn states(&self) -> States {
        self.states.load(Ordering::SeqCst).into()
    }

    /// With the log locked.
    fn set_states(&self, states: States) {
        self.states.store(states.into(), Ordering::SeqCst);
    }

    /// The legs that a write must reach.
    fn written_legs(&self) -> impl Iterator<Item = usize> + use<> {
        let states = self.states();
        (0..self.leg_count()).filter(move |leg| states.failed & bit(*leg) == 0)
    }

    fn is_healthy(&self, leg: usize) -> bool {
        self.states().of(leg) == LegState::Healthy
    }

    fn lock_region(&self, region: u64) -> MutexGuard<'_, ()> {
        let at = usize::try_from(region % REGION_LOCKS).expect("a few locks");
        lock(&self.regions[at])
    }

    /// Reads from the first leg that can, and tells which that was.
    fn read(&self, mut vec: BioVec<'_>) -> Result<usize, BioError> {
        let mut broken = Broken::new();
        let states = self.states();
        let healthy = |leg: &usize| states.of(*leg) == LegState::Healthy;
        for leg in (0..self.leg_count()).filter(healthy) {
            match self.leg(leg).pages().submit(vec.reborrow()) {
                Ok(()) => {
                    for (leg, error) in broken {
                        // One that can't be dropped was not needed.
                        self.drop_leg(leg, &error);
                    }
                    return Ok(leg);
                }
                Err(error) => broken.push((leg, error)),
            }
        }
        let (_, error) = broken.into_iter().next().expect("one leg is healthy always");
        Err(error)
    }

    fn read_for_bio(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let pages = vec.pages();
        self.read(vec)?;
        if self.access == Access::ReadWrite && self.states().unsettled() != 0 {
            lock(&self.log).note_read(self.geometry.regions_of(pages));
        }
        Ok(())
    }

    fn write(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let regions = self.geometry.regions_of(vec.pages());
        {
            let mut log = lock(&self.log);
            let states = log.begin(regions.clone(), self.states(), &self.legs())?;
            self.set_states(states);
        }
        let done = self.write_regions(vec);
        let mut log = lock(&self.log);
        if done.is_err() {
            log.differ(regions.clone());
        }
        log.end(regions);
        done
    }

    fn write_regions(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let mut rest = Some(vec);
        while let Some(vec) = rest {
            let region = self.geometry.regions_of(vec.pages()).start;
            let part = self.geometry.pages_of(region).intersection(vec.pages());
            let (mut front, behind) = vec.split(part.expect("it starts there").nr_pages());
            let _region = self.lock_region(region);
            // Which legs are written is asked for with the region locked: see `resync`.
            self.on_all_legs(|legs| {
                legs.iter().map(|leg| self.leg(*leg).pages().submit(front.reborrow())).collect()
            })?;
            rest = behind;
        }
        Ok(())
    }

    /// Does something with every leg that is written. It is done if a healthy leg did it; then
    /// those that didn't are dropped, and that is written down.
    fn on_all_legs<E>(&self, act: impl FnOnce(&[usize]) -> Vec<Result<(), E>>) -> Result<(), E>
    where
        E: std::error::Error + NotRecorded + 'static,
    {
        let mut broken = Broken::new();
        let mut done = false;
        let legs: Vec<_> = self.written_legs().collect();
        for (leg, result) in legs.iter().zip(act(&legs)) {
            match result {
                Ok(()) => done |= self.is_healthy(*leg),
                Err(error) => broken.push((*leg, error)),
            }
        }
        let any_broken = !broken.is_empty();
        for (leg, error) in broken {
            let needed = !done && self.is_healthy(leg);
            if needed || !self.drop_leg(leg, &error) {
                return Err(error);
            }
        }
        if any_broken {
            self.record(&mut lock(&self.log), self.states()).map_err(E::not_recorded)?;
        }
        Ok(())
    }

    /// Goes on without a leg, unless it is the last healthy one. Whether it is gone now.
    fn drop_leg(&self, leg: usize, error: &(dyn std::error::Error + 'static)) -> bool {
        let mut log = lock(&self.log);
        let states = self.states();
        if states.failed & bit(leg) != 0 {
            return true;
        }
        if !states.has_other(leg, self.leg_count()) {
            return false;
        }
        self.set_states(states.without(leg));
        log.differ_where_written();
        let name = self.leg(leg).name().to_owned();
        warn!(
            leg = name,
            error, "mirror: a leg failed and was dropped; the mirror goes on without it"
        );
        if was_cut_off(error) {
            log.differ_everywhere();
            if let Err(error) = self.record(&mut log, self.states()) {
                // Nothing more can be written, which says so.
                warn!(%error, "mirror: cannot write down that a leg has lost all it had");
            }
        }
        true
    }
}

/// Checks that a new mirror isn't about to copy nothing over something: its first leg may be a disk
/// that was replaced, and the others have lost their labels.
fn check_first(legs: &[Arc<Leg>]) -> Result<(), InvalidMirror> {
    let is_blank =
        |leg: usize| legs[leg].begins_blank().map_err(|source| InvalidMirror::Read { leg, source });
    if !is_blank(0)? {
        return Ok(());
    }
    for leg in 1..legs.len() {
        if !is_blank(leg)? {
            return Err(InvalidMirror::BlankFirst(leg));
        }
    }
    Ok(())
}

/// Logs which legs of a mirror aren't believed. Those that can't be read were logged.
fn say(belief: &Belief, legs: &[Arc<Leg>]) {
    let names = |mask: u8| {
        let named = legs.iter().enumerate().filter(move |(leg, _)| mask & bit(*leg) != 0);
        named.map(|(_, leg)| leg.name()).collect::<Vec<_>>()
    };
    if belief.is_new {
        info!(from = legs[0].name(), "mirror: new; its legs have no labels yet");
    } else if belief.behind != 0 {
        info!(legs = ?names(belief.behind), "mirror: legs are out of date, and will be copied to");
    }
}

/// Whether a leg failed because its end is gone, with what was there.
fn was_cut_off(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let shared = cause.downcast_ref::<Arc<io::Error>>().map(|error| error.kind());
        let kind = shared.or_else(|| cause.downcast_ref::<io::Error>().map(io::Error::kind));
        kind == Some(io::ErrorKind::UnexpectedEof)
    })
}

/// An error that also says that the log could not be written.
trait NotRecorded {
    fn not_recorded(error: BioError) -> Self;
}

impl NotRecorded for BioError {
    fn not_recorded(error: BioError) -> Self {
        error
    }
}

impl NotRecorded for PersistError {
    fn not_recorded(error: BioError) -> Self {
        Self::Metadata("a mirror's log", Arc::new(error))
    }
}

impl SyncPoint for Mirror {
    fn sync(&self) -> Result<(), PersistError> {
        let copied = self.copy_what_was_read();
        copied.map_err(|error| PersistError::Metadata("a mirror's legs", Arc::new(error)))?;
        let number = lock(&self.log).begin_persist();
        self.on_all_legs(|legs| at_once(legs, |leg| persist_all(self.leg(*leg).pages())))?;
        let mut log = lock(&self.log);
        // A persist before any bio, as when a snapshot over it is opened, covers nothing that a leg may lack.
        if self.is_used.load(Ordering::SeqCst) {
            // A leg that failed a read was dropped, and nothing written down yet.
            self.record(&mut log, self.states()).map_err(PersistError::not_recorded)?;
        }
        log.end_persist(number);
        Ok(())
    }
}

impl Target for Mirror {
    fn nr_pages(&self) -> NrPages {
        self.geometry.nr_pages
    }

    fn access(&self) -> Access {
        self.access
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        Err(NotDirect { nr_pages: pages.nr_pages(), because: NotDirectReason::Mirror })
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        self.bios.fetch_add(1, Ordering::Relaxed);
        self.is_used.store(true, Ordering::SeqCst);
        match vec.direction() {
            Direction::Read => self.read_for_bio(vec),
            Direction::Write => self.write(vec),
        }
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        syncs.add(self);
    }

    fn leaves<'a>(&'a self, _pages: PgoffRange, _visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {}

    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>)) {
        visit(Holder::Mirror(self));
    }

    fn markable(&self, visit: &mut dyn FnMut(&Pagemap)) {
        // The marks of a leg that is behind may be out of date. They count only where current legs
        // can't have any, as block devices.
        let (all, behind) = (self.legs(), self.states().behind());
        let whole = all.iter().enumerate().filter(|(leg, _)| behind & bit(*leg) == 0);
        let whole: Vec<_> = whole.map(|(_, leg)| Arc::clone(leg)).collect();
        let legs = if whole.iter().any(|leg| leg.has_attributes()) { whole } else { all };
        legs.iter().for_each(|leg| leg.pages().markable(visit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::faulty_store;

    #[test]
    fn status_while_the_log_is_written_is_the_last_known() {
        let mut space = crate::PfnSpace::new();
        let mut leg = |name| (space.add(faulty_store(name, 4).0).unwrap() as _, Pgoff::ZERO);
        let legs = vec![leg("a"), leg("b")];
        let log = MirrorLog { device: None, region: NrPages::ONE, in_sync: InSync::AsLogged };
        let mirror = Mirror::open(legs, log, NrPages::try_new(4).unwrap()).unwrap();
        assert_eq!(mirror.status().stale, 4);
        mirror.resync().unwrap();
        let writing = lock(&mirror.log);
        let status = mirror.status();
        assert_eq!((status.stale, status.regions), (0, 4));
        drop(writing);
        assert_eq!(mirror.status(), status);
    }
}
