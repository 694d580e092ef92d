// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is served: a region, and the snapshots that were taken of it meanwhile.
//!
//! A snapshot leaves all that was written where it is, as it is, and keeps what is written from then
//! on in a COW store of its own: a *layer* over what was served before. The layer goes when its
//! changes are merged into what is beneath, or are dropped.
//!
//! Layers are made and taken away by one thread, the [workers'](super::workers): COW stores are open
//! in its table of fds only.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use pfn_blk::{
    Access, BioError, FileStore, InvalidPages, InvalidSnapshot, InvalidStore, NrPages, Origins,
    Pagemap, PersistError, PfnSpace, PgoffRange, Region, Sizing, Snapshot, SnapshotUsage,
};
use thiserror::Error;

/// Pages of a layer's chunk, 16 KiB together.
pub const LAYER_CHUNK: u64 = 4;
/// The most layers there are one over another. A read goes through all of them; and a table that has
/// them as snapshots, as they can be served also, may not be arbitrarily deep.
pub const LAYERS_MAX: usize = 16;

/// Why a layer could not be made, or taken away.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The window is direct: what a guest writes is in the stores at once.
    #[error(
        "the window is direct: the guest maps the files themselves; restart the daemon with \
         --window served for snapshots and changes while it runs"
    )]
    Direct,
    /// There is no layer.
    #[error("there is no snapshot that was taken of what is served")]
    NoLayer,
    /// There are as many as there may be.
    #[error("{LAYERS_MAX} snapshots are open already; merge or drop the last one first")]
    TooMany,
    /// Nothing can be changed, so there is nothing to keep apart.
    #[error("the region is read-only")]
    ReadOnly,
    /// A guest may be about to map pages that would change beneath it.
    #[error("a frontend is connected; end its guest first")]
    Connected,
    /// A guest may have pages in use that would change beneath it.
    #[error("a VMM still has the window mapped, or a process has it open; end its guest first")]
    InUse,
    /// Whether a guest has pages in use can't be found out.
    #[error(
        "cannot tell whether a VMM that was connected still has the window mapped: cannot open it \
         again"
    )]
    Reopen(#[source] io::Error),
    /// The COW store can't be opened.
    #[error("cannot open the COW store")]
    Store(#[from] InvalidStore),
    /// The COW store would be too large.
    #[error("the COW store would be too large")]
    Size(#[from] InvalidPages),
    /// The COW store holds changes to something else.
    #[error("the COW store has changes already; name a new file")]
    NotEmpty,
    /// The COW store can't be one.
    #[error(transparent)]
    Snapshot(#[from] InvalidSnapshot),
    /// What was written before can't be made durable.
    #[error("cannot sync what was written")]
    Persist(#[from] PersistError),
    /// What is beneath isn't any more what the snapshot was taken of.
    #[error(
        "a merge was begun, and has written changes since the snapshot to what is beneath already"
    )]
    HasMerged,
    /// Changes can't be merged; none is lost.
    #[error("cannot merge; nothing is lost, and merging may be tried again")]
    Merge(#[source] BioError),
    /// What serves the window is gone.
    #[error("the served window has ended")]
    Ended,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Where what was written since is kept.
    pub cow: PathBuf,
    /// How full that is.
    pub usage: SnapshotUsage,
}

/// A store that failed a sync: every flush fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The store's name.
    pub store: String,
    /// What the system said.
    pub reason: String,
    /// When that was.
    pub since: SystemTime,
}

impl Failure {
    /// The failure of `pagemap`'s store, if it has failed.
    pub fn of(pagemap: &Pagemap) -> Option<Self> {
        let reason = pagemap.failure()?.to_string();
        let since = pagemap.failed_at()?;
        Some(Self { store: pagemap.store().name().to_owned(), reason, since })
    }
}

/// A store whose sync is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syncing {
    /// The store's name.
    pub store: String,
    /// When it began.
    pub since: SystemTime,
}

impl Syncing {
    /// The sync of `pagemap`'s store, if one is running. Doesn't wait for it.
    pub fn of(pagemap: &Pagemap) -> Option<Self> {
        let since = pagemap.syncing_since()?;
        Some(Self { store: pagemap.store().name().to_owned(), since })
    }
}

/// What is told of the layers.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// The first one taken first.
    pub(super) layers: Vec<Layer>,
    /// The COW stores that failed a sync, and why.
    pub(super) failures: Vec<Failure>,
    /// The COW stores that are being synced.
    pub(super) syncing: Vec<Syncing>,
}

/// A region with layers over it.
#[derive(Debug)]
pub(super) struct Layers {
    bottom: Arc<Region>,
    /// Those that a process before has left, until they are restored.
    left: Vec<PathBuf>,
    /// Which origins those accept.
    origins: Origins,
    /// Each over the one before it. Locked for writing while one comes or goes.
    stack: RwLock<Vec<Over>>,
    /// What was told last.
    told: Mutex<Told>,
}

/// What is over another.
#[derive(Debug)]
struct Over {
    cow: PathBuf,
    store: Arc<Pagemap>,
    snapshot: Arc<Snapshot>,
    region: Region,
}

impl Layers {
    pub(super) fn new(bottom: Arc<Region>) -> Self {
        Self {
            bottom,
            left: Vec::new(),
            origins: Origins::Same,
            stack: RwLock::default(),
            told: Mutex::default(),
        }
    }

    /// Adds the layers in `left`, which [`restore`](Self::restore) opens.
    pub(super) fn with_left(self, left: Vec<PathBuf>, origins: Origins) -> Self {
        Self { left, origins, ..self }
    }

    fn stack(&self) -> RwLockReadGuard<'_, Vec<Over>> {
        self.stack.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for bios that are under way, and lets none begin.
    fn stack_alone(&self) -> RwLockWriteGuard<'_, Vec<Over>> {
        self.stack.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn top<'a>(&'a self, stack: &'a [Over]) -> &'a Region {
        stack.last().map_or(&self.bottom, |over| &over.region)
    }

    /// All pages.
    pub(super) fn pages(&self) -> PgoffRange {
        self.bottom.pages()
    }

    pub(super) fn read(&self, pages: PgoffRange, buffer: &mut [u8]) -> Result<(), BioError> {
        self.top(&self.stack()).read(pages, buffer)
    }

    pub(super) fn write(&self, pages: PgoffRange, buffer: &[u8]) -> Result<(), BioError> {
        self.top(&self.stack()).write(pages, buffer)
    }

    pub(super) fn persist(&self) -> Result<(), PersistError> {
        self.top(&self.stack()).persist(self.pages())
    }

    /// How the layers are; or, while one comes or goes, how they were before. That waits for the
    /// disk, which may hang, and a status must not.
    pub(super) fn told(&self) -> Told {
        let layer = |over: &Over| Layer { cow: over.cow.clone(), usage: over.snapshot.usage() };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(stack) = self.stack.try_read() {
            *told = Told {
                layers: stack.iter().map(layer).collect(),
                failures: stack.iter().filter_map(|over| Failure::of(&over.store)).collect(),
                syncing: stack.iter().filter_map(|over| Syncing::of(&over.store)).collect(),
            };
        }
        told.clone()
    }

    /// Keeps what is written from now on in a new file at `cow`, or a blank one. Beneath it all
    /// that was written is durable. A file that holds something else is left as it is.
    pub(super) fn take_snapshot(&self, cow: &Path) -> Result<(), LayerError> {
        if self.bottom.access() == Access::ReadOnly {
            return Err(LayerError::ReadOnly);
        }
        if self.stack().len() >= LAYERS_MAX {
            return Err(LayerError::TooMany);
        }
        let size = self.bottom.nr_pages();
        let chunk = NrPages::try_new(LAYER_CHUNK)?;
        let (store, created) = match FileStore::open_new(cow, Snapshot::ample_cow(size, chunk)?) {
            Ok((store, sizing)) => (store, sizing == Sizing::Created),
            Err(InvalidStore::NotNew(_)) => (FileStore::open(cow, Access::ReadWrite)?, false),
            Err(error) => return Err(error.into()),
        };
        let taken = self.put_over(cow, store, Origins::Same, |usage| usage.used == 0);
        if taken.is_err() && created {
            // Nobody misses it, and the next attempt can do without.
            let _ = std::fs::remove_file(cow);
        }
        taken
    }

    /// Puts the layers back that a process before has left, the first one taken first.
    pub(super) fn restore(&self) -> Result<(), LayerError> {
        let Some((last, beneath)) = self.left.split_last() else { return Ok(()) };
        for cow in beneath {
            // Marked, as its changes are in the next one.
            self.put_over(cow, FileStore::open_origin(cow)?, self.origins, |_| true)?;
        }
        self.put_over(last, FileStore::open(last, Access::ReadWrite)?, self.origins, |_| true)
    }

    fn put_over(
        &self,
        cow: &Path,
        store: FileStore,
        origins: Origins,
        is_right: impl FnOnce(SnapshotUsage) -> bool,
    ) -> Result<(), LayerError> {
        let chunk = NrPages::try_new(LAYER_CHUNK)?;
        let store = PfnSpace::new().add(Box::new(store))?;
        let mut stack = self.stack_alone();
        let size = self.bottom.nr_pages();
        let beneath = Arc::clone(self.top(&stack).target());
        // Which makes durable what is beneath.
        let snapshot = Snapshot::open_over(origins, beneath, Arc::clone(&store) as _, chunk, size)?;
        if !is_right(snapshot.usage()) {
            return Err(LayerError::NotEmpty);
        }
        let snapshot = Arc::new(snapshot);
        let region = Region::try_new(Arc::clone(&snapshot) as _);
        let region = region.expect("what is beneath a snapshot is its own");
        stack.push(Over { cow: cow.to_owned(), store, snapshot, region });
        Ok(())
    }

    /// Writes what was changed since the last snapshot to what is beneath, and forgets the snapshot.
    /// Returns its COW store.
    pub(super) fn merge(&self) -> Result<PathBuf, LayerError> {
        let Some(snapshot) = self.stack().last().map(|over| Arc::clone(&over.snapshot)) else {
            return Err(LayerError::NoLayer);
        };
        // Most of the work, while bios go on; and then what they have changed meanwhile.
        snapshot.merge(snapshot.usage().used).map_err(LayerError::Merge)?;
        let mut stack = self.stack_alone();
        snapshot.merge(u64::MAX).map_err(LayerError::Merge)?;
        Ok(stack.pop().expect("only one thread takes layers away").cow)
    }

    /// Forgets the last snapshot, and what was changed since. Returns its COW store, of which nothing
    /// is of use any more. Not once a merge has begun: what is beneath may be a mixture of both then.
    pub(super) fn drop_changes(&self) -> Result<PathBuf, LayerError> {
        let mut stack = self.stack_alone();
        match stack.last() {
            Some(over) if over.snapshot.has_merged() => Err(LayerError::HasMerged),
            Some(_) => Ok(stack.pop().expect("there is one").cow),
            None => Err(LayerError::NoLayer),
        }
    }

    /// Clears the failures of COW stores, if they can be written and synced now.
    pub(super) fn clear_failures(&self) -> Result<(), LayerError> {
        self.stack().iter().try_for_each(|over| {
            over.store.clear_failure()?;
            over.snapshot.clear_failure()?;
            Ok(())
        })
    }

    /// Closes all COW stores. Nothing may be read or written any more.
    pub(super) fn close(&self) {
        self.stack_alone().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use pfn_blk::{HookedStore, MemoryStore, Pgoff, StoreOperation};

    use super::*;

    const PAGES: u64 = 64;

    fn page(at: u64) -> PgoffRange {
        PgoffRange::try_new(Pgoff::try_new(at).unwrap(), NrPages::ONE).unwrap()
    }

    fn write(layers: &Layers, at: u64, value: u64) {
        layers.write(page(at), &value.to_le_bytes().repeat(512)).unwrap();
    }

    fn value(region: impl Fn(PgoffRange, &mut [u8]) -> Result<(), BioError>, at: u64) -> u64 {
        let mut bytes = [0; 4096];
        region(page(at), &mut bytes).unwrap();
        let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(bytes[..], value.to_le_bytes().repeat(512), "a page is torn");
        value
    }

    /// A region of zeroes, whose writes fail while the flag is set.
    fn bottom(failing: &Arc<AtomicBool>) -> Arc<Region> {
        let store = MemoryStore::new("bottom", NrPages::try_new(PAGES).unwrap()).unwrap();
        let failing = Arc::clone(failing);
        let hooked = HookedStore::new(store, move |operation| match operation {
            StoreOperation::Write(_) if failing.load(Ordering::SeqCst) => {
                Err(io::Error::other("injected"))
            }
            _ => Ok(()),
        });
        let pagemap = PfnSpace::new().add(Box::new(hooked)).unwrap();
        Arc::new(Region::try_new(pagemap).unwrap())
    }

    fn whole() -> Arc<Region> {
        bottom(&Arc::default())
    }

    #[test]
    fn snapshots_stack_and_come_off_last_first() {
        let dir = tempfile::tempdir().unwrap();
        let cow = |name| dir.path().join(name);
        let bottom = whole();
        let layers = Layers::new(Arc::clone(&bottom));
        let all = |layers: &Layers| [0, 1, 2, 9].map(|at| value(|p, b| layers.read(p, b), at));
        assert!(matches!(layers.merge(), Err(LayerError::NoLayer)));
        write(&layers, 0, 1);
        layers.take_snapshot(&cow("one")).unwrap();
        write(&layers, 1, 2);
        layers.take_snapshot(&cow("two")).unwrap();
        write(&layers, 2, 3);
        write(&layers, 1, 4);
        assert_eq!(all(&layers), [1, 4, 3, 0]);
        let used: Vec<_> = layers.told().layers.iter().map(|layer| layer.usage.used).collect();
        assert_eq!(used, [1, 1]);
        assert_eq!([0, 1, 2].map(|at| value(|p, b| bottom.read(p, b), at)), [1, 0, 0]);

        assert_eq!(layers.drop_changes().unwrap(), cow("two"));
        assert_eq!(all(&layers), [1, 2, 0, 0]);
        write(&layers, 9, 5);
        assert_eq!(layers.merge().unwrap(), cow("one"));
        assert_eq!(all(&layers), [1, 2, 0, 5]);
        assert_eq!([0, 1, 2, 9].map(|at| value(|p, b| bottom.read(p, b), at)), [1, 2, 0, 5]);
        assert!(layers.told().layers.is_empty());
    }

    #[test]
    fn snapshot_into_a_store_with_changes_is_refused_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let cow = dir.path().join("cow");
        let layers = Layers::new(whole());
        layers.take_snapshot(&cow).unwrap();
        write(&layers, 1, 1);
        layers.persist().unwrap();
        layers.drop_changes().unwrap();
        assert!(matches!(layers.take_snapshot(&cow), Err(LayerError::NotEmpty)));
        assert!(cow.exists());
        let other = dir.path().join("other");
        std::fs::write(&other, [7; 4096 * 20]).unwrap();
        assert!(matches!(layers.take_snapshot(&other), Err(LayerError::Snapshot(_))));
        assert_eq!(std::fs::read(&other).unwrap(), [7; 4096 * 20]);
        let none = dir.path().join("none/cow");
        assert!(matches!(layers.take_snapshot(&none), Err(LayerError::Store(_))));
        assert!(layers.told().layers.is_empty());
    }

    #[test]
    fn layers_are_told_while_one_comes_or_goes_as_they_were_before() {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::new(whole());
        layers.take_snapshot(&dir.path().join("cow")).unwrap();
        assert_eq!(layers.told().layers.len(), 1);
        write(&layers, 1, 1);
        let alone = layers.stack_alone();
        assert_eq!(layers.told().layers[0].usage.used, 0);
        drop(alone);
        assert_eq!(layers.told().layers[0].usage.used, 1);
    }

    #[test]
    fn merge_that_fails_loses_nothing_and_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let failing = Arc::default();
        let layers = Layers::new(bottom(&failing));
        layers.take_snapshot(&dir.path().join("cow")).unwrap();
        (0..PAGES).for_each(|at| write(&layers, at, at + 1));
        failing.store(true, Ordering::SeqCst);
        assert!(matches!(layers.merge(), Err(LayerError::Merge(_))));
        // A part may be beneath.
        assert!(matches!(layers.drop_changes(), Err(LayerError::HasMerged)));
        assert_eq!(layers.told().layers.len(), 1);
        layers.persist().unwrap();
        failing.store(false, Ordering::SeqCst);
        layers.merge().unwrap();
        assert!((0..PAGES).all(|at| value(|p, b| layers.read(p, b), at) == at + 1));
    }

    /// Writers count pages up while snapshots come and go. What is beneath a snapshot must not
    /// change, and must be what a writer that persists in between could have left.
    #[test]
    fn snapshots_taken_and_merged_under_load_are_points_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let bottom = whole();
        let layers = Layers::new(Arc::clone(&bottom));
        let persisted: [AtomicU64; 4] = Default::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (writer, persisted) in (0..).zip(&persisted) {
                let (layers, done) = (&layers, &done);
                scope.spawn(move || {
                    for count in 1.. {
                        // The second page is written when the first one is durable.
                        write(layers, writer * 8, count);
                        layers.persist().unwrap();
                        write(layers, writer * 8 + 5, count);
                        layers.persist().unwrap();
                        persisted.store(count, Ordering::SeqCst);
                        if done.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
            }
            for round in 0..40 {
                let before: Vec<_> = persisted.iter().map(|at| at.load(Ordering::SeqCst)).collect();
                let cow = dir.path().join(round.to_string());
                layers.take_snapshot(&cow).unwrap();
                let beneath = |at| value(|p, b| bottom.read(p, b), at);
                let pairs = || (0..4).map(|writer| (beneath(writer * 8), beneath(writer * 8 + 5)));
                let taken: Vec<_> = pairs().collect();
                for ((first, second), before) in taken.iter().zip(before) {
                    assert!(*second >= before && (*first == *second || *first == second + 1));
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
                assert!(pairs().eq(taken), "what is beneath a snapshot has changed");
                layers.merge().unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        for (writer, persisted) in (0..).zip(persisted) {
            let count = persisted.into_inner();
            assert_eq!(value(|p, b| bottom.read(p, b), writer * 8 + 5), count);
        }
    }
}
