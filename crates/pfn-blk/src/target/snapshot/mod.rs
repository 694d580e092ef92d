// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `snapshot`: copy-on-write over an origin.

mod base;
mod commit;
mod error;
mod header;
mod layout;
mod map;

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use self::base::{BaseChange, MarkedStore, marked_stores};
use self::base::{Found, NotTold};
use self::commit::{Committed, not_updated};
pub use self::error::InvalidSnapshot;
pub use self::header::CowFile;
use self::header::Record;
use self::layout::Layout;
use self::map::{Map, Place};
use super::metadata::{self, InvalidMetadata, range};
use super::{Holder, Target};
use crate::bio::{BioError, BioVec, Buffer, Direction};
use crate::claim::Claim;
use crate::extent::{Extent, NotDirect, NotDirectReason};
use crate::lock::lock;
use crate::page::{InvalidPages, NrPages, PAGE_SIZE, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::{SyncPoint, SyncSet, persist_all};
use crate::store::{Access, Id};

/// Which origins a COW store is used over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origins {
    /// The one that it was made for, as it was then.
    #[default]
    Same,
    /// Any: it is taken for the right one, and the COW store says so from then on.
    Any,
    /// One that stands in for the right one, which isn't read. The COW store keeps what it says.
    StandIn,
}

/// How full a snapshot's COW store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// The size of a chunk.
    pub chunk: NrPages,
    /// How many chunks were changed.
    pub used: u64,
    /// How many there is room for, or that could be changed at all.
    pub capacity: u64,
}

/// Pages over an origin that isn't written: changes go to a COW store, as in Linux's
/// `dm-snapshot`.
///
/// What was never written is read from the origin. A write to a chunk for the first time takes a
/// chunk of the COW store and copies what the write leaves of it from the origin. Where the store
/// is full the write fails, with [`BioError::Full`], and nothing else changes: chunks that were
/// written before can be written still. Of a write that fails the chunks before the one that failed
/// are written, and of that one any part, if it had been written to before.
///
/// The origin must stay as it is for as long as the COW store is of use, also between two runs. The
/// store's header says what its origin is – the size, the generation and the times of its files – and
/// an origin that differs is refused, with [`InvalidSnapshot::Base`]. What can't be compared isn't:
/// a block device has a size only, a mirror a generation only. A store in which nothing is kept is good for any
/// origin, unless a [mark](crate::mark_origin) says that the origin's changes are in another store, or in
/// this one, which was merged since.
///
/// # Layout
///
/// The COW store, in chunks:
///
/// ```text
/// header | map  0 1 2 … E-1 | map  E E+1 … 2E-1 | …         E = 512 × pages of a chunk
///          area 0             area 1
///
/// header   0 magic "pfnblkCW"   8 version 2   12 CRC-32 of the first 512 bytes, with zeroes here
///         16 pages of the snapshot   24 pages of a chunk   32 how many entries the map has
///         40 check of the last entry   44 whether there is an origin here   48 id
///         64 pages of the origin's stores   72 their generation   88 their times
///         96 the generation that a merge gives them, once it has begun
///        112 whether a merge ever began
/// map      entry i, of 8 bytes: which chunk of the snapshot the store's chunk i stands for; check
/// ```
///
/// Chunks are taken in order, so an entry need not say where its chunk lies. A check is the CRC-32
/// of all chunk numbers so far: an entry that was lost, was damaged or is left over from before
/// breaks the chain at its place, and the store is refused.
///
/// A persist syncs chunks and entries, then writes the header that counts them, and syncs that.
/// Entries behind the count are not there: their chunks are free. The header is smaller than a
/// sector, which a disk writes whole or not at all.
///
/// Version 1 ends before byte 44. A store of that version gets an id, and what its origin is, by its
/// next header.
///
/// A merge changes the origin, so before its first write the header says that one has begun, and
/// which generation it gives the origin; then the origin gets that. Until the last chunk is merged
/// the store is good for an origin of the old generation and for one of the new, and other stores
/// over the same origin for neither. The header that says that no chunk is left has the origin as it
/// is then.
///
/// The store may grow, and is used to its new end when it is opened again. So may the snapshot, over
/// an origin with that many pages, unless a part of a chunk at its end was written.
///
/// # Example
///
/// ```
/// use std::sync::Arc;
/// use pfn_blk::{Access, FileStore, NrPages, PfnSpace, Region, Snapshot};
///
/// # let dir = tempfile::tempdir()?;
/// # let [base, cow] = ["base", "cow"].map(|name| dir.path().join(name));
/// std::fs::write(&base, [1; 16 * 4096])?;
/// std::fs::File::create(&cow)?.set_len(64 * 4096)?;
/// let mut space = PfnSpace::new();
/// let origin = space.add(Box::new(FileStore::open(&base, Access::ReadOnly)?))?;
/// let store = space.add(Box::new(FileStore::open(&cow, Access::ReadWrite)?))?;
/// let chunk = NrPages::try_new(4)?;
/// let snapshot = Arc::new(Snapshot::open(origin, store, chunk, NrPages::try_new(16)?)?);
///
/// let region = Region::try_new(Arc::clone(&snapshot) as _)?;
/// region.write(region.pages(), &[2; 16 * 4096])?;
/// region.persist(region.pages())?;
/// assert_eq!(snapshot.usage().used, 4);
/// assert_eq!(std::fs::read(&base)?, [1; 16 * 4096]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Snapshot {
    origin: Arc<dyn Target>,
    cow: Arc<dyn Target>,
    layout: Layout,
    /// Held by bios for reading, and by a merge for writing.
    gate: RwLock<()>,
    /// Held while a chunk is taken.
    taking: Mutex<()>,
    map: RwLock<Map>,
    committed: Mutex<Committed>,
    /// Whether files beneath may be given a generation.
    may_begin: bool,
    _claims: [Vec<Claim>; 2],
}

impl Snapshot {
    /// The first `nr_pages` pages of `origin`, with what `cow` has changed of them, in chunks of
    /// `chunk`. A blank store is made a COW store by the first persist that has something to
    /// write down.
    ///
    /// Both are claimed as far as they can be written: no one else may use them in the meantime.
    /// The origin is made durable first: a write of what it holds takes no chunk, and a persist
    /// answers for that write as for any other.
    pub fn open(
        origin: Arc<dyn Target>,
        cow: Arc<dyn Target>,
        chunk: NrPages,
        nr_pages: NrPages,
    ) -> Result<Self, InvalidSnapshot> {
        Self::open_over(Origins::Same, origin, cow, chunk, nr_pages)
    }

    /// As [`open`](Self::open), over an origin that may be another.
    pub fn open_over(
        origins: Origins,
        origin: Arc<dyn Target>,
        cow: Arc<dyn Target>,
        chunk: NrPages,
        nr_pages: NrPages,
    ) -> Result<Self, InvalidSnapshot> {
        if nr_pages > origin.nr_pages() {
            let origin = origin.nr_pages();
            return Err(InvalidSnapshot::LargerThanOrigin { nr_pages, origin });
        }
        let layout = Layout::try_new(nr_pages, chunk, cow.nr_pages())?;
        let claims = [Claim::all(&*cow)?, Claim::all(&*origin)?];
        persist_all(&*origin).map_err(InvalidSnapshot::Origin)?;
        let loaded = Map::load(&*cow, layout)?;
        let was = loaded.as_ref().map(|(_, record)| *record);
        let map = loaded.map_or_else(|| Map::new(layout), |(map, _)| map);
        let may_begin = base::outlives(&*cow)?;
        let mut record = Record::new(was, layout).map_err(no_random)?;
        match origins {
            Origins::StandIn => record = was.unwrap_or(record),
            Origins::Same | Origins::Any => {
                // What has a generation in the header and none any more is told by its times.
                let has_begun = was.and_then(|was| was.base?.generation).is_some();
                let found = Found::of(&*origin, may_begin && !has_begun)?;
                if origins == Origins::Same {
                    check_origin(&*origin, &found, &*cow, was, map.len())?;
                }
                record.base = Some(found.base);
            }
        }
        let blank = was.is_none();
        let committed = Committed {
            blank,
            count: map.len(),
            is_recorded: was == Some(record),
            record,
            has_moved: false,
            failed: None,
        };
        let snapshot = Self {
            origin,
            cow,
            layout,
            gate: RwLock::new(()),
            taking: Mutex::new(()),
            map: RwLock::new(map),
            committed: Mutex::new(committed),
            may_begin,
            _claims: claims,
        };
        if origins == Origins::Any && !blank && snapshot.access() == Access::ReadWrite {
            snapshot.sync().map_err(InvalidMetadata::Sync)?;
        }
        Ok(snapshot)
    }

    /// Makes a blank store a COW store for `nr_pages` in chunks of `chunk`, durably, and returns its
    /// id. One that is such a store already, with nothing kept in it, stays as it is.
    pub fn make_cow(
        cow: &dyn Target,
        chunk: NrPages,
        nr_pages: NrPages,
    ) -> Result<Id, InvalidSnapshot> {
        let layout = Layout::try_new(nr_pages, chunk, cow.nr_pages())?;
        match Map::load(cow, layout)? {
            Some((map, _)) if map.len() > 0 => {
                return Err(InvalidSnapshot::NotBlank { used: map.len() });
            }
            Some((_, Record { id: Some(id), has_merged: false, .. })) => return Ok(id),
            _ => {}
        }
        let record = Record::new(None, layout).map_err(no_random)?;
        let header = metadata::encode(&Map::new(layout).header(0, &record));
        metadata::write(cow, 0, &header).map_err(not_updated).map_err(InvalidMetadata::Sync)?;
        persist_all(cow).map_err(InvalidMetadata::Sync)?;
        Ok(record.id.expect("a new record has one"))
    }

    /// That a new COW store may begin over `origin`, whose changes aren't kept in another.
    pub fn check_new(origin: &dyn Target) -> Result<(), InvalidSnapshot> {
        base::marked(origin)?.map_or(Ok(()), |marked| Err(InvalidSnapshot::Marked(marked)))
    }

    /// Which COW store it is; none if its header is of version 1, and wasn't written since.
    pub fn id(&self) -> Option<Id> {
        lock(&self.committed).record.id
    }

    /// Whether a [`merge`](Self::merge) has begun since the COW store was made: changes are in the
    /// origin then, all or some, and it can't be told from them any more what it was.
    pub fn has_merged(&self) -> bool {
        lock(&self.committed).record.has_merged
    }

    /// The size of a COW store that is never full, for a snapshot of `nr_pages` in chunks of
    /// `chunk`.
    pub fn ample_cow(nr_pages: NrPages, chunk: NrPages) -> Result<NrPages, InvalidPages> {
        Layout::ample(nr_pages, chunk)
    }

    /// How full it is.
    pub fn usage(&self) -> SnapshotUsage {
        let Layout { chunk, capacity, .. } = self.layout;
        let used = self.with_map(Map::len);
        SnapshotUsage { chunk, used, capacity: capacity.min(self.layout.chunks()) }
    }

    fn with_map<T>(&self, ask: impl FnOnce(&Map) -> T) -> T {
        ask(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let mut rest = Some(vec);
        while let Some(vec) = rest {
            let (place, len) = self.with_map(|map| map.place(vec.pages()));
            let (front, behind) = vec.split(len);
            self.submit_at(place, front)?;
            rest = behind;
        }
        Ok(())
    }

    fn write(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let mut rest = Some(vec);
        while let Some(vec) = rest {
            let (place, len) = self.with_map(|map| map.place(vec.pages()));
            rest = match place {
                Place::Cow(_) => {
                    let (front, behind) = vec.split(len);
                    self.submit_at(place, front)?;
                    behind
                }
                Place::Origin => self.write_new(vec)?,
            };
        }
        Ok(())
    }

    fn submit_at(&self, place: Place, vec: BioVec<'_>) -> Result<(), BioError> {
        match place {
            Place::Origin => self.origin.submit(vec),
            Place::Cow(start) => {
                let pages = range(start, vec.pages().nr_pages().get());
                self.cow.submit(vec.remap(pages))
            }
        }
    }

    /// Writes the front of `vec`, which was in the origin, to new chunks. Returns what is left.
    ///
    /// What the origin has just so stays there: KVM has the kernel write back pages that a guest has
    /// only read, and reading must not fill a COW store.
    fn write_new<'a>(&self, mut vec: BioVec<'a>) -> Result<Option<BioVec<'a>>, BioError> {
        let _taking = lock(&self.taking);
        let pages = vec.pages();
        let (place, len, next) = self.with_map(|map| {
            let (place, len) = map.place(pages);
            (place, len, map.len())
        });
        if place != Place::Origin {
            // Another writer was first.
            return Ok(Some(vec));
        }
        let first = self.layout.chunk_of(pages.start());
        let chunk = self.layout.chunk_pages(first);
        let part = chunk.intersection(pages).expect("it starts there").nr_pages();
        if self.is_in_origin(vec.reborrow().split(part).0) {
            return Ok(vec.split(part).1);
        }
        if next == self.layout.capacity {
            return Err(BioError::Full { chunks: next });
        }
        let whole = self.whole_chunks(range(pages.start().get(), len.get()), next);
        let start = self.layout.data_page(next);
        let (count, rest) = match whole {
            Some((count, covered)) => {
                let (front, rest) = vec.split(covered);
                let pages = range(start, covered.get());
                self.cow.submit(front.remap(pages))?;
                (count, rest)
            }
            None => {
                let (front, rest) = vec.split(part);
                let copy = self.copied(chunk, front)?;
                metadata::write(&*self.cow, start, &copy)?;
                (1, rest)
            }
        };
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        (first..first + count).for_each(|chunk| map.push(chunk));
        Ok(rest)
    }

    /// Whether the origin has what `vec` writes. One that can't be read hasn't.
    fn is_in_origin(&self, vec: BioVec<'_>) -> bool {
        let pages = vec.pages();
        let Buffer::Write(data) = vec.into_buffer() else { return false };
        let mut held = metadata::buffer(pages.nr_pages());
        let read = BioVec::try_new(pages, Buffer::Read(&mut held));
        read.and_then(|read| self.origin.submit(read)).is_ok() && held == data
    }

    /// How many chunks `pages` start with as a whole, that can be taken one behind another from
    /// entry `next` on, and their pages.
    fn whole_chunks(&self, pages: PgoffRange, next: u64) -> Option<(u32, NrPages)> {
        let chunk = self.layout.chunk.get();
        let (start, end) = (pages.start().get(), pages.end());
        if start % chunk != 0 {
            return None;
        }
        let ends_snapshot = end == self.layout.nr_pages.get();
        let len = end - start;
        let count = if ends_snapshot { len.div_ceil(chunk) } else { len / chunk };
        let count = count.min(self.layout.run(next));
        let covered = NrPages::try_new(len.min(count * chunk)).ok()?;
        Some((u32::try_from(count).ok()?, covered))
    }

    /// What the origin has in `chunk`, with a write to some of it.
    fn copied(&self, chunk: PgoffRange, front: BioVec<'_>) -> Result<Vec<u8>, BioError> {
        let part = front.pages();
        let mut copy = metadata::buffer(chunk.nr_pages());
        let bytes =
            |pages: u64| usize::try_from(pages * PAGE_SIZE).expect("no more than the buffer has");
        let from = bytes(part.start().get() - chunk.start().get());
        let to = bytes(part.end() - chunk.start().get());
        for (pages, at) in [
            (chunk.start().get()..part.start().get(), 0..from),
            (part.end()..chunk.end(), to..copy.len()),
        ] {
            if !pages.is_empty() {
                let pages = range(pages.start, pages.end - pages.start);
                let buffer = Buffer::Read(&mut copy[at]);
                self.origin.submit(BioVec::try_new(pages, buffer)?)?;
            }
        }
        if let Buffer::Write(data) = front.into_buffer() {
            copy[from..to].copy_from_slice(data);
        }
        Ok(copy)
    }
}

/// That `origin` is what the COW store with that record was made for. A blank one must not begin over
/// what has its changes in another.
fn check_origin(
    origin: &dyn Target,
    found: &Found,
    cow: &dyn Target,
    was: Option<Record>,
    used: u64,
) -> Result<(), InvalidSnapshot> {
    let Some(was) = was else {
        return match base::marked(origin)? {
            Some(marked) if base::outlives(cow)? => Err(InvalidSnapshot::Marked(marked)),
            _ => Ok(()),
        };
    };
    match was.base {
        // An empty store matters if another one is kept over it: it is marked, or a table reads it only.
        Some(base)
            if used > 0 || base::marked(cow)?.is_some() || cow.access() == Access::ReadOnly =>
        {
            found.check(base, was.next).map_err(InvalidSnapshot::Base)
        }
        _ => check_unkept(origin, found, was),
    }
}

/// Checks that `origin` may be used with an empty COW store that has this record. The origin's mark may
/// say that its changes are in another store, or in this one, which was merged since.
fn check_unkept(origin: &dyn Target, found: &Found, was: Record) -> Result<(), InvalidSnapshot> {
    let Some(marked) = base::marked(origin)? else { return Ok(()) };
    let is_the_one = was.base.is_some_and(|base| found.has_generation(base, was.next));
    let is_ours = marked.mark.id.is_none_or(|id| was.id == Some(id));
    match is_ours {
        _ if is_the_one => Ok(()),
        false => Err(InvalidSnapshot::Marked(marked)),
        true if was.has_merged => Err(InvalidSnapshot::Base(BaseChange::Written)),
        true => Ok(()),
    }
}

fn no_random(source: io::Error) -> NotTold {
    NotTold { store: "the system's random numbers".to_owned(), source }
}

impl Target for Snapshot {
    fn nr_pages(&self) -> NrPages {
        self.layout.nr_pages
    }

    fn access(&self) -> Access {
        self.cow.access()
    }

    fn direct_access(&self, pages: PgoffRange) -> Result<Extent<'_>, NotDirect> {
        Err(NotDirect { nr_pages: pages.nr_pages(), because: NotDirectReason::Snapshot })
    }

    fn submit(&self, vec: BioVec<'_>) -> Result<(), BioError> {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match vec.direction() {
            Direction::Read => self.read(vec),
            Direction::Write => self.write(vec),
        }
    }

    fn persist<'a>(&'a self, _pages: PgoffRange, syncs: &mut SyncSet<'a>) {
        syncs.add(self);
    }

    fn leaves<'a>(&'a self, _pages: PgoffRange, _visit: &mut dyn FnMut(&'a Pagemap, PgoffRange)) {}

    fn holders<'a>(&'a self, visit: &mut dyn FnMut(Holder<'a>)) {
        self.cow.holders(visit);
    }

    fn markable(&self, visit: &mut dyn FnMut(&Pagemap)) {
        self.cow.markable(visit);
    }
}
