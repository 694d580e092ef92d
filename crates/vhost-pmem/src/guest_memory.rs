// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory, as the frontend last described it.
#![allow(unsafe_code, reason = "what the library has mapped is watched")]

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::sigbus::Watched;

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

impl Deref for Table {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}
