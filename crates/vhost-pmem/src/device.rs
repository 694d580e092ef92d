// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device: a region and who may flush it. Knows no vhost-user.

use std::error::Error;
use std::fs::File;
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pfn_blk::{Extent, Pagemap, PersistError, Region};
use tracing::{error, info, warn};
use vm_memory::GuestMemoryMmap;

use crate::counters::{Counters, Counts};
use crate::gpa::{GpaWindow, Placement};
use crate::health::{Health, Pages, Waiting};
use crate::limit::Limit;
use crate::request::{Request, Unanswerable};
use crate::served::{
    self, Failure, Layer, LayerError, Layered, LiveLayers, Publication, Publish, ServeWindowError,
    Syncing,
};
use crate::spec::{Config, RequestType, Status};
use crate::throttle::Throttle;
use crate::window::{self, InvalidWindow, Window, WindowChoice};

/// How long a guest takes, at least, to look at its pages: nothing makes it wait for them.
const MAPPED_SOON: Duration = Duration::from_millis(100);

/// A persistent memory device. Outlives frontends, which come and go.
pub struct Device {
    /// Ended before the region, which waits for it.
    publication: Mutex<Option<Publication>>,
    /// Of a served window. Ended before the region, too.
    layers: Option<LiveLayers>,
    /// What frontends map, and guests flush: the user's region, or a file that it is served
    /// through.
    region: Region,
    window: Window,
    /// Where a VMM maps it by itself.
    gpa: Option<u64>,
    /// What is known of that, while a frontend is connected.
    gpa_window: Mutex<Option<Arc<GpaWindow>>>,
    connected: AtomicBool,
    /// How many requests of ours frontends have not answered.
    asked: Arc<AtomicUsize>,
    polling: Duration,
    limit: Option<Limit>,
    /// Held by whoever has taken requests and not answered all of them yet.
    batch: Mutex<()>,
    /// Limits what a guest can have logged, of what went wrong and of what went well.
    warnings: Throttle,
    activations: Throttle,
    frontends: Throttle,
    health: Health,
    counters: Arc<Counters>,
}

impl Device {
    /// The device that shows a region, in a window as `choice` says; with layers over it, in a
    /// served one.
    pub fn try_new(
        content: impl Into<Layered>,
        choice: WindowChoice,
    ) -> Result<Self, InvalidWindow> {
        let content = content.into();
        let window = window::choose_layered(&content, choice)?;
        let gpa = if let WindowChoice::Gpa(start) = choice { Some(start) } else { None };
        Self::with_window(content, window, None, gpa)
    }

    /// The device that shows a region in a served window, which others may open by its path: a
    /// VMM whose own device maps a file. An empty file is made there, unless there is one; its
    /// owner and mode say who may open the window. Or a VMM that maps it as memory of its guest, at
    /// the guest physical address `gpa`.
    pub fn try_new_published(
        content: impl Into<Layered>,
        publish: Publish<'_>,
        gpa: Option<u64>,
    ) -> Result<Self, InvalidWindow> {
        let content = content.into();
        let window = window::choose_published(&content.region, gpa)?;
        let refused = |source| ServeWindowError::Publish { path: publish.path.to_owned(), source };
        let publication = Publication::prepare(publish).map_err(refused)?;
        Self::with_window(content, window, Some(publication), gpa)
    }

    fn with_window(
        content: Layered,
        window: Window,
        publication: Option<Publication>,
        gpa: Option<u64>,
    ) -> Result<Self, InvalidWindow> {
        let counters = Arc::new(Counters::new());
        let (region, layers) = match window {
            Window::Direct { .. } => (content.region, None),
            Window::Served { size, .. } => {
                let (region, layers) =
                    served::region(content, size, publication.as_ref(), &counters)?;
                (region, Some(layers))
            }
        };
        Ok(Self {
            publication: Mutex::new(publication),
            layers,
            gpa_window: Mutex::default(),
            connected: AtomicBool::new(false),
            asked: Arc::default(),
            polling: Duration::ZERO,
            limit: None,
            region,
            window,
            gpa,
            batch: Mutex::new(()),
            warnings: Throttle::new(),
            activations: Throttle::new(),
            frontends: Throttle::of_frontends(),
            health: Health::default(),
            counters,
        })
    }

    /// Looks for requests for as long as `most` before sleeping, while they come that often. That
    /// takes a processor.
    #[must_use]
    pub fn with_polling(self, most: Duration) -> Self {
        Self { polling: most, ..self }
    }

    /// Syncs at most so often a second, whoever the guest is.
    #[must_use]
    pub fn with_limit(self, per_second: NonZeroU32) -> Self {
        Self { limit: Some(Limit::new(per_second)), ..self }
    }

    pub(crate) fn limit(&self) -> Option<&Limit> {
        self.limit.as_ref()
    }

    pub(crate) fn polling(&self) -> Duration {
        self.polling
    }

    pub(crate) fn asked(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.asked)
    }

    /// What frontends map.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// How it shows its region.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Where in guest physical memory the VMM has the window, if it maps it by itself.
    pub fn gpa(&self) -> Option<u64> {
        self.gpa
    }

    /// Whether it is there; nothing if the window is none that a VMM maps by itself.
    pub fn placement(&self) -> Option<Placement> {
        self.gpa?;
        let window = self.gpa_window();
        Some(window.as_ref().map_or(Placement::Unknown, |window| window.placement()))
    }

    fn gpa_window(&self) -> MutexGuard<'_, Option<Arc<GpaWindow>>> {
        self.gpa_window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> Config {
        // Zero where the pages are in shared memory region 0, or nowhere.
        let at = |start| Config { start, size: self.region.nr_pages().bytes() };
        self.gpa.map_or_else(Config::default, at)
    }

    /// Sees to it that we don't have mapped, as guest memory, the file that we serve.
    pub(crate) fn cover_own_file(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        let Window::Served { .. } = self.window else { return Ok(()) };
        let Some(own) = self.window_store() else { return Ok(()) };
        served::cover(memory, own.store().fd())
    }

    /// Brings to the region what a guest has stored and not flushed. Through a direct window it is
    /// there already; what stands in a served one is gone with this process.
    pub fn write_back(&self) {
        if let Window::Served { .. } = self.window {
            if let Err(cause) = self.sync() {
                let cause = &cause as &dyn Error;
                warn!(cause, "what the guest stored and did not flush may be lost");
            }
        }
    }

    /// The snapshots that were taken since it is served, the first one first.
    pub fn layers(&self) -> Vec<Layer> {
        self.layers.as_ref().map_or_else(Vec::new, LiveLayers::list)
    }

    /// Takes a snapshot while guests go on: all that a guest has stored so far is made durable where
    /// it belongs, which from then on isn't written any more. What is flushed later is kept in
    /// `cow`, a new file or an unused one.
    ///
    /// What the guest stores while this is done may be on either side, as if the power had been cut
    /// at that moment.
    pub fn take_snapshot(&self, cow: &Path) -> Result<(), LayerError> {
        let layers = self.layers.as_ref().ok_or(LayerError::Direct)?;
        let _answered = self.quiesce();
        // Most of what must be durable; what comes meanwhile is synced while the bios wait.
        self.region.persist(self.region.pages())?;
        layers.take_snapshot(cow)
    }

    /// Writes what was flushed since the last snapshot to where the rest is, and forgets the
    /// snapshot, while guests go on. Returns its COW store, which holds nothing any more.
    pub fn merge(&self) -> Result<PathBuf, LayerError> {
        self.layers.as_ref().ok_or(LayerError::Direct)?.merge()
    }

    /// Forgets the last snapshot and all that was written since: the region is as it was then.
    /// Returns its COW store, which is of no use any more. Not while a guest runs: no frontend may be
    /// connected, and no process may have the window mapped, as a VMM may whose connection has ended.
    pub fn drop_changes(&self) -> Result<PathBuf, LayerError> {
        let layers = self.layers.as_ref().ok_or(LayerError::Direct)?;
        if self.is_connected() {
            return Err(LayerError::Connected);
        }
        // What the kernel still has to write back is to go, too.
        self.write_back();
        layers.drop_changes()
    }

    /// Runs `work` where a served window's stores are opened: its threads have a table of fds of their
    /// own, and what is opened elsewhere, once it is served, is not in it. What is opened there must
    /// not be dropped elsewhere.
    pub fn run_in_window<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LayerError> {
        self.layers.as_ref().ok_or(LayerError::Direct)?.run_there(work)
    }

    /// What failed a sync, of what the device has made itself: its window, and layers. Stores that
    /// it was given say so themselves.
    pub fn failures(&self) -> Vec<Failure> {
        let Some(layers) = &self.layers else { return Vec::new() };
        // The window has the reason; its store was told of an I/O error.
        let window = layers.window_failure().or_else(|| self.window_store().and_then(Failure::of));
        window.into_iter().chain(layers.failures()).collect()
    }

    /// What is being synced, of what the device has made itself.
    pub fn syncing(&self) -> Vec<Syncing> {
        let Some(layers) = &self.layers else { return Vec::new() };
        let window = self.window_store().and_then(Syncing::of);
        window.into_iter().chain(layers.syncing()).collect()
    }

    /// Takes these failures back, if all can be synced now.
    pub fn clear_failures(&self) -> Result<(), LayerError> {
        let Some(layers) = &self.layers else { return Ok(()) };
        // Those beneath first: the window's sync ends in theirs.
        layers.clear_failures()?;
        let Some(window) = self.window_store() else { return Ok(()) };
        if !layers.forget_window_failure() && window.failure().is_none() {
            return Ok(());
        }
        // Our own opening may not have heard of the writeback that failed, and does now. What can't
        // be written back still is remembered again, and fails the sync that counts.
        let _ = window.store().persist();
        if !window.clear_failure()? {
            window.persist()?;
        }
        warn!(store = window.store().name(), "failure cleared; flushes may succeed again");
        Ok(())
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        let counts = self.counters.read();
        match self.placement() {
            // Mapped by the VMM, without us.
            Some(Placement::Found) => {
                Counts { mapped_pages: self.region.nr_pages().get(), ..counts }
            }
            _ => counts,
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether the guest has its pages, and why not.
    pub fn pages(&self) -> Pages {
        match self.placement() {
            Some(Placement::Unknown) => Pages::Idle,
            Some(Placement::Found) => Pages::Mapped,
            Some(Placement::Misplaced(trouble)) => Pages::Unmapped(trouble),
            None if self.counters.read().mapped_pages > 0 => Pages::Mapped,
            None => self.health.trouble().map_or(Pages::Idle, Pages::Unmapped),
        }
    }

    /// The requests of the guest that wait, as they can't be answered.
    pub fn waiting(&self) -> Option<Waiting> {
        self.health.waiting()
    }

    /// Records how many requests wait, and logs why, once until they don't.
    pub(crate) fn set_waiting(&self, waiting: Option<(Unanswerable, u16)>) {
        let Some(news) = self.health.set_waiting(waiting) else { return };
        if let Some(suppressed) = self.warnings.admit() {
            let suppressed = NonZeroU64::new(suppressed);
            error!(suppressed, hint = news.hint(), "{news}; its flushes wait");
        }
    }

    /// What a frontend maps in place of a store's own file.
    pub(crate) fn lend(&self) -> Option<Arc<File>> {
        self.layers.as_ref().map(LiveLayers::lend)
    }

    /// The file of a served window; none of a direct one, whose stores are its caller's.
    pub fn served_file(&self) -> Option<&Pagemap> {
        self.layers.as_ref().and(self.window_store())
    }

    /// The file of a served window.
    fn window_store(&self) -> Option<&Pagemap> {
        self.region.direct_access(self.region.pages()).ok().map(Extent::pagemap)
    }

    /// Whether a frontend is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    /// A frontend came. Its VMM may map the window by itself.
    pub(crate) fn frontend_came(&self, window: Option<Arc<GpaWindow>>) {
        *self.gpa_window() = window;
        self.connected.store(true, Ordering::SeqCst);
    }

    /// It went, and nothing is known any more.
    pub(crate) fn frontend_went(&self) {
        *self.gpa_window() = None;
        self.connected.store(false, Ordering::SeqCst);
    }

    /// Takes back what was published. Who has it open keeps it, until this process ends.
    pub fn withdraw(&self) {
        drop(self.publication.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Where it is published, and whether the file there was made for that.
    pub fn published(&self) -> Option<(PathBuf, bool)> {
        let publication = self.publication.lock().unwrap_or_else(PoisonError::into_inner);
        publication.as_ref().map(Publication::place)
    }

    /// Has `substitute` take back what was published, by [`unpublish`](crate::unpublish), when
    /// that is to be done: for a process that gives up the right to unmount.
    pub fn leave_withdrawal_to(&self, substitute: impl FnOnce() + Send + 'static) {
        let mut publication = self.publication.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(publication) = publication.as_mut() {
            publication.leave_to(Box::new(substitute));
        }
    }

    /// Waits until every request that was taken is answered; none is taken while the guard lives.
    pub fn quiesce(&self) -> MutexGuard<'_, ()> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a frontend's coming, and what becomes of it, may be logged; if so, how many were not.
    pub(crate) fn admit_frontend(&self) -> Option<u64> {
        self.frontends.admit()
    }

    /// Logs that a frontend has connected that isn't served before another one leaves.
    pub(crate) fn log_other_waits(&self) {
        if let Some(suppressed) = self.frontends.admit() {
            let suppressed = NonZeroU64::new(suppressed);
            warn!(
                suppressed,
                "another frontend waits until this one leaves; one is served at a time"
            );
        }
    }

    /// Logs why a guest gets no pages.
    pub(crate) fn log_refusal(&self, refusal: impl Error) {
        if let Some(suppressed) = self.frontends.admit() {
            let suppressed = NonZeroU64::new(suppressed);
            warn!(suppressed, "no persistent memory for this guest: {refusal}");
        }
    }

    /// Logs that a guest's mapping was made.
    pub(crate) fn log_activation(&self, took: Duration) {
        if let Some(suppressed) = self.activations.admit() {
            let suppressed = NonZeroU64::new(suppressed);
            let mappings = match self.window {
                Window::Direct { mappings } => mappings,
                Window::Served { .. } => 1,
            };
            info!(mappings, ?took, suppressed, "guest activated the device; its pages are mapped");
            if took > MAPPED_SOON {
                warn!(
                    ?took,
                    "it took long to map the guest's pages: what it read before were no pages of \
                     ours, and what it wrote is lost; the host may have too much to do"
                );
            }
        }
    }

    /// Logs whether a VMM has the window where its guest looks for it.
    pub(crate) fn log_placement(&self, start: u64, placement: Placement) {
        match placement {
            Placement::Unknown => {}
            Placement::Misplaced(trouble) => {
                let cause = &trouble.reason;
                self.warn_throttled("every flush fails: the guest doesn't have our pages", cause);
            }
            Placement::Found => {
                if let Some(suppressed) = self.activations.admit() {
                    let suppressed = NonZeroU64::new(suppressed);
                    info!(suppressed, "the guest has the window as its memory at {start:#x}");
                }
            }
        }
    }

    /// Logs an event that a guest can cause as often as it likes.
    pub(crate) fn warn_throttled(&self, event: &'static str, cause: &(dyn Error + 'static)) {
        if let Some(suppressed) = self.warnings.admit() {
            let suppressed = NonZeroU64::new(suppressed);
            warn!(suppressed, cause, "{event}");
        }
    }

    /// What to answer to each of `batch`. It is complete before the sync begins, so that no
    /// request is answered by a sync that began before it was submitted. Where the guest's pages
    /// are not `mapped`, what it stored is not in the region, and no flush may succeed.
    pub(crate) fn statuses(&self, batch: &[Request], mapped: bool) -> Vec<Status> {
        let is_flush = |request: &Request| request.kind() == Ok(RequestType::Flush);
        let flushed = match batch.iter().any(is_flush) && mapped {
            true => self.flush(),
            false => Status::Failure,
        };
        let status = |request| if is_flush(request) { flushed } else { Status::Failure };
        for request in batch {
            if let Err(malformed) = request.kind() {
                self.warn_throttled("malformed request", &malformed);
            }
        }
        batch.iter().map(status).collect()
    }

    fn flush(&self) -> Status {
        if self.sync().is_ok() { Status::Success } else { Status::Failure }
    }

    fn sync(&self) -> Result<(), PersistError> {
        let began = Instant::now();
        let result = self.region.persist(self.region.pages());
        self.counters.sync(began.elapsed(), &result);
        // What failed earlier, or was disabled, was logged then, and a guest may go on asking.
        if let Err(cause @ PersistError::Sync { .. }) = &result {
            error!(
                cause = cause as &dyn Error,
                "flush failed; all further flushes will fail, since the kernel has dropped the data \
                 it could not write; repair the storage, stop the guest, then restart the daemon or \
                 run clear-failure"
            );
        }
        result
    }
}
