// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A window in guest physical memory: the VMM maps the files itself, as memory of its guest, and the
//! configuration space says where. For frontends that can't map what we ask them to, and guests that
//! don't know of shared memory regions.
//!
//! Nobody but the VMM knows what it has mapped. What it tells us in its memory table is checked:
//! until the window is there, whole, and made of our own files, no flush succeeds.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pfn_blk::{NotDirect, NrPages, Region};
use rustix::fs::{FileType, fstat, major, minor};
use thiserror::Error;
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::health::Trouble;
use crate::window::{InvalidWindow, extents};

/// What Linux takes of a window's begin and end: a subsection, `SUBSECTION_SIZE` of its
/// `include/linux/mmzone.h`.
const ALIGNMENT: u64 = 2 << 20;

/// The most pieces of a window that a VMM can tell of. The vhost-user library takes no memory table
/// with more entries, and one at least is the guest's RAM.
pub(crate) const EXTENTS_MAX: usize = MAX_ATTACHED_FD_ENTRIES - 1;

/// Checks that a guest can have `size` at `start`.
pub(crate) fn check_place(start: u64, size: NrPages) -> Result<(), InvalidWindow> {
    let bytes = size.bytes();
    if start % ALIGNMENT != 0 || bytes % ALIGNMENT != 0 {
        return Err(InvalidWindow::MisalignedGpa { start, bytes });
    }
    start.checked_add(bytes).map(drop).ok_or(InvalidWindow::GpaTooHigh { start, bytes })
}

/// A file, as far as the kernel tells files apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    Inode { device: u64, number: u64 },
    BlockDevice { device: u64 },
}

impl Identity {
    fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Self::BlockDevice { device: stat.st_rdev },
            _ => Self::Inode { device: stat.st_dev, number: stat.st_ino },
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Inode { device, number } => {
                write!(f, "inode {number} of device {}:{}", major(device), minor(device))
            }
            Self::BlockDevice { device } => {
                write!(f, "block device {}:{}", major(device), minor(device))
            }
        }
    }
}

/// Why the window isn't where the guest looks for it.
#[derive(Debug, Error)]
pub(crate) enum Misplaced {
    #[error(
        "the guest has no memory at {at:#x}, where {store} is to be; give the VMM a memory region \
         there that maps this file, shared"
    )]
    Missing { at: u64, store: String },
    #[error(
        "the guest's memory at {at:#x} is {found}, and not {store}, which is {expected}; have the \
         VMM map this file there, or say with --window gpa=ADDR where it maps it"
    )]
    OtherFile { at: u64, store: String, found: Identity, expected: Identity },
    #[error(
        "the guest's memory at {at:#x} is {store} from byte {found} on, and not from {expected}; \
         have the VMM map all of the file from its beginning on, or say with --window gpa=ADDR where \
         that is"
    )]
    OtherOffset { at: u64, store: String, found: u64, expected: u64 },
    #[error("the guest's memory can't be compared with our files")]
    Unknown(#[from] io::Error),
    #[error(transparent)]
    NotDirect(#[from] NotDirect),
}

/// Whether all of `region` lies in `memory`, from `start` on.
fn find(region: &Region, start: u64, memory: &GuestMemoryMmap) -> Result<(), Misplaced> {
    for (offset, extent) in extents(region) {
        let extent = extent?;
        let store = extent.pagemap().store();
        let name = || store.name().to_owned();
        let expected = Identity::of(store.fd())?;
        let (first, pages) = (start + offset.bytes(), extent.pages());
        let (file_start, end) = (pages.start().bytes(), first + pages.nr_pages().bytes());
        let mut at = first;
        while at < end {
            let found = memory.find_region(GuestAddress(at));
            // Over vhost-user each has a file.
            let Some((found, file)) = found.and_then(|found| Some((found, found.file_offset()?)))
            else {
                return Err(Misplaced::Missing { at, store: name() });
            };
            let identity = Identity::of(file.file())?;
            if identity != expected {
                return Err(Misplaced::OtherFile { at, store: name(), found: identity, expected });
            }
            let within = at - found.start_addr().raw_value();
            let (found_at, expected_at) = (file.start() + within, file_start + (at - first));
            if found_at != expected_at {
                let (found, expected) = (found_at, expected_at);
                return Err(Misplaced::OtherOffset { at, store: name(), found, expected });
            }
            at = end_of(found);
        }
    }
    Ok(())
}

fn end_of(region: &GuestRegionMmap) -> u64 {
    region.start_addr().raw_value().saturating_add(region.len())
}

/// Whether a window that a VMM maps by itself is where its guest looks for it.
#[derive(Debug, Clone)]
pub enum Placement {
    /// Nobody knows yet: no frontend has told of its guest's memory.
    Unknown,
    /// It is there, whole.
    Found,
    /// It is not, and every flush fails.
    Misplaced(Trouble),
}

/// The window of a connection's guest.
pub(crate) struct GpaWindow {
    start: u64,
    state: Mutex<State>,
}

struct State {
    placement: Placement,
    /// Whether it was logged.
    is_told: bool,
}

impl GpaWindow {
    /// Of a frontend that has told of no memory yet.
    pub(crate) fn new(start: u64) -> Self {
        Self { start, state: Mutex::new(State { placement: Placement::Unknown, is_told: true }) }
    }

    /// Where it is to be.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The frontend has told of its memory.
    pub(crate) fn update(&self, region: &Region, memory: &GuestMemoryMmap) {
        let found = find(region, self.start, memory);
        let mut state = self.state();
        let placement = match (found, &state.placement) {
            (Ok(()), _) => Placement::Found,
            (Err(misplaced), Placement::Misplaced(before)) => {
                Placement::Misplaced(Trouble::new(Arc::new(misplaced), Some(before)))
            }
            (Err(misplaced), _) => Placement::Misplaced(Trouble::new(Arc::new(misplaced), None)),
        };
        // A table that has changed elsewhere is no news.
        let is_same = match (&state.placement, &placement) {
            (Placement::Found, Placement::Found) => true,
            (Placement::Misplaced(before), Placement::Misplaced(now)) => before.since == now.since,
            _ => false,
        };
        let is_told = state.is_told && is_same;
        *state = State { placement, is_told };
    }

    /// What is known of it.
    pub(crate) fn placement(&self) -> Placement {
        self.state().placement.clone()
    }

    /// Whether it is there, and what is to be logged of it, once.
    pub(crate) fn look(&self) -> (bool, Option<Placement>) {
        let mut state = self.state();
        let is_told = std::mem::replace(&mut state.is_told, true);
        let is_there = matches!(state.placement, Placement::Found);
        (is_there, (!is_told).then(|| state.placement.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
