// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The write-intent log: in which regions the legs of a mirror may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use tracing::warn;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::belief::{Belief, Found};
use super::label::Members;
use super::leg::Leg;
use super::roll::Roll;
use super::{InvalidMirror, LEGS_MAX, States, bit};
use crate::bio::BioError;
use crate::page::{NrPages, PAGE_BYTES, PgoffRange};
use crate::persist::persist_all;
use crate::target::Target;
use crate::target::metadata::{self, Header, InvalidMetadata, SECTOR_BYTES, check, range};

/// More regions than this take too much memory: 16 MiB for their bits.
const REGIONS_MAX: u64 = 1 << 27;
/// Bits in a sector of the bitmap.
const SECTOR_BITS: u64 = (SECTOR_BYTES as u64 - 4) * 8;
/// Bits in a page of it.
const PAGE_BITS: u64 = SECTOR_BITS * (PAGE_BYTES / SECTOR_BYTES) as u64;

/// What the log's header says.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LogHeader {
    nr_pages: U64,
    region: U64,
    /// What the legs said when they last said the same as the log.
    members: Members,
    /// The first event since which the bits tell all that any leg lacks.
    whole: U64,
}

impl Header for LogHeader {
    const MAGIC: [u8; 8] = *b"pfnblkML";
    const VERSION: u32 = 2;
    const WHAT: &'static str = "mirror log";
}

/// A sector of the bitmap.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Sector {
    /// A bit for each region, the first the lowest of the first byte.
    bits: [u8; SECTOR_BYTES - 4],
    /// The CRC-32 of the sector's number and the bits.
    check: U32,
}

impl Sector {
    fn check_of(&self, number: u64) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher.update(&self.bits);
        hasher.finalize()
    }
}

/// Writes to a region.
#[derive(Debug, Default)]
struct Activity {
    /// How many are under way.
    in_flight: u64,
    /// How many persists had begun when the last one ended.
    last: u64,
}

/// The geometry of a mirror.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) nr_pages: NrPages,
    /// The size of a region.
    pub(super) region: NrPages,
}

impl Geometry {
    pub(super) fn regions(self) -> u64 {
        self.nr_pages.get().div_ceil(self.region.get())
    }

    /// The regions that have some of `pages`.
    pub(super) fn regions_of(self, pages: PgoffRange) -> Range<u64> {
        let region = self.region.get();
        pages.start().get() / region..pages.end().div_ceil(region)
    }

    /// The pages of a region; the last one may be shorter.
    pub(super) fn pages_of(self, region: u64) -> PgoffRange {
        let start = region * self.region.get();
        range(start, self.region.get().min(self.nr_pages.get() - start))
    }
}

/// In which regions the legs may differ: those that are *stale*, as a leg missed something or
/// nobody knows, and those that are being written to. A bit is set and synced before a write
/// begins. It is cleared some time after a persist, which need not be durable: one that is set for
/// nothing costs a copy.
#[derive(Debug)]
pub(super) struct Log {
    geometry: Geometry,
    /// Where it is written down, if it is.
    device: Option<Arc<dyn Target>>,
    /// Whether the device has no header yet.
    blank: bool,
    /// Why it can't be kept any more. Final: what it says isn't known.
    failed: Option<BioError>,
    stale: FixedBitSet,
    /// Whether bits of pages were set that no record is about to write.
    unwritten: bool,
    written: BTreeMap<u64, Activity>,
    /// The stale regions that were read while current legs may differ there.
    read: BTreeSet<u64>,
    /// How many persists have begun.
    persists: u64,
    /// Which legs have everything, as they and the log say.
    roll: Roll,
}

/// What a log's device says.
pub(super) struct Loaded {
    device: Option<Arc<dyn Target>>,
    geometry: Geometry,
    header: Option<LogHeader>,
    stale: FixedBitSet,
}

impl Loaded {
    /// Reads what the device says, if there is one and it isn't blank.
    pub(super) fn read(
        device: Option<Arc<dyn Target>>,
        geometry: Geometry,
    ) -> Result<Self, InvalidMirror> {
        let regions = geometry.regions();
        if regions > REGIONS_MAX {
            return Err(InvalidMirror::SmallRegion(geometry.region));
        }
        let stale = FixedBitSet::with_capacity(index(regions));
        let mut loaded = Self { device: device.clone(), geometry, header: None, stale };
        let Some(device) = device else { return Ok(loaded) };
        let pages = regions.div_ceil(PAGE_BITS);
        let least = NrPages::try_new(1 + pages).expect("a bitmap is small");
        if device.nr_pages() < least {
            return Err(InvalidMirror::SmallLog { log: device.nr_pages(), least });
        }
        let Some(header) = metadata::load::<LogHeader>(&*device, 1)? else { return Ok(loaded) };
        check("a size", header.nr_pages.get(), geometry.nr_pages.get())?;
        check("regions", header.region.get(), geometry.region.get())?;
        let bitmap = metadata::read(&*device, range(1, pages)).map_err(InvalidMetadata::Read)?;
        loaded.read_bits(&bitmap);
        loaded.header = Some(header);
        Ok(loaded)
    }

    fn read_bits(&mut self, bitmap: &[u8]) {
        let sectors = <[Sector]>::ref_from_bytes(bitmap).expect("a page is full of sectors");
        for (number, sector) in (0..).zip(sectors) {
            let first = number * SECTOR_BITS;
            let regions = first..(first + SECTOR_BITS).min(self.geometry.regions());
            let good = sector.check.get() == sector.check_of(number);
            if !good && !regions.is_empty() {
                warn!(?regions, "mirror: a sector of the log is damaged; the regions are stale");
            }
            for region in regions {
                let (byte, bit) = bit_of(region - first);
                if !good || sector.bits[byte] & bit != 0 {
                    self.stale.insert(index(region));
                }
            }
        }
    }

    /// Which legs had everything. A log that was made, and whose legs were never told, says nothing.
    pub(super) fn members(&self) -> Option<Members> {
        let members = self.header.as_ref()?.members;
        (members.events != U64::ZERO).then_some(members)
    }

    /// The log of a mirror whose legs are as `belief` says. Where not `may_trust`, or the legs have
    /// gone on without it, it says that everything is stale. One that isn't writable is left alone.
    pub(super) fn open(
        self,
        belief: &Belief,
        may_trust: bool,
        found: &[Found],
        is_writable: bool,
    ) -> Log {
        let Self { device, geometry, header, stale } = self;
        let mut roll = Roll::new(belief);
        if let Some(header) = header.filter(|_| belief.is_logged) {
            roll.set_whole(header.whole.get());
        }
        let mut log = Log {
            geometry,
            device: device.filter(|_| is_writable),
            blank: header.is_none(),
            failed: None,
            stale,
            unwritten: false,
            written: BTreeMap::new(),
            read: BTreeSet::new(),
            persists: 0,
            roll,
        };
        let lacks_more = (0..).zip(found).any(|(leg, found)| {
            let is_told =
                matches!(found, Found::Labelled(label) if log.roll.covers(label.events()));
            belief.behind & bit(leg) != 0 && !is_told
        });
        if !may_trust || lacks_more {
            log.differ_everywhere();
        }
        log
    }
}

impl Log {
    /// The legs that are not to be read before a resync, when the mirror is opened: those that are
    /// behind, and where any region is stale all but the first that isn't.
    pub(super) fn recovering(&self, belief: &Belief, legs: usize) -> u8 {
        if self.stale.is_clear() {
            return belief.behind;
        }
        let believed = (belief.behind | belief.missing).trailing_ones();
        let all = u8::MAX >> (LEGS_MAX - legs);
        all & !(1 << believed) & !belief.missing
    }

    pub(super) fn failure(&self) -> Option<&BioError> {
        self.failed.as_ref()
    }

    pub(super) fn roll(&mut self) -> &mut Roll {
        &mut self.roll
    }

    /// How many regions are stale.
    pub(super) fn stale_count(&self) -> u64 {
        self.stale.count_ones(..) as u64
    }

    /// The first region from `from` on that is.
    pub(super) fn next_stale(&self, from: u64) -> Option<u64> {
        (from..self.geometry.regions()).find(|region| self.stale.contains(index(*region)))
    }

    /// Writes to `regions` are about to begin. Returns how the legs are then: one that can't be told
    /// is dropped.
    pub(super) fn begin(
        &mut self,
        regions: Range<u64>,
        states: States,
        legs: &[Arc<Leg>],
    ) -> Result<States, BioError> {
        self.roll.move_on()?;
        let mut pages = BTreeSet::new();
        for region in regions.clone() {
            if !self.is_dirty(region) {
                pages.insert(region / PAGE_BITS);
            }
            self.written.entry(region).or_default().in_flight += 1;
        }
        let done = self.record(&pages, states, legs);
        match &done {
            Ok(states) if states.failed != 0 => self.differ(regions),
            Ok(_) => {}
            Err(_) => self.end(regions),
        }
        done
    }

    /// Writes to `regions` have ended.
    pub(super) fn end(&mut self, regions: Range<u64>) {
        for region in regions {
            let activity = self.written.entry(region).or_default();
            activity.in_flight = activity.in_flight.saturating_sub(1);
            activity.last = self.persists;
        }
    }

    /// The legs differ in `regions`, which are being written to, from now on.
    pub(super) fn differ(&mut self, regions: Range<u64>) {
        regions.for_each(|region| self.stale.insert(index(region)));
    }

    /// A leg may lack all that was written and not yet persisted.
    pub(super) fn differ_where_written(&mut self) {
        for region in self.written.keys() {
            self.stale.insert(index(*region));
        }
    }

    /// A leg may lack anything.
    pub(super) fn differ_everywhere(&mut self) {
        self.stale.insert_range(..);
        self.unwritten = true;
        self.roll.set_whole(0);
    }

    /// Notes that `regions` were read while current legs may differ in the stale ones among them.
    pub(super) fn note_read(&mut self, regions: Range<u64>) {
        let stale = regions.filter(|region| self.stale.contains(index(*region)));
        self.read.extend(stale);
    }

    /// Returns the first region from `from` on that was noted.
    pub(super) fn next_read(&self, from: u64) -> Option<u64> {
        self.read.range(from..).next().copied()
    }

    /// A persist begins. Returns its number.
    pub(super) fn begin_persist(&mut self) -> u64 {
        self.persists += 1;
        self.persists
    }

    /// The persist of that number is done: the legs that aren't behind have all that was written
    /// before it. Regions that were left alone since the one before need no bit any more; most
    /// that are written to once are written to again.
    pub(super) fn end_persist(&mut self, number: u64) {
        let quiet = |activity: &Activity| activity.in_flight == 0 && activity.last + 1 < number;
        let mut pages = BTreeSet::new();
        self.written.retain(|region, activity| {
            let quiet = quiet(activity);
            if quiet && !self.stale.contains(index(*region)) {
                pages.insert(region / PAGE_BITS);
            }
            !quiet
        });
        if let Err(error) = pages.iter().try_for_each(|page| self.write_page(*page)) {
            warn!(%error, "mirror: cannot clear bits in the log; a resync will copy too much");
        }
    }

    /// Records that all legs that are written have `region`. If `to_all`, it keeps its bit only until
    /// a persist, as a written region does.
    pub(super) fn copied(&mut self, region: u64, to_all: bool) {
        self.read.remove(&region);
        if to_all {
            self.stale.set(index(region), false);
            self.written.entry(region).or_default().last = self.persists;
        }
    }

    /// Has the legs, and the log, say which of them have everything, if that has changed or wasn't
    /// said since the mirror was opened.
    pub(super) fn record_states(
        &mut self,
        states: States,
        legs: &[Arc<Leg>],
    ) -> Result<States, BioError> {
        self.record(&BTreeSet::new(), states, legs)
    }

    /// Makes durable what `pages` of the bitmap should say, and then who has everything. Returns how
    /// the legs are: one that can't be told is dropped.
    fn record(
        &mut self,
        pages: &BTreeSet<u64>,
        states: States,
        legs: &[Arc<Leg>],
    ) -> Result<States, BioError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        // In this order: a leg that says that it lacks something is one whose bits are set, and a log
        // that says what the legs say has the bits of all that came before.
        self.record_bits(pages).inspect_err(|error| self.failed = Some(error.clone()))?;
        if !self.roll.is_due(states) {
            return Ok(states);
        }
        // After an error the legs are told again, of a later event, before anything is acknowledged.
        let now = self.roll.write(states, legs)?;
        if now.failed != states.failed {
            self.differ_where_written();
        }
        self.record_members().inspect_err(|error| self.failed = Some(error.clone()))?;
        Ok(now)
    }

    /// Makes durable what `pages` of the bitmap should say.
    fn record_bits(&mut self, pages: &BTreeSet<u64>) -> Result<(), BioError> {
        let Some(device) = self.device.clone() else { return Ok(()) };
        if self.blank {
            // No bitmap without a header: a blank log is told by both. It is of no event yet.
            let members = Members::new(self.roll.members().mirror);
            metadata::write(&*device, 0, &self.header(members))?;
            persist_all(&*device)?;
        }
        let all = (0..self.geometry.regions().div_ceil(PAGE_BITS)).collect();
        let pages = if self.blank || self.unwritten { &all } else { pages };
        if !pages.is_empty() {
            pages.iter().try_for_each(|page| self.write_page(*page))?;
            persist_all(&*device)?;
        }
        self.blank = false;
        self.unwritten = false;
        Ok(())
    }

    /// Has the header say what the legs say.
    fn record_members(&self) -> Result<(), BioError> {
        let Some(device) = &self.device else { return Ok(()) };
        metadata::write(&**device, 0, &self.header(*self.roll.members()))?;
        Ok(persist_all(&**device)?)
    }

    fn header(&self, members: Members) -> Vec<u8> {
        let Geometry { nr_pages, region } = self.geometry;
        metadata::encode(&LogHeader {
            nr_pages: nr_pages.get().into(),
            region: region.get().into(),
            members,
            whole: self.roll.whole().into(),
        })
    }

    fn is_dirty(&self, region: u64) -> bool {
        self.stale.contains(index(region)) || self.written.contains_key(&region)
    }

    /// Writes a page of the bitmap.
    fn write_page(&self, page: u64) -> Result<(), BioError> {
        let Some(device) = &self.device else { return Ok(()) };
        let regions = page * PAGE_BITS..(page + 1) * PAGE_BITS;
        let stale = regions.clone().filter(|region| self.stale.contains(index(*region)));
        let written = self.written.range(regions.clone()).map(|(region, _)| *region);
        let blank = Sector { bits: [0; SECTOR_BYTES - 4], check: U32::ZERO };
        let mut sectors = vec![blank; PAGE_BYTES / SECTOR_BYTES];
        for at in stale.chain(written).map(|region| region - regions.start) {
            let (byte, bit) = bit_of(at % SECTOR_BITS);
            sectors[index(at / SECTOR_BITS)].bits[byte] |= bit;
        }
        for (number, sector) in (regions.start / SECTOR_BITS..).zip(&mut sectors) {
            sector.check = sector.check_of(number).into();
        }
        metadata::write(&**device, 1 + page, sectors.as_bytes())
    }
}

/// The byte and the bit in it that a region of a sector has.
fn bit_of(at: u64) -> (usize, u8) {
    (index(at / 8), 1 << (at % 8))
}

/// A number of regions, of which there are no more than [`REGIONS_MAX`].
fn index(count: u64) -> usize {
    usize::try_from(count).expect("no more regions than fit in memory")
}
