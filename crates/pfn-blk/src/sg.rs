// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Scatterlists, and mapping them for the CPU.

use std::fs::File;
use std::io;

use thiserror::Error;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{FileOffset, MmapRegion};

use crate::extent::NotDirect;
use crate::lease::{Lease, StoreDisabled};
use crate::page::{NrPages, PgoffRange};
use crate::region::OutOfRange;
use crate::store::Access;

/// Why pages can't be accessed directly.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The region doesn't have them.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// Some of them can't be accessed directly.
    #[error(transparent)]
    NotDirect(#[from] NotDirect),
    /// Their store is gone.
    #[error(transparent)]
    Disabled(#[from] StoreDisabled),
}

/// Why pages could not be mapped, or not be accessed there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KmapError {
    /// They could not be pinned.
    #[error(transparent)]
    Pin(#[from] AccessError),
    /// The system refused.
    #[error("cannot map {store}")]
    Map {
        /// The store's name.
        store: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An access past the end of what is mapped.
    #[error("{len} bytes at {offset} reach past the end at {size}")]
    OutOfBounds {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// How many are mapped.
        size: u64,
    },
    /// A store to pages that are read-only.
    #[error("{store} is read-only")]
    ReadOnly {
        /// The store's name.
        store: String,
    },
}

/// Pages pinned for as long as this lives, in runs: for I/O that takes long, and for whoever wants
/// fds and offsets. Made by [`Region::pin`](crate::Region::pin).
///
/// The leases go when it is dropped; until then no store beneath it can be disabled to the end.
#[derive(Debug)]
pub struct SgList {
    runs: Vec<Lease>,
    pages: PgoffRange,
}

impl SgList {
    pub(crate) fn new(pages: PgoffRange, runs: Vec<Lease>) -> Self {
        Self { runs, pages }
    }

    /// The region's pages.
    pub fn pages(&self) -> PgoffRange {
        self.pages
    }

    /// The runs they lie in, in order. Each has its fd, offset and pfns.
    pub fn runs(&self) -> &[Lease] {
        &self.runs
    }

    /// Maps the pages for the CPU, and keeps them pinned.
    pub fn kmap(self) -> Result<Kmap, KmapError> {
        let parts = self.runs.into_iter().map(KmapPart::try_new).collect::<Result<_, _>>()?;
        Ok(Kmap { parts, nr_pages: self.pages.nr_pages() })
    }
}

/// Pages mapped for the CPU, for a short time.
///
/// Others store to them meanwhile, a guest for one, so there are no references to them, only
/// copies. Where the file is shrunk under it an access ends the process with SIGBUS.
#[derive(Debug)]
pub struct Kmap {
    parts: Vec<KmapPart>,
    nr_pages: NrPages,
}

#[derive(Debug)]
struct KmapPart {
    mapping: MmapRegion,
    /// Goes after the mapping does.
    lease: Lease,
}

impl KmapPart {
    fn try_new(lease: Lease) -> Result<Self, KmapError> {
        let store = || lease.pagemap().store().name().to_owned();
        let refused = |source| KmapError::Map { store: store(), source };
        let file = File::from(lease.fd().try_clone_to_owned().map_err(refused)?);
        let len = usize::try_from(lease.nr_pages().bytes())
            .map_err(|_| refused(io::ErrorKind::OutOfMemory.into()))?;
        let protection = match lease.access() {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let at = FileOffset::new(file, lease.pgoff().bytes());
        let mapping = MmapRegion::build(Some(at), len, protection, libc::MAP_SHARED)
            .map_err(|error| refused(io::Error::other(error)))?;
        Ok(Self { mapping, lease })
    }
}

impl Kmap {
    /// How many pages are mapped.
    pub fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    /// Copies from the pages, from byte `offset` on.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), KmapError> {
        let mut done = 0;
        self.each(offset, bytes.len(), |_, slice| {
            done += slice.copy_to(&mut bytes[done..done + slice.len()]);
            Ok(())
        })
    }

    /// Copies to the pages, from byte `offset` on. Durable only after a persist.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), KmapError> {
        let mut done = 0;
        self.each(offset, bytes.len(), |lease, slice| {
            if lease.access() == Access::ReadOnly {
                let store = lease.pagemap().store().name().to_owned();
                return Err(KmapError::ReadOnly { store });
            }
            slice.copy_from(&bytes[done..done + slice.len()]);
            done += slice.len();
            Ok(())
        })
    }

    /// The mappings, in order, for whoever builds iovecs of them.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.parts.iter().map(|part| slice(&part.mapping))
    }

    fn each(
        &self,
        offset: u64,
        len: usize,
        mut visit: impl FnMut(&Lease, VolatileSlice<'_>) -> Result<(), KmapError>,
    ) -> Result<(), KmapError> {
        let size = self.nr_pages.bytes();
        let out_of_bounds = KmapError::OutOfBounds { offset, len, size };
        let Ok(mut at) = usize::try_from(offset) else { return Err(out_of_bounds) };
        if u64::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len))
            .is_none_or(|end| end > size)
        {
            return Err(out_of_bounds);
        }
        let mut left = len;
        for part in &self.parts {
            let have = part.mapping.size();
            if at < have && left > 0 {
                let now = left.min(have - at);
                let whole = slice(&part.mapping);
                visit(&part.lease, whole.subslice(at, now).expect("within the mapping"))?;
                left -= now;
            }
            at = at.saturating_sub(have);
        }
        Ok(())
    }
}

fn slice(mapping: &MmapRegion) -> VolatileSlice<'_> {
    use vm_memory::VolatileMemory;
    mapping.as_volatile_slice()
}
