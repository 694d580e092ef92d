// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mirror`: the same pages on several legs.

mod log;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use thiserror::Error;
use tracing::warn;

use self::log::{Geometry, Log};
use super::metadata::{self, InvalidMetadata};
use super::{InvalidLinear, Linear, Target, access_of};
use crate::bio::{BioError, BioVec, Buffer, Direction};
use crate::claim::{Claim, Claimed};
use crate::extent::{Extent, NotDirect, NotDirectReason};
use crate::lock::lock;
use crate::page::{InvalidPages, NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::{PersistError, SyncPoint, SyncSet, at_once, persist_all};
use crate::store::Access;

/// The most legs there can be, as in `dm-mirror`.
const LEGS_MAX: usize = 8;
/// As many locks as are shared out among the regions.
const REGION_LOCKS: u64 = 64;

/// Legs and a log that make no mirror.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum InvalidMirror {
    /// Not as many legs as there can be.
    #[error("{0} legs; there must be from 2 to {LEGS_MAX}")]
    Legs(usize),
    /// A leg that reaches past what is beneath it.
    #[error("leg {leg}")]
    Leg {
        /// Which one.
        leg: usize,
        /// How far it reaches.
        #[source]
        source: InvalidLinear,
    },
    /// A leg's first page that is too large a number.
    #[error(transparent)]
    Pages(#[from] InvalidPages),
    /// More regions than can be kept track of.
    #[error("with regions of {0} there are more than 2^27; choose larger regions")]
    SmallRegion(NrPages),
    /// A log without room for all bits.
    #[error("a log of {log} is too small; it needs {least}")]
    SmallLog {
        /// Its size.
        log: NrPages,
        /// The least that it must be.
        least: NrPages,
    },
    /// A leg or the log can't be written, and others can.
    #[error("a leg or the log is read-only; all of them must be, or none")]
    ReadOnly,
    /// The log isn't one, or another's.
    #[error("the log can't be used")]
    Metadata(#[from] InvalidMetadata),
    /// Someone else writes to a leg or the log.
    #[error(transparent)]
    Claimed(#[from] Claimed),
}

/// What a mirror takes for the same when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InSync {
    /// What the log says; without one, or where it is blank, nothing.
    #[default]
    AsLogged,
    /// What the log says; without one, or where it is blank, everything.
    Yes,
    /// Nothing: all is copied from the first healthy leg. For a leg that was replaced.
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

/// How a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegState {
    /// It has all that was written.
    Healthy,
    /// A resync is bringing it up; it is written, and not read.
    Recovering,
    /// It failed something that another leg did, and is left alone.
    Failed,
}

impl fmt::Display for LegState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Recovering => "recovering",
            Self::Failed => "failed",
        })
    }
}

/// How a mirror is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorStatus {
    /// Its legs, in order.
    pub legs: Vec<LegState>,
    /// In how many regions they may differ, but for writes under way.
    pub stale: u64,
    /// How many regions there are.
    pub regions: u64,
}

impl MirrorStatus {
    /// Whether all legs have all that was written.
    pub fn is_healthy(&self) -> bool {
        self.legs.iter().all(|leg| *leg == LegState::Healthy)
    }
}

/// The same pages on several legs, as in Linux's `dm-mirror`.
///
/// Reads go to the first healthy leg, writes and persists to all. A leg that fails what another one
/// does is dropped: the mirror goes on without it, and says so in the log and in its
/// [`status`](Self::status). One whose end was cut off has lost all it had. What fails on all healthy legs fails, and drops none. Of a write that
/// fails any part may be done, on any leg. What was dropped comes back with
/// [`resync`](Self::resync).
///
/// # Layout
///
/// The legs hold the pages and nothing else: each is good by itself. Where they may differ stands
/// in a log, a bit for each region:
///
/// ```text
/// page 0   header  0 magic "pfnblkML"   8 version 1   12 CRC-32 of the sector, with zeroes here
///                 16 pages of the mirror   24 pages of a region   32 legs
///                 36 bits of the legs that are behind
/// page 1…  bitmap  sectors of 508 bytes of bits, the lowest first, and the CRC-32 of the sector's
///                  number (8 bytes) and the bits; a set bit is a region to be copied
/// ```
///
/// A region's bit is set, and the log synced, before a write to it begins, and cleared some time
/// after a persist; while a leg misses writes, not at all. So a leg that comes back needs those
/// regions only.
///
/// Where bits are set when a mirror is opened nobody knows what the legs hold there: one is
/// believed, the first that isn't behind, and the others are not read until a resync has copied
/// those regions to them. A mirror whose believed leg fails before that fails too: it never answers
/// with what might be something else.
///
/// A header that is damaged is refused; a sector of the bitmap that is has all its regions copied.
/// Where the log can't be written all later writes fail: a crash would leave nobody who knows
/// which leg to believe.
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
    legs: Vec<Linear>,
    geometry: Geometry,
    log: Mutex<Log>,
    /// How the legs are. Changed with the log locked.
    states: AtomicU16,
    /// Held while a region is written or copied: the legs get writes to it in one order.
    regions: Vec<Mutex<()>>,
    /// Held during a resync.
    resyncing: Mutex<()>,
    _claims: Vec<Vec<Claim>>,
}

/// The bit of a leg.
fn bit(leg: usize) -> u8 {
    1 << leg
}

/// How the legs are, a bit for each.
#[derive(Debug, Clone, Copy)]
struct States {
    failed: u8,
    recovering: u8,
}

impl States {
    fn of(self, leg: usize) -> LegState {
        match (self.failed & bit(leg) != 0, self.recovering & bit(leg) != 0) {
            (true, _) => LegState::Failed,
            (false, true) => LegState::Recovering,
            (false, false) => LegState::Healthy,
        }
    }

    /// The legs that lack something that was written.
    fn behind(self) -> u8 {
        self.failed | self.recovering
    }
}

impl From<u16> for States {
    fn from(packed: u16) -> Self {
        let [failed, recovering] = packed.to_le_bytes();
        Self { failed, recovering }
    }
}

impl From<States> for u16 {
    fn from(States { failed, recovering }: States) -> Self {
        Self::from_le_bytes([failed, recovering])
    }
}

/// What a leg could not do.
type Broken<E> = Vec<(usize, E)>;

impl Mirror {
    /// `nr_pages` pages on `legs`, each a target and the first page of it that is used.
    ///
    /// All are claimed as far as they can be written: nobody else may use them meanwhile.
    pub fn open(
        legs: Vec<(Arc<dyn Target>, Pgoff)>,
        log: MirrorLog,
        nr_pages: NrPages,
    ) -> Result<Self, InvalidMirror> {
        let count = legs.len();
        if !(2..=LEGS_MAX).contains(&count) {
            return Err(InvalidMirror::Legs(count));
        }
        let legs = legs.into_iter().enumerate().map(|(leg, (beneath, start))| {
            let pages = PgoffRange::try_new(start, nr_pages)?;
            Linear::try_new(beneath, pages).map_err(|source| InvalidMirror::Leg { leg, source })
        });
        let legs = legs.collect::<Result<Vec<_>, _>>()?;
        let parts = legs.iter().map(|leg| leg as &dyn Target).chain(log.device.as_deref());
        let is_writable = access_of(parts.clone()) == Access::ReadWrite;
        if !is_writable && parts.clone().any(|part| part.access() == Access::ReadWrite) {
            return Err(InvalidMirror::ReadOnly);
        }
        let mut claims = Vec::new();
        for leg in &legs {
            claims.push(Claim::all(leg)?);
        }
        if let Some(device) = &log.device {
            claims.push(Claim::all(&**device)?);
        }
        let legs_count = u32::try_from(count).expect("a few legs");
        let geometry = Geometry { nr_pages, region: log.region, legs: legs_count };
        let log = Log::open(log.device, geometry, log.in_sync, is_writable)?;
        let states = States { failed: 0, recovering: log.recovering() };
        Ok(Self {
            legs,
            geometry,
            log: Mutex::new(log),
            states: AtomicU16::new(states.into()),
            regions: (0..REGION_LOCKS).map(|_| Mutex::new(())).collect(),
            resyncing: Mutex::new(()),
            _claims: claims,
        })
    }

    /// How it is.
    pub fn status(&self) -> MirrorStatus {
        let log = lock(&self.log);
        let states = self.states();
        MirrorStatus {
            legs: (0..self.legs.len()).map(|leg| states.of(leg)).collect(),
            stale: log.stale_count(),
            regions: self.geometry.regions(),
        }
    }

    /// Brings back the legs that were dropped, and makes all legs the same: copies the regions in
    /// which they may differ, and no other, from a healthy leg. Returns how the mirror is then: a
    /// leg that fails meanwhile is dropped.
    ///
    /// Bios go on. After an error the legs that were dropped before are dropped again, and the
    /// call may be repeated.
    ///
    /// A leg must come back as it went. One that was replaced takes [`InSync::No`].
    pub fn resync(&self) -> Result<MirrorStatus, BioError> {
        let _one = lock(&self.resyncing);
        if self.access() == Access::ReadOnly {
            return Err(BioError::ReadOnly { store: "the mirror".to_owned() });
        }
        {
            let _log = lock(&self.log);
            let States { failed, recovering } = self.states();
            self.set_states(States { failed: 0, recovering: recovering | failed });
        }
        let done = self.copy_regions().and_then(|()| Ok(self.sync()?));
        {
            let mut log = lock(&self.log);
            let States { failed, recovering } = self.states();
            let done = done.and_then(|()| log.record_behind(failed));
            let back = if done.is_ok() { 0 } else { recovering };
            self.set_states(States { failed: failed | back, recovering: 0 });
            if done.is_err() {
                log.differ_where_written();
            }
            done?;
        }
        Ok(self.status())
    }

    /// Copies all regions that are stale.
    fn copy_regions(&self) -> Result<(), BioError> {
        let next = |from| lock(&self.log).next_stale(from);
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
                let copy = BioVec::try_new(piece, Buffer::Write(&data))?;
                if let Err(error) = self.legs[leg].submit(copy) {
                    self.drop_leg(leg, &error);
                }
            }
        }
        let mut log = lock(&self.log);
        if self.states().failed == 0 {
            log.copied(region);
        }
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
        (0..self.legs.len()).filter(move |leg| states.of(*leg) != LegState::Failed)
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
        for leg in (0..self.legs.len()).filter(healthy) {
            match self.legs[leg].submit(vec.reborrow()) {
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

    fn write(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let regions = self.geometry.regions_of(vec.pages());
        {
            let mut log = lock(&self.log);
            let states = self.states();
            log.begin(regions.clone(), states.behind(), states.failed != 0)?;
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
                legs.iter().map(|leg| self.legs[*leg].submit(front.reborrow())).collect()
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
            lock(&self.log).record_behind(self.states().behind()).map_err(E::not_recorded)?;
        }
        Ok(())
    }

    /// Goes on without a leg, unless it is the last healthy one. Whether it is gone now.
    fn drop_leg(&self, leg: usize, error: &(dyn std::error::Error + 'static)) -> bool {
        let mut log = lock(&self.log);
        let states = self.states();
        if states.of(leg) == LegState::Failed {
            return true;
        }
        if !(0..self.legs.len()).any(|other| other != leg && self.is_healthy(other)) {
            return false;
        }
        let failed = states.failed | bit(leg);
        self.set_states(States { failed, recovering: states.recovering & !bit(leg) });
        log.differ_where_written();
        warn!(leg, error, "mirror: a leg failed and was dropped; the mirror goes on without it");
        if was_cut_off(error) {
            log.differ_everywhere();
            if let Err(error) = log.record_behind(self.states().behind()) {
                // Nothing more can be written, which says so.
                warn!(%error, "mirror: cannot write down that a leg has lost all it had");
            }
        }
        true
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
        let number = lock(&self.log).begin_persist();
        self.on_all_legs(|legs| at_once(legs, |leg| persist_all(&self.legs[*leg])))?;
        let mut log = lock(&self.log);
        // A leg that failed a read was dropped, and nothing written down yet.
        log.record_behind(self.states().behind()).map_err(PersistError::not_recorded)?;
        log.end_persist(number);
        Ok(())
    }
}

impl Target for Mirror {
    fn nr_pages(&self) -> NrPages {
        self.geometry.nr_pages
    }

    fn access(&self) -> Access {
        access_of(self.legs.iter().map(|leg| leg as &dyn Target))
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        Err(NotDirect { nr_pages: pages.nr_pages(), because: NotDirectReason::Mirror })
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        match vec.direction() {
            Direction::Read => self.read(vec).map(|_| ()),
            Direction::Write => self.write(vec),
        }
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        syncs.add(self);
    }

    fn leaves<'a>(&'a self, _pages: PgoffRange, _visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {}
}
