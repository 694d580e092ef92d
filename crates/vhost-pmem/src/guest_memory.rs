// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory, as the frontend last described it.
#![allow(unsafe_code, reason = "what the library has mapped is watched")]

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FsWord, fstatfs};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::sigbus::Watched;

/// Of the kernel's `uapi/linux/magic.h`.
const HUGETLBFS: FsWord = 0x9584_58f6;

/// Memory that a queue may be served from. It isn't the library's, which changes before anybody
/// could watch it.
#[derive(Default)]
pub(crate) struct GuestMemory(Mutex<Arc<Table>>);

impl GuestMemory {
    /// The memory as it is now.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts `memory` in its place.
    pub(crate) fn replace(&self, memory: GuestMemoryMmap) -> io::Result<()> {
        let table = Arc::new(Table::watch(memory)?);
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropped, if nobody uses it, when the lock is free again.
        let _former = std::mem::replace(&mut *current, table);
        drop(current);
        Ok(())
    }
}

/// A memory table, whose files the frontend may shrink.
#[derive(Default)]
pub(crate) struct Table {
    /// Dropped before the memory.
    watched: Vec<Watched>,
    memory: GuestMemoryMmap,
}

impl Table {
    fn watch(memory: GuestMemoryMmap) -> io::Result<Self> {
        let watch = |region: &<GuestMemoryMmap as GuestMemoryBackend>::R| {
            check_huge_pages(region)?;
            let len = usize::try_from(region.len()).map_err(io::Error::other)?;
            let len = len.next_multiple_of(4096);
            // SAFETY: the region is a mapping of the library's of its own, which is as many whole
            // pages as its length needs. It stays until the last clone of `memory` goes, and there is
            // one beside what watches it, which is dropped before it. It is guest memory, which is
            // reached as volatile memory only, and may hold anything at any time.
            unsafe { Watched::new(region.as_ptr(), len) }
        };
        let watched = memory.iter().map(watch).collect::<io::Result<_>>()?;
        Ok(Self { watched, memory })
    }

    /// Whether a part of it was gone when it was used. What is there now are zeroes.
    pub(crate) fn is_broken(&self) -> bool {
        self.watched.iter().any(Watched::is_broken)
    }
}

/// That a region of huge pages is of whole ones. The kernel maps whole ones whatever it was asked for,
/// and neither replaces nor unmaps a part of one, as would be necessary for any other.
fn check_huge_pages(region: &<GuestMemoryMmap as GuestMemoryBackend>::R) -> io::Result<()> {
    let Some(file) = region.file_offset() else { return Ok(()) };
    let filesystem = fstatfs(file.file())?;
    let page = u64::try_from(filesystem.f_bsize).map_err(io::Error::other)?;
    let len = region.len();
    if filesystem.f_type == HUGETLBFS && len % page != 0 {
        let what = format!("guest memory of {len} bytes is not whole huge pages of {page} bytes");
        return Err(io::Error::other(what));
    }
    Ok(())
}

impl Deref for Table {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

    const HUGE: usize = 2 << 20;

    /// A file of huge pages, of which there needn't be any: the tests touch what isn't there.
    fn memory(len: usize) -> Option<(File, GuestMemoryMmap)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let Ok(file) = memfd_create("memory", flags).map(File::from) else {
            eprintln!("skipped: this kernel has no huge pages of 2 MiB");
            return None;
        };
        file.set_len(2 * HUGE as u64).unwrap();
        let at = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = MmapRegion::from_file(at, len).unwrap();
        let region = Arc::new(GuestRegionMmap::new(region, GuestAddress(0)).unwrap());
        Some((file, GuestMemoryMmap::from_arc_regions(vec![region]).unwrap()))
    }

    #[test]
    fn memory_of_whole_huge_pages_that_is_gone_is_broken() {
        let Some((file, memory)) = memory(2 * HUGE) else { return };
        let table = Table::watch(memory).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(table.read_obj::<u32>(GuestAddress(0x1000)).unwrap(), 0);
        assert!(table.is_broken());
    }

    #[test]
    fn memory_with_a_part_of_a_huge_page_is_refused() {
        for len in [0x1000, HUGE + 0x1000] {
            let Some((_, memory)) = memory(len) else { return };
            let error = Table::watch(memory).err().unwrap();
            let expected = format!("of {len} bytes is not whole huge pages of {HUGE} bytes");
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
    }
}
