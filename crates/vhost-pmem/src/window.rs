// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows: how a region reaches a guest, and which one it takes.

use pfn_blk::{Access, Extent, NotDirect, NrPages, Pgoff, PgoffRange, Region};
use thiserror::Error;

use crate::gpa;
use crate::served::{Layered, ServeWindowError};

/// More extents than this are not mapped directly: each is a mapping in the frontend and a memory slot of the
/// guest.
pub const EXTENTS_MAX: usize = 64;

/// Which window a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WindowChoice {
    /// Direct where that is possible, else served.
    #[default]
    Auto,
    /// The frontend maps the stores' own pages, and the guest loads and stores there without us.
    Direct,
    /// The frontend maps a file of ours, and what the guest stores comes to us at a flush.
    Served,
    /// The VMM maps the stores' files by itself, as memory of its guest from this address on.
    Gpa(u64),
}

/// How a region is to be shown.
#[derive(Debug)]
pub enum Window {
    /// By mapping the stores' own pages.
    Direct {
        /// In so many mappings.
        mappings: usize,
    },
    /// By mapping a file of ours.
    Served {
        /// Why not directly, if it can't be.
        because: Option<InvalidWindow>,
        /// The size of what is shown: behind the region there are zeroes, up to a power of two.
        size: NrPages,
    },
}

/// A region that can't be shown.
#[derive(Debug, Error)]
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
    /// A piece that can't be mapped by itself.
    #[error(
        "{pages} of {store} can't be mapped: it takes mappings that begin and end at multiples of \
         {alignment}"
    )]
    Misaligned {
        /// The piece, in the store.
        pages: PgoffRange,
        /// The store.
        store: String,
        /// What it takes.
        alignment: NrPages,
    },
    /// A window that can't be served here.
    #[error("the region can't be served")]
    Served(#[from] ServeWindowError),
    /// A part that a VMM can't map by itself.
    #[error("a VMM can't map the region's own files as memory of its guest")]
    NotMappable(#[source] Box<InvalidWindow>),
    /// A place in guest memory that Linux can't use.
    #[error(
        "{bytes} bytes at {start:#x} of guest memory can't be persistent memory: Linux wants both to \
         be multiples of 2 MiB"
    )]
    MisalignedGpa {
        /// The guest physical address.
        start: u64,
        /// The size in bytes.
        bytes: u64,
    },
    /// A place behind the end of all addresses.
    #[error("{bytes} bytes don't fit behind {start:#x} of guest memory")]
    GpaTooHigh {
        /// The guest physical address.
        start: u64,
        /// The size in bytes.
        bytes: u64,
    },
    /// What was written since a snapshot is kept apart.
    #[error("what was written since a snapshot is kept apart, and can't be mapped with the rest")]
    Layers,
    /// Pages in too many pieces.
    #[error("the region lies in more than {max} extents")]
    Scattered {
        /// How many there may be.
        max: usize,
    },
}

/// Checks that a region of this size can be shown directly; for whoever is about to make one.
pub fn check_size(size: NrPages) -> Result<(), InvalidWindow> {
    let bytes = size.bytes();
    if !bytes.is_power_of_two() {
        return Err(InvalidWindow::NotPowerOfTwo { bytes, next: bytes.next_power_of_two() });
    }
    Ok(())
}

/// How `region` is to be shown, as the user asks and as it can be.
pub fn choose(region: &Region, choice: WindowChoice) -> Result<Window, InvalidWindow> {
    let direct = || {
        let mappings = check_extents(region, EXTENTS_MAX)?;
        check_size(region.nr_pages())?;
        Ok(Window::Direct { mappings })
    };
    let served = |because| {
        let pages = region.nr_pages().get().next_power_of_two();
        let size = NrPages::try_new(pages).expect("the most pages there can be are a power of two");
        Ok(Window::Served { because, size })
    };
    match choice {
        WindowChoice::Direct => direct(),
        WindowChoice::Served => served(direct().err()),
        WindowChoice::Auto => match direct() {
            // One whose size is none would be shown with an end that can't be written; growing it is
            // better.
            Err(error) if !matches!(error, InvalidWindow::NotPowerOfTwo { .. }) => {
                served(Some(error))
            }
            decided => decided,
        },
        WindowChoice::Gpa(start) => {
            gpa::check_place(start, region.nr_pages())?;
            let mappings = check_extents(region, gpa::EXTENTS_MAX);
            let mappings = mappings.map_err(|e| InvalidWindow::NotMappable(Box::new(e)))?;
            Ok(Window::Direct { mappings })
        }
    }
}

/// How a region is to be shown with layers over it, if there are.
pub fn choose_layered(
    Layered { region, cows, .. }: &Layered,
    choice: WindowChoice,
) -> Result<Window, InvalidWindow> {
    match (cows.is_empty(), choice) {
        (true, _) => choose(region, choice),
        (false, WindowChoice::Auto | WindowChoice::Served) => choose(region, WindowChoice::Served),
        (false, WindowChoice::Direct | WindowChoice::Gpa(_)) => Err(InvalidWindow::Layers),
    }
}

/// How `region` is shown through a file that others open, which a VMM may have as its guest's memory
/// at `gpa`.
pub(crate) fn choose_published(region: &Region, gpa: Option<u64>) -> Result<Window, InvalidWindow> {
    match (choose(region, WindowChoice::Served)?, gpa) {
        (Window::Served { because, .. }, Some(start)) => {
            let size = region.nr_pages();
            gpa::check_place(start, size)?;
            Ok(Window::Served { because, size })
        }
        (window, _) => Ok(window),
    }
}

/// Checks that a frontend can map all pages of `region` in `max` mappings, and counts those it takes.
fn check_extents(region: &Region, max: usize) -> Result<usize, InvalidWindow> {
    let mut count = 0;
    for (_, extent) in extents(region).take(max + 1) {
        let extent = extent.map_err(InvalidWindow::NotDirect)?;
        let store = extent.pagemap().store();
        if extent.access() == Access::ReadOnly {
            return Err(InvalidWindow::ReadOnly { store: store.name().to_owned() });
        }
        let (pages, alignment) = (extent.pages(), store.alignment());
        if [pages.start().get(), pages.end()].iter().any(|at| at % alignment.get() != 0) {
            let store = store.name().to_owned();
            return Err(InvalidWindow::Misaligned { pages, store, alignment });
        }
        count += 1;
    }
    if count > max {
        return Err(InvalidWindow::Scattered { max });
    }
    Ok(count)
}

pub(crate) fn extents(
    region: &Region,
) -> impl Iterator<Item = (Pgoff, Result<Extent<'_>, NotDirect>)> {
    region.extents(region.pages()).expect("a region has its own pages")
}
