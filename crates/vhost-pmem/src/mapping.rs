// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mapping a region into a frontend: when, for how long, and taking it back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pfn_blk::{Lease, NotDirect, Pgoff, Region, StoreDisabled};
use thiserror::Error;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::channel::Channel;
use crate::spec::VIRTIO_PMEM_SHMEM_REGION_ID;
use crate::window::extents;

/// Why the pages are not mapped.
#[derive(Debug, Error)]
pub(crate) enum MapError {
    /// The frontend would not.
    #[error("the frontend refused to map {bytes} bytes of {store} at byte {offset} of the device")]
    Refused {
        offset: u64,
        bytes: u64,
        store: String,
        #[source]
        source: io::Error,
    },
    /// They have become unusable.
    #[error(transparent)]
    NotDirect(#[from] NotDirect),
    /// Their store is gone.
    #[error(transparent)]
    Disabled(#[from] StoreDisabled),
    /// They were mapped.
    #[error("a store was disabled, and its pages were taken from the guest")]
    TakenBack,
}

/// How the mapping of an activation came to be.
pub(crate) enum Mapping {
    /// It was there already.
    Kept,
    /// It was made now.
    Made(Duration),
    /// It could not be made, or was taken back. Until the device is activated again the guest's
    /// stores may go nowhere, and no flush may succeed.
    Refused(Option<MapError>),
}

/// Whether a frontend has our pages mapped.
///
/// A frontend drops its mappings when the device is reset, so they last for an *activation*: from
/// the first kick or vring enable to the vring's stop. The mapping is made and taken back by the
/// queue's thread alone, as it waits for the frontend, which may wait for us meanwhile; a stop only
/// moves the counter, and waits for nothing.
pub(crate) struct MapState {
    activation: AtomicU64,
    /// The last activation a mapping was tried in, and how that went. Held while the frontend
    /// maps: no vhost-user request may take it.
    tried: Mutex<Option<Tried>>,
    revoked: Arc<Revoked>,
}

/// Says that a store whose pages are mapped was disabled.
struct Revoked {
    /// For a queue's thread that sleeps.
    event: EventFd,
    /// For one that a guest keeps busy.
    flag: AtomicBool,
}

struct Tried {
    /// Which mapped the pages.
    frontend: Channel,
    activation: u64,
    mapped: bool,
    /// Held for as long as the frontend may have the pages mapped: until they are taken back, to
    /// the next activation, as some keep mappings over a reset, or to the end of the connection.
    leases: Vec<(Pgoff, Lease)>,
}

impl MapState {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let revoked = Arc::new(Revoked { event, flag: AtomicBool::new(false) });
        Ok(Self { activation: AtomicU64::new(0), tried: Mutex::new(None), revoked })
    }

    /// Readable when [`take_back`](Self::take_back) is to be called.
    pub(crate) fn revoked_event(&self) -> RawFd {
        self.revoked.event.as_raw_fd()
    }

    /// Whether [`take_back`](Self::take_back) is to be called.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.flag.load(Ordering::SeqCst)
    }

    /// Which activation this is.
    pub(crate) fn activation(&self) -> u64 {
        self.activation.load(Ordering::SeqCst)
    }

    /// Forgets the mapping: the vring stopped.
    pub(crate) fn forget(&self) {
        self.activation.fetch_add(1, Ordering::SeqCst);
    }

    /// Has the region mapped, unless this was tried in `activation` already: the one that it was
    /// before the vring was found running. One that ends meanwhile has what is mapped now forgotten.
    /// The frontend is given what `lend` has in place of a store's own file.
    pub(crate) fn ensure(
        &self,
        activation: u64,
        region: &Region,
        lend: impl FnOnce() -> Option<Arc<File>>,
        frontend: &Channel,
    ) -> Mapping {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        match &*tried {
            Some(last) if last.activation == activation => {
                return if last.mapped { Mapping::Kept } else { Mapping::Refused(None) };
            }
            _ => {}
        }
        let began = Instant::now();
        let may_linger = tried.is_some();
        let lent = lend();
        let mut leases = Vec::new();
        let result = extents(region).try_for_each(|(start, extent)| {
            let revoked = Arc::clone(&self.revoked);
            let lease = extent?.lease_revocable(move || {
                revoked.flag.store(true, Ordering::SeqCst);
                // It can only fail by being full of such writes already.
                let _ = revoked.event.write(1);
            })?;
            let file = lent.as_ref().map_or_else(|| lease.fd(), AsFd::as_fd);
            let mapped = map(frontend, (start, &lease), file, may_linger);
            leases.push((start, lease));
            mapped
        });
        let frontend = frontend.clone();
        *tried = Some(Tried { frontend, activation, mapped: result.is_ok(), leases });
        match result {
            Ok(()) => Mapping::Made(began.elapsed()),
            Err(error) => Mapping::Refused(Some(error)),
        }
    }

    /// Takes the pages of disabled stores back from the frontend, and gives their leases up. The
    /// names of the stores of which the frontend would not let go.
    pub(crate) fn take_back(&self) -> Vec<String> {
        // Whatever it held: all that is to be done is done now.
        let _ = self.revoked.event.read();
        self.revoked.flag.store(false, Ordering::SeqCst);
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tried) = &mut *tried else { return Vec::new() };
        let is_over = tried.activation != self.activation();
        let mut kept = Vec::new();
        for (start, lease) in std::mem::take(&mut tried.leases) {
            if !lease.is_revoked() {
                tried.leases.push((start, lease));
                continue;
            }
            tried.mapped = false;
            // After a reset most frontends have nothing to unmap any more, and say so.
            if tried.frontend.unmap(request(start, &lease)).is_err() && !is_over {
                kept.push(lease.pagemap().store().name().to_owned());
                tried.leases.push((start, lease));
            }
        }
        kept
    }
}

fn request(start: Pgoff, lease: &Lease) -> VhostUserMMap {
    VhostUserMMap {
        shmid: VIRTIO_PMEM_SHMEM_REGION_ID,
        padding: [0; 7],
        fd_offset: lease.pgoff().bytes(),
        shm_offset: start.bytes(),
        len: lease.nr_pages().bytes(),
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    }
}

/// Maps leased pages of `file` at `start`. Crosvm keeps mappings over a reset and refuses to map over them, so
/// one of ours that `may_linger` there is taken away and made again.
fn map(
    frontend: &Channel,
    (start, lease): (Pgoff, &Lease),
    file: BorrowedFd<'_>,
    may_linger: bool,
) -> Result<(), MapError> {
    let request = request(start, lease);
    let mut result = frontend.map(request, file);
    if result.is_err() && may_linger && frontend.unmap(request).is_ok() {
        result = frontend.map(request, file);
    }
    result.map_err(|source| MapError::Refused {
        offset: start.bytes(),
        bytes: lease.nr_pages().bytes(),
        store: lease.pagemap().store().name().to_owned(),
        source,
    })
}
