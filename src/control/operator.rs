// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a request does.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Chain, Context, anyhow, bail};
use pfn_blk::table::OpenMirror;
use pfn_blk::{
    Access, FileStore, Id, InvalidStore, LegState, MirrorStatus, NrPages, PAGE_SIZE, Pagemap,
    PersistError, PfnSpace, Sizing, Snapshot, SnapshotUsage, mark_origin, unmark_origin,
};
use tracing::{info, warn};
use vhost_pmem::{
    Device, Failure, LayerError, Pages, Placement, Syncing, Trouble, Unanswerable, Waiting, Window,
};

use super::measures::Cache;
use super::process::OwnProcess;
use super::protocol::{self, Command, Cow, Report, Request, State, Status};
use crate::marks::cannot_be_marked;
use crate::overlay::overlay_chunk;
use crate::resync;
use crate::sandbox::Sandbox;

/// How long a status may take to tell what is in the page cache: each GiB takes 20 ms where all pages
/// are cached by themselves, and next to nothing where they aren't.
const CACHES_PATIENCE: Duration = Duration::from_millis(250);

/// Operates a device.
pub(crate) struct Operator {
    pub(crate) name: String,
    pub(crate) device: Arc<Device>,
    pub(crate) size: NrPages,
    /// What it was made of at the start.
    pub(crate) stores: Vec<Arc<Pagemap>>,
    pub(crate) mirrors: Mutex<Vec<OpenMirror>>,
    pub(crate) snapshots: Vec<(String, Arc<Snapshot>)>,
    /// Nothing where there is no proc(5).
    pub(crate) process: Option<OwnProcess>,
    /// Held while something is changed.
    pub(crate) changing: Mutex<()>,
    /// Says which files can be opened.
    pub(crate) sandbox: Arc<Sandbox>,
}

impl Operator {
    /// Carries a request out, and tells how all is then.
    pub(crate) fn carry_out(&self, request: &Request) -> anyhow::Result<Vec<Report>> {
        let Request { device, command, .. } = request;
        if device.as_ref().is_some_and(|device| *device != self.name) {
            bail!("there is no such device; there is {}", self.name);
        }
        self.change(command)?;
        let (name, state) = (self.name.clone(), State::Served(Box::new(self.status())));
        Ok(vec![Report { name, restarts: None, state }])
    }

    fn change(&self, command: &Command) -> anyhow::Result<()> {
        if let Command::Status = command {
            return Ok(());
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match command {
            Command::Status => {}
            Command::Snapshot { cow } => {
                self.record_legs()?;
                self.take_snapshot(cow)?;
            }
            Command::Merge => {
                self.record_legs()?;
                let cow = self.device.merge().map_err(|error| self.explain_merge(error))?;
                self.forget(&cow);
                info!(cow = %cow.display(), "snapshot merged; its COW store is removed");
            }
            Command::Drop => {
                self.record_legs()?;
                let cow = self.device.drop_changes().map_err(explain_drop)?;
                self.forget(&cow);
                info!(cow = %cow.display(), "changes since the snapshot dropped, with their store");
            }
            Command::Resync => self.resync()?,
            Command::Replace { leg, path } => self.replace(leg, path)?,
            Command::ClearFailure => self.clear_failures()?,
            Command::Reload => bail!("there is no configuration file to be read"),
        }
        Ok(())
    }

    fn take_snapshot(&self, cow: &Path) -> anyhow::Result<()> {
        // Before any file is opened, for which there may be no right either.
        if self.device.served_file().is_none() {
            return Err(LayerError::Direct.into());
        }
        let origins = self.origins()?;
        let ample = Snapshot::ample_cow(self.size, overlay_chunk())?;
        // Durable before a mark names it: whoever finds the mark after a power cut finds it, too.
        let opened = match FileStore::open_new(cow, ample) {
            // As an attempt leaves it in whose midst the power was cut.
            Err(InvalidStore::NotNew(bytes)) if bytes == ample.bytes() => {
                FileStore::open(cow, Access::ReadWrite).map(|store| (store, Sizing::Kept))
            }
            opened => opened,
        };
        let (store, sizing) = opened.map_err(|error| self.explain(error))?;
        let taken = self.make_cow(store).and_then(|id| self.take_marked(&origins, id, cow));
        if taken.is_err() {
            unmark(&origins);
            // The next attempt finds the file as this one did.
            let _ = match sizing {
                Sizing::Created => fs::remove_file(cow),
                Sizing::Grown(_) => File::create(cow).map(drop),
                Sizing::Kept => Ok(()),
            };
        }
        taken
    }

    /// Makes a blank file a COW store, which the layer opens then. Returns its id.
    fn make_cow(&self, store: FileStore) -> anyhow::Result<Id> {
        let store = PfnSpace::new().add(Box::new(store))?;
        Ok(Snapshot::make_cow(&*store, overlay_chunk(), self.size)?)
    }

    /// Adds to the refusal of a merge what the operator can do about it.
    fn explain_merge(&self, error: LayerError) -> anyhow::Error {
        let advice = match error {
            LayerError::NoLayer if !self.snapshots.is_empty() => {
                "; an overlay is merged into its file while no daemon serves them: \
                 vhost-pmemd merge --file FILE --overlay OVERLAY"
            }
            _ => "",
        };
        anyhow!("{:#}{advice}", anyhow!(error))
    }

    /// Adds to a refusal what the operator can do about it.
    fn explain(&self, error: InvalidStore) -> anyhow::Error {
        self.advise(anyhow!(LayerError::Store(error)))
    }

    /// The same, where a file could not be opened.
    fn advise(&self, error: anyhow::Error) -> anyhow::Error {
        let kind = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<io::Error>().map(io::Error::kind)
        };
        let is_refused =
            error.chain().any(|one| kind(one) == Some(io::ErrorKind::PermissionDenied));
        let advice = self.sandbox.advice();
        if is_refused && !advice.is_empty() { anyhow!("{error:#}; {advice}") } else { error }
    }

    /// Has the mirrors write down which legs are there, before marks change. In the window's thread,
    /// which has the fds of legs that were replaced.
    fn record_legs(&self) -> anyhow::Result<()> {
        let mirrors = self.mirrors();
        if mirrors.is_empty() {
            return Ok(());
        }
        let record = move || mirrors.iter().try_for_each(|open| open.mirror.record_legs());
        Ok(self.device.run_in_window(record)??)
    }

    /// Takes a snapshot, with all marked that must not be written from then on.
    fn take_marked(&self, origins: &[OwnedFd], id: Id, cow: &Path) -> anyhow::Result<()> {
        let mirrors = self.mirrors();
        let _marks: Vec<_> = mirrors.iter().map(|open| open.mirror.hold_marks()).collect();
        // Before anything is kept apart from them.
        origins.iter().try_for_each(|origin| mark(origin, id, cow))?;
        self.device.take_snapshot(cow)?;
        info!(cow = %cow.display(), "snapshot taken; what is written from now on is kept in its COW store");
        Ok(())
    }

    /// A snapshot was merged or dropped: nothing is kept in `cow` any more.
    fn forget(&self, cow: &Path) {
        let mirrors = self.mirrors();
        let marks: Vec<_> = mirrors.iter().map(|open| open.mirror.hold_marks()).collect();
        match self.origins() {
            Ok(origins) => unmark(&origins),
            Err(error) => warn!(%error, "an origin is still marked as one"),
        }
        drop(marks);
        if let Err(error) = fs::remove_file(cow) {
            warn!(cow = %cow.display(), %error, "cannot remove a COW store that is of no use any more");
        }
    }

    /// The files that are written now, and that a further snapshot would leave as they are.
    fn origins(&self) -> anyhow::Result<Vec<OwnedFd>> {
        if let Some(layer) = self.device.layers().pop() {
            return Ok(vec![File::open(layer.cow)?.into()]);
        }
        let stores = self.stores.iter().map(|pagemap| pagemap.store());
        let written = stores.filter(|store| store.access() == Access::ReadWrite);
        let written = written.map(|store| store.fd().try_clone_to_owned());
        // Their fds are in the window's threads only.
        let since = self.stores_since();
        let since = since.iter().map(|pagemap| Ok(File::open(pagemap.store().name())?.into()));
        Ok(written.chain(since).collect::<io::Result<_>>()?)
    }

    /// The stores that have become mirrors' legs since the start.
    fn stores_since(&self) -> Vec<Arc<Pagemap>> {
        let mirrors = self.mirrors();
        let legs = mirrors.iter().flat_map(|open| open.mirror.leg_stores()).flatten();
        let is_new = |leg: &Arc<Pagemap>| !self.stores.iter().any(|one| Arc::ptr_eq(one, leg));
        legs.filter(is_new).collect()
    }

    fn mirrors(&self) -> Vec<OpenMirror> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn resync(&self) -> anyhow::Result<()> {
        let mirrors = self.mirrors();
        if mirrors.is_empty() {
            bail!("there is no mirror");
        }
        let done = self.device.run_in_window(move || resync::bring_up(&mirrors))?;
        done.map_err(|error| self.advise(error))
    }

    fn replace(&self, leg: &str, path: &Path) -> anyhow::Result<()> {
        let mirrors = self.mirrors();
        let places = resync::find(&mirrors, leg)?;
        let legs = places.iter().map(|(at, leg)| (mirrors[*at].clone(), *leg));
        let (legs, with) = (legs.collect::<Vec<_>>(), path.to_owned());
        let done = self.device.run_in_window(move || resync::replace(&legs, &with))?;
        done.map_err(|error| self.advise(error))?;
        let mut mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, leg) in places {
            mirrors[at].legs[leg].device = path.display().to_string();
            mirrors[at].legs[leg].is_file = true;
        }
        warn!(leg = %path.display(), "a leg is replaced: name it in the table from now on");
        Ok(())
    }

    /// Takes failures back, those of the window last: its sync ends in theirs.
    fn clear_failures(&self) -> anyhow::Result<()> {
        let clear = |pagemap: &Arc<Pagemap>| {
            if pagemap.clear_failure()? {
                warn!(store = pagemap.store().name(), "failure cleared; flushes may succeed again");
            }
            Ok::<_, PersistError>(())
        };
        self.stores.iter().try_for_each(clear)?;
        self.snapshots.iter().try_for_each(|(_, one)| one.clear_failure().map(drop))?;
        let since = self.stores_since();
        if !since.is_empty() {
            let cleared = move || since.iter().try_for_each(clear);
            self.device.run_in_window(cleared)??;
        }
        Ok(self.device.clear_failures()?)
    }

    fn failures(&self) -> Vec<protocol::Failure> {
        let since = self.stores_since();
        let stores = self.stores.iter().chain(&since).filter_map(|pagemap| Failure::of(pagemap));
        let all = stores.chain(self.device.failures()).map(Into::into);
        let mirrors = self.mirrors();
        let logs = mirrors.iter().filter_map(|open| {
            let reason = in_a_line(&open.mirror.log_failure()?);
            let reason = format!("{reason}; all writes fail until the daemon is started again");
            let store = format!("the log of the mirror at {}", open.position);
            Some(protocol::Failure { store, reason, since_ms: None })
        });
        all.chain(logs).collect()
    }

    fn syncing(&self) -> Vec<protocol::Syncing> {
        let stores = self.stores.iter().filter_map(|pagemap| Syncing::of(pagemap));
        let one = |Syncing { store, since }| protocol::Syncing { store, since_ms: unix_ms(since) };
        stores.chain(self.device.syncing()).map(one).collect()
    }

    fn status(&self) -> Status {
        let cow = |name: String, usage: SnapshotUsage| {
            let SnapshotUsage { chunk, used, capacity } = usage;
            Cow { name, chunk: chunk.bytes(), used, capacity }
        };
        let layers = self.device.layers().into_iter();
        let counts = self.device.counts();
        let until = Instant::now() + CACHES_PATIENCE;
        let stores = self.stores.iter().map(|pagemap| &**pagemap);
        let mirror = |open: &OpenMirror| {
            let MirrorStatus { legs, stale, regions } = open.mirror.status();
            let legs = legs.iter().map(LegState::to_string).collect();
            let leg_names = open.legs.iter().map(|leg| leg.device.clone()).collect();
            protocol::Mirror { name: open.position.to_string(), legs, leg_names, stale, regions }
        };
        Status {
            size: self.size.bytes(),
            window: match (self.device.gpa(), self.device.window()) {
                (Some(start), _) => format!("gpa={start:#x}"),
                (None, Window::Direct { .. }) => "direct".to_owned(),
                (None, Window::Served { .. }) => "served".to_owned(),
            },
            frontend: self.device.is_connected(),
            mapped: counts.mapped_pages * PAGE_SIZE,
            pages: Some(self.device.pages().into()),
            waiting: self.device.waiting().map(Into::into),
            placement: self.device.placement().map(Into::into),
            layers: layers.map(|layer| cow(layer.cow.display().to_string(), layer.usage)).collect(),
            snapshots: self
                .snapshots
                .iter()
                .map(|(name, one)| cow(name.clone(), one.usage()))
                .collect(),
            mirrors: self.mirrors().iter().map(mirror).collect(),
            failures: self.failures(),
            syncing: self.syncing(),
            removed: removed(&self.stores),
            caches: stores
                .chain(self.device.served_file())
                .filter_map(|pagemap| Cache::of(pagemap, until))
                .collect(),
            counters: Some(counts.into()),
            process: self.process.as_ref().and_then(OwnProcess::read),
        }
    }
}

/// Adds to a refusal to drop changes what the operator can do about it.
fn explain_drop(error: LayerError) -> anyhow::Error {
    let is_denied = matches!(&error, LayerError::Reopen(source)
        if source.kind() == io::ErrorKind::PermissionDenied);
    let advice = match &error {
        _ if is_denied => "; let the user of --user read and write the published file",
        LayerError::HasMerged => "; merge the others",
        _ => "",
    };
    anyhow!("{:#}{advice}", anyhow!(error))
}

impl From<Placement> for protocol::Placement {
    fn from(placement: Placement) -> Self {
        match placement {
            Placement::Unknown => Self::Unknown,
            Placement::Found => Self::Found,
            Placement::Misplaced(trouble) => {
                Self::Misplaced { reason: in_a_line(&*trouble.reason) }
            }
        }
    }
}

impl From<Failure> for protocol::Failure {
    fn from(Failure { store, reason, since }: Failure) -> Self {
        Self { store, reason, since_ms: Some(unix_ms(since)) }
    }
}

impl From<Pages> for protocol::Pages {
    fn from(pages: Pages) -> Self {
        match pages {
            Pages::Idle => Self::Idle,
            Pages::Mapped => Self::Mapped,
            Pages::Unmapped(Trouble { reason, since }) => {
                Self::Unmapped { reason: in_a_line(&*reason), since_ms: unix_ms(since) }
            }
        }
    }
}

impl From<Waiting> for protocol::Waiting {
    fn from(Waiting { requests, obstacle, since }: Waiting) -> Self {
        Self {
            requests: requests.into(),
            cause: match obstacle {
                Unanswerable::Unshared => "unshared",
                Unanswerable::NoRoom => "no_room",
                Unanswerable::Queue => "queue",
            }
            .to_owned(),
            reason: format!("{obstacle}; {}", obstacle.hint()),
            since_ms: unix_ms(since),
        }
    }
}

/// The names of stores whose files were removed.
fn removed(stores: &[Arc<Pagemap>]) -> Vec<String> {
    let stores = stores.iter().map(|pagemap| pagemap.store());
    stores.filter(|store| store.is_removed()).map(|store| store.name().to_owned()).collect()
}

/// An error with what caused it.
fn in_a_line(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = Chain::new(error).map(ToString::to_string).collect();
    causes.join(": ")
}

/// In milliseconds of Unix time.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Marks an origin, if it can be.
fn mark(origin: &impl AsFd, id: Id, cow: &Path) -> anyhow::Result<()> {
    match mark_origin(origin, id, cow) {
        Err(error) if cannot_be_marked(&error) => {
            warn!(
                cow = %cow.display(),
                "an origin can't be marked as one; until the snapshot is merged or dropped, don't \
                 serve it without the COW store"
            );
            Ok(())
        }
        marked => marked.context("cannot mark an origin as one"),
    }
}

fn unmark(origins: &[impl AsFd]) {
    for origin in origins {
        if let Err(error) = unmark_origin(origin) {
            warn!(%error, "an origin is still marked as one");
        }
    }
}
