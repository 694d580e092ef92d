// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The direct window: the frontend maps the stores' own pages, and the guest loads and stores
//! there without us.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pfn_blk::{Access, Extent, Lease, NotDirect, NrPages, Pgoff, Region, StoreDisabled};
use thiserror::Error;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

use crate::spec::VIRTIO_PMEM_SHMEM_REGION_ID;

/// More extents than this are refused: each is a mapping in the frontend and a memory slot of the
/// guest.
pub const EXTENTS_MAX: usize = 64;

/// A region that the direct window can't show.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidWindow {
    /// A size that QEMU can't present: a PCI BAR is a power of two, and QEMU aborts otherwise.
    #[error(
        "the region has {bytes} bytes, which is not a power of two, as a frontend needs; \
         the next one is {next}"
    )]
    NotPowerOfTwo {
        /// The region's size in bytes.
        bytes: u64,
        /// The next power of two.
        next: u64,
    },
    /// Pages that the guest must not write: a frontend would map them writable all the same.
    #[error("{store} is read-only, and a direct window can't keep a guest from writing to it")]
    ReadOnly {
        /// The store.
        store: String,
    },
    /// Pages that nobody can map.
    #[error("a part of the region can't be mapped by a frontend")]
    NotDirect(#[source] NotDirect),
    /// Pages in too many pieces.
    #[error("the region lies in more than {EXTENTS_MAX} extents")]
    Scattered,
}

/// Checks that a region of this size can be shown; for whoever is about to make one.
pub fn check_size(size: NrPages) -> Result<(), InvalidWindow> {
    let bytes = size.bytes();
    if !bytes.is_power_of_two() {
        return Err(InvalidWindow::NotPowerOfTwo { bytes, next: bytes.next_power_of_two() });
    }
    Ok(())
}

/// Checks that `region` can be shown, and counts the mappings that takes.
pub(crate) fn check(region: &Region) -> Result<usize, InvalidWindow> {
    check_size(region.nr_pages())?;
    let mut count = 0;
    for (_, extent) in extents(region).take(EXTENTS_MAX + 1) {
        let extent = extent.map_err(InvalidWindow::NotDirect)?;
        if extent.access() == Access::ReadOnly {
            let store = extent.pagemap().store().name().to_owned();
            return Err(InvalidWindow::ReadOnly { store });
        }
        count += 1;
    }
    if count > EXTENTS_MAX {
        return Err(InvalidWindow::Scattered);
    }
    Ok(count)
}

fn extents(region: &Region) -> impl Iterator<Item = (Pgoff, Result<Extent<'_>, NotDirect>)> {
    region.extents(region.pages()).expect("a region has its own pages")
}

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
}

/// How the mapping of an activation came to be.
pub(crate) enum Mapping {
    /// It was there already.
    Kept,
    /// It was made now.
    Made(Duration),
    /// It could not be made. Until the device is activated again the guest's stores may go
    /// nowhere, and no flush may succeed.
    Refused(Option<MapError>),
}

/// Whether a frontend has our pages mapped.
///
/// A frontend drops its mappings when the device is reset, so they last for an *activation*: from
/// the first kick or vring enable to the vring's stop. The mapping is made by the queue's thread
/// alone, as it waits for the frontend, which may wait for us meanwhile; a stop only moves the
/// counter, and waits for nothing.
pub(crate) struct MapState {
    activation: AtomicU64,
    /// The last activation a mapping was tried in, and how that went. Held while the frontend
    /// maps: no vhost-user request may take it.
    tried: Mutex<Option<Tried>>,
}

struct Tried {
    activation: u64,
    mapped: bool,
    /// Held for as long as the frontend may have the pages mapped: to the next activation, as some
    /// keep mappings over a reset, or to the end of the connection.
    _leases: Vec<Lease>,
}

impl MapState {
    pub(crate) fn new() -> Self {
        Self { activation: AtomicU64::new(0), tried: Mutex::new(None) }
    }

    /// Forgets the mapping: the vring stopped.
    pub(crate) fn forget(&self) {
        self.activation.fetch_add(1, Ordering::SeqCst);
    }

    /// Has the region mapped, unless this was tried in this activation already.
    pub(crate) fn ensure(&self, region: &Region, frontend: &Backend) -> Mapping {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let activation = self.activation.load(Ordering::SeqCst);
        match &*tried {
            Some(last) if last.activation == activation => {
                return if last.mapped { Mapping::Kept } else { Mapping::Refused(None) };
            }
            _ => {}
        }
        let began = Instant::now();
        let may_linger = tried.is_some();
        let mut leases = Vec::new();
        let result = extents(region).try_for_each(|(start, extent)| {
            let lease = extent?.lease()?;
            let mapped = map(frontend, start, &lease, may_linger);
            leases.push(lease);
            mapped
        });
        *tried = Some(Tried { activation, mapped: result.is_ok(), _leases: leases });
        match result {
            Ok(()) => Mapping::Made(began.elapsed()),
            Err(error) => Mapping::Refused(Some(error)),
        }
    }
}

/// Maps leased pages at `start`. Crosvm keeps mappings over a reset and refuses to map over them, so
/// one of ours that `may_linger` there is taken away and made again.
fn map(frontend: &Backend, start: Pgoff, lease: &Lease, may_linger: bool) -> Result<(), MapError> {
    let request = VhostUserMMap {
        shmid: VIRTIO_PMEM_SHMEM_REGION_ID,
        padding: [0; 7],
        fd_offset: lease.pgoff().bytes(),
        shm_offset: start.bytes(),
        len: lease.nr_pages().bytes(),
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    };
    let fd = lease.fd();
    let mut result = frontend.shmem_map(&request, &fd.as_raw_fd());
    if result.is_err() && may_linger && frontend.shmem_unmap(&request).is_ok() {
        result = frontend.shmem_map(&request, &fd.as_raw_fd());
    }
    match result {
        Ok(_) => Ok(()),
        Err(source) => Err(MapError::Refused {
            offset: start.bytes(),
            bytes: lease.nr_pages().bytes(),
            store: lease.pagemap().store().name().to_owned(),
            source,
        }),
    }
}
