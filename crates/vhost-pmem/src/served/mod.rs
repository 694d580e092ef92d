// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The served window: a region behind one file, for what can't be mapped itself.
//!
//! The file is on a FUSE mount of this process. The frontend maps it like any other, so its page
//! cache is the guest's memory: the kernel reads pages when the guest touches them, knows which the
//! guest has written to, and brings those to us at a sync.
//!
//! ```text
//! guest's flush ─▶ queue thread ─▶ fdatasync(file) ─▶ dirty pages ─▶ WRITE ─▶ worker ─▶ region.write
//!                       ▲                         └─▶ then FSYNC ─────▶ worker ─▶ region.persist
//!                       └──────────────── done ◀───────────────────────────────────┘
//! ```
//!
//! So the file is a [`Store`], and a region of that store is served as any other. The workers wait
//! for nobody but the stores of the region; they never touch the file.

mod confinement;
mod dirty_limit;
mod filesystem;
mod helper;
mod layers;
mod lending;
mod mount;
mod namespace;
mod openings;
mod own_memory;
mod publication;
mod syncs;
mod unchanged;
mod workers;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use pfn_blk::{Access, InvalidPages, NrPages, Origins, PfnSpace, Pgoff, Region, Store};
use thiserror::Error;

pub use self::confinement::{ServedThread, confine_served_threads};
use self::layers::Layers;
pub use self::layers::{Failure, LAYER_CHUNK, LAYERS_MAX, Layer, LayerError, Syncing};
use self::lending::Lending;
pub use self::namespace::allow_served_windows;
use self::openings::Openings;
pub(crate) use self::own_memory::cover;
pub(crate) use self::publication::Publication;
pub use self::publication::{Publish, PublishError, unpublish};
use self::syncs::Syncs;
use self::workers::{Begun, Job};
use crate::counters::Counters;

/// What the window is called among the stores.
const NAME: &str = "the served window";

/// Why a region can't be served through a file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeWindowError {
    /// There is no FUSE to be had.
    #[error(
        "a served window needs FUSE: cannot open /dev/fuse; load the module fuse, or allow its use"
    )]
    Device(#[source] io::Error),
    /// The kernel has none.
    #[error("a served window needs FUSE, which this kernel doesn't have; load the module fuse")]
    NoFuse,
    /// The process must not mount.
    #[error(
        "a served window needs a FUSE mount, and this process must not mount; run it as root, install \
         fusermount3, of the package fuse3, or, without --publish, allow unprivileged user \
         namespaces"
    )]
    NotAllowed,
    /// Who may mount in our place would not.
    #[error("a served window needs a FUSE mount, and fusermount3 makes none: {0}")]
    Helper(String),
    /// The place that it is to be seen at can't be used.
    #[error("cannot publish the served window at {}", path.display())]
    Publish {
        /// The place.
        path: PathBuf,
        /// Why it can't.
        source: PublishError,
    },
    /// The mount failed.
    #[error("cannot mount the file of a served window")]
    Mount(#[source] io::Error),
    /// The kernel and we don't understand each other.
    #[error("cannot begin to serve a FUSE file")]
    Session(#[source] io::Error),
    /// Its file can't be opened.
    #[error("cannot open the file of a served window")]
    Open(#[source] io::Error),
    /// It would be too large.
    #[error("the served window would be too large")]
    Size(#[source] InvalidPages),
    /// What was written since a snapshot can't be put over the rest.
    #[error("cannot open what was written since a snapshot")]
    Layers(#[from] LayerError),
}

impl ServeWindowError {
    /// Whether somebody with more rights could do what we couldn't.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Device(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::NotAllowed => true,
            _ => false,
        }
    }
}

/// The file that a region is served through.
struct ServedStore {
    /// What closing ends. Synced: it takes note of every page that could not be written back.
    file: Option<File>,
    nr_pages: NrPages,
    workers: Option<JoinHandle<()>>,
    /// Dropped when the workers have ended: they use it with fds of their own, and these are ours.
    _region: Arc<Region>,
}

/// How often we have the file open ourselves: to sync it, and for frontends.
const OWN_OPENINGS: usize = 2;

/// How long the kernel may take to tell that the file was closed.
const RELEASED_SOON: Duration = Duration::from_secs(1);

/// What the workers share with the device.
#[derive(Clone)]
struct Served {
    layers: Arc<Layers>,
    openings: Arc<Openings>,
    syncs: Arc<Syncs>,
}

/// A region, and the layers over it that a process before has left.
#[derive(Debug)]
pub struct Layered {
    /// What is beneath them all, with marked files open for writing.
    pub region: Region,
    /// Where they are kept, the first one taken first. Each is the origin of the next.
    pub cows: Vec<PathBuf>,
    /// Which origins they accept.
    pub origins: Origins,
}

impl From<Region> for Layered {
    fn from(region: Region) -> Self {
        Self { region, cows: Vec::new(), origins: Origins::Same }
    }
}

/// The region of a file of `size` that a region is served through, published or not. Syncs that
/// other processes ask for are counted.
pub(crate) fn region(
    Layered { region, cows, origins }: Layered,
    size: NrPages,
    publication: Option<&Publication>,
    counters: &Arc<Counters>,
) -> Result<(Region, LiveLayers), ServeWindowError> {
    let region = Arc::new(region);
    let layers = Arc::new(Layers::new(Arc::clone(&region)).with_left(cows, origins));
    let syncs = Arc::new(Syncs::new(Arc::clone(&layers), Arc::clone(counters)));
    let served = Served { layers, openings: Arc::default(), syncs };
    let Begun { files: [synced, mapped], jobs, thread } =
        workers::begin(&served, size, publication)?;
    let store =
        ServedStore { file: Some(synced), nr_pages: size, workers: Some(thread), _region: region };
    let pagemap = PfnSpace::new().add(Box::new(store)).map_err(ServeWindowError::Size)?;
    let region = Region::try_new(pagemap).expect("a store is used once");
    Ok((region, LiveLayers { served, lending: Lending::new(mapped), jobs }))
}

/// What can be done to a region while it is served.
pub(crate) struct LiveLayers {
    served: Served,
    lending: Lending,
    jobs: Sender<Job>,
}

impl LiveLayers {
    /// The layers, the first one taken first.
    pub(crate) fn list(&self) -> Vec<Layer> {
        self.served.layers.told().layers
    }

    /// Its stores that failed a sync.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.served.layers.told().failures
    }

    /// Its stores that are being synced.
    pub(crate) fn syncing(&self) -> Vec<Syncing> {
        self.served.layers.told().syncing
    }

    /// What the window itself remembers to have failed.
    pub(crate) fn window_failure(&self) -> Option<Failure> {
        self.served.syncs.failure()
    }

    /// Has the window forget it. Whether there was something.
    pub(crate) fn forget_window_failure(&self) -> bool {
        self.served.syncs.forget()
    }

    /// Takes their failures back.
    pub(crate) fn clear_failures(&self) -> Result<(), LayerError> {
        self.run(|layers, _| layers.clear_failures())
    }

    /// Runs `work` in the workers' table of fds.
    pub(crate) fn run_there<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LayerError> {
        self.run(|_, _| Ok(work()))
    }

    /// Keeps what is written from now on apart, in `cow`.
    pub(crate) fn take_snapshot(&self, cow: &Path) -> Result<(), LayerError> {
        let cow = cow.to_owned();
        self.run(move |layers, _| layers.take_snapshot(&cow))
    }

    /// Merges the last layer into what is beneath.
    pub(crate) fn merge(&self) -> Result<PathBuf, LayerError> {
        self.run(|layers, _| layers.merge())
    }

    /// The window's file, for a frontend to map.
    pub(crate) fn lend(&self) -> Arc<File> {
        self.lending.lend()
    }

    /// Drops the last layer, and has the kernel forget what it knows of the window; refused if
    /// another process has it open or mapped. None can until this is done.
    pub(crate) fn drop_changes(&self) -> Result<PathBuf, LayerError> {
        let openings = &self.served.openings;
        self.lending.renew().map_err(LayerError::Reopen)?;
        // Frontends may map during this wait: nothing would make their guests wait for it.
        openings.wait(OWN_OPENINGS, RELEASED_SOON);
        let _withheld = self.lending.withhold().ok_or(LayerError::Connected)?;
        let _closed = openings.close(OWN_OPENINGS).ok_or(LayerError::InUse)?;
        self.run(|layers, notifier| {
            let cow = layers.drop_changes()?;
            if let Err(error) = notifier.inval_inode(INodeNo::ROOT, 0, 0) {
                // There was nothing to forget.
                tracing::debug!(%error, "no pages were dropped");
            }
            Ok(cow)
        })
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layers, &Notifier) -> Result<T, LayerError> + Send + 'static,
    ) -> Result<T, LayerError> {
        let layers = Arc::clone(&self.served.layers);
        let (done, is_done) = channel();
        let job: Job = Box::new(move |notifier| {
            // Whoever gave up waiting doesn't hear of it.
            let _ = done.send(work(&layers, notifier));
        });
        self.jobs.send(job).map_err(|_| LayerError::Ended)?;
        is_done.recv().map_err(|_| LayerError::Ended)?
    }
}

impl ServedStore {
    fn file(&self) -> &File {
        self.file.as_ref().expect("open until it is dropped")
    }
}

impl Drop for ServedStore {
    fn drop(&mut self) {
        drop(self.file.take());
        if let Some(workers) = self.workers.take() {
            // It comes to an end when frontends, too, have let go of the file.
            let _ = workers.join();
        }
    }
}

impl Store for ServedStore {
    fn name(&self) -> &str {
        NAME
    }

    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        // What must not be written fails when it is written back, and nothing is changed.
        Access::ReadWrite
    }

    fn is_persistent(&self) -> bool {
        // As far as the stores behind it are.
        true
    }

    fn is_removed(&self) -> bool {
        // Its file has no name to begin with.
        false
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // Frontends are given another: `LiveLayers::lend`.
        self.file().as_fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        self.file().read_exact_at(buffer, at.bytes())
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        self.file().write_all_at(buffer, at.bytes())
    }

    fn persist(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn attribute(&self, _name: &str) -> io::Result<Option<Vec<u8>>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_attribute(&self, _name: &str, _value: Option<&[u8]>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn attributes(&self) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn identity(&self) -> io::Result<u64> {
        Ok(0)
    }
}

impl std::fmt::Debug for ServedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedStore").field("nr_pages", &self.nr_pages).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use pfn_blk::{Access, FileStore, Kmap, PgoffRange};

    use super::*;

    fn nr_pages(count: u64) -> NrPages {
        NrPages::try_new(count).unwrap()
    }

    fn range(start: u64, count: u64) -> PgoffRange {
        PgoffRange::try_new(Pgoff::try_new(start).unwrap(), nr_pages(count)).unwrap()
    }

    /// A served region of six pages of a file, in a window of eight; none where there is no FUSE.
    fn served(access: Access) -> Option<(Region, tempfile::TempDir)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; 6 * 4096]).unwrap();
        let store = FileStore::open(&path, access).unwrap();
        let inner = Region::try_new(PfnSpace::new().add(Box::new(store)).unwrap()).unwrap();
        match region(inner.into(), nr_pages(8), None, &Arc::new(Counters::new())) {
            Ok((region, _)) => {
                // Into the page cache, by a system call: who waits for a page of a mapping has the
                // process' memory locked, which its workers may have to change to serve the page.
                // So does who unmaps a dirty one, which the tests do behind a persist.
                let store = region.direct_access(range(0, 8)).unwrap().pagemap().store();
                store.read(Pgoff::try_new(0).unwrap(), &mut [0; 8 * 4096]).unwrap();
                Some((region, dir))
            }
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn served_pages_come_back_at_a_persist() {
        let Some((region, dir)) = served(Access::ReadWrite) else { return };
        let held = || std::fs::read(dir.path().join("file")).unwrap();
        let mapped = region.kmap(range(0, 8)).unwrap();
        let mut page = [0; 4096];
        mapped.read(5 * 4096, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
        mapped.read(6 * 4096, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
        mapped.write(2 * 4096, &[9; 4096]).unwrap();
        assert_eq!(held(), [7; 6 * 4096]);
        region.persist(range(0, 8)).unwrap();
        assert_eq!(held()[2 * 4096..3 * 4096], [9; 4096]);
    }

    #[test]
    fn served_window_may_be_as_dirty_as_a_disk() {
        let Some((region, _dir)) = served(Access::ReadWrite) else { return };
        let extent = region.direct_access(range(0, 8)).unwrap();
        let device = rustix::fs::fstat(extent.pagemap().store().fd()).unwrap().st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let limit = |name| format!("/sys/class/bdi/{major}:{minor}/{name}");
        if std::fs::File::options().write(true).open(limit("max_ratio")).is_err() {
            eprintln!("skipped: it takes the host's root");
            return;
        }
        assert_eq!(std::fs::read_to_string(limit("max_ratio")).unwrap(), "100\n");
        assert_eq!(std::fs::read_to_string(limit("strict_limit")).unwrap(), "0\n");
    }

    /// Makes `page` dirty, as KVM does where a guest only reads it.
    fn fetched_to_write(mapped: &Kmap, page: u64) {
        let mut bytes = [0; 4096];
        mapped.read(page * 4096, &mut bytes).unwrap();
        mapped.write(page * 4096, &bytes).unwrap();
    }

    #[test]
    fn served_page_that_comes_back_unchanged_needs_no_write() {
        let Some((region, dir)) = served(Access::ReadOnly) else { return };
        let mapped = region.kmap(range(0, 8)).unwrap();
        // The last one is behind the end.
        [1, 5, 6].into_iter().for_each(|page| fetched_to_write(&mapped, page));
        region.persist(range(0, 8)).unwrap();
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), [7; 6 * 4096]);
    }

    #[test]
    fn served_page_that_must_not_be_written_fails_the_persist() {
        let Some((region, dir)) = served(Access::ReadOnly) else { return };
        region.persist(range(0, 8)).unwrap();
        let mapped = region.kmap(range(1, 1)).unwrap();
        mapped.write(0, &[9]).unwrap();
        region.persist(range(0, 8)).unwrap_err();
        // For ever: the kernel has forgotten the page.
        region.persist(range(0, 8)).unwrap_err();
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), [7; 6 * 4096]);
    }

    #[test]
    fn served_page_behind_the_end_fails_the_persist() {
        let Some((region, _dir)) = served(Access::ReadWrite) else { return };
        let mapped = region.kmap(range(7, 1)).unwrap();
        mapped.write(0, &[9]).unwrap();
        region.persist(range(0, 8)).unwrap_err();
    }
}
