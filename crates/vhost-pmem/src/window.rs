// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The direct window: the frontend maps the stores' own pages, and the guest loads and stores
//! there without us. Which regions can be shown that way.

use pfn_blk::{Access, Extent, NotDirect, NrPages, Pgoff, PgoffRange, Region};
use thiserror::Error;

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
    if count > EXTENTS_MAX {
        return Err(InvalidWindow::Scattered);
    }
    Ok(count)
}

pub(crate) fn extents(
    region: &Region,
) -> impl Iterator<Item = (Pgoff, Result<Extent<'_>, NotDirect>)> {
    region.extents(region.pages()).expect("a region has its own pages")
}
