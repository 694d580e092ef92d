// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store that asks before it does anything: for fault injection, and for watching.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use super::{Access, Store};
use crate::page::{NrPages, Pgoff, PgoffRange};

/// What a [`HookedStore`] is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOperation {
    /// Read these of its pages.
    Read(PgoffRange),
    /// Write these of its pages.
    Write(PgoffRange),
    /// Make everything durable.
    Persist,
    /// Read a note beside its pages.
    Attribute,
    /// Write one.
    SetAttribute,
}

/// A store behind a hook that is called before each operation, and may take its time or fail it.
/// Loads and stores through a mapping don't come this way.
pub struct HookedStore<S, H> {
    store: S,
    hook: H,
}

impl<S, H> HookedStore<S, H>
where
    S: Store,
    H: Fn(StoreOperation) -> io::Result<()> + Send + Sync,
{
    /// `store` behind `hook`.
    pub fn new(store: S, hook: H) -> Self {
        Self { store, hook }
    }
}

fn pages(at: Pgoff, buffer: &[u8]) -> io::Result<PgoffRange> {
    let bytes = u64::try_from(buffer.len()).map_err(io::Error::other)?;
    let nr_pages = NrPages::try_from_bytes(bytes).map_err(io::Error::other)?;
    PgoffRange::try_new(at, nr_pages).map_err(io::Error::other)
}

impl<S, H> Store for HookedStore<S, H>
where
    S: Store,
    H: Fn(StoreOperation) -> io::Result<()> + Send + Sync,
{
    fn name(&self) -> &str {
        self.store.name()
    }

    fn nr_pages(&self) -> NrPages {
        self.store.nr_pages()
    }

    fn access(&self) -> Access {
        self.store.access()
    }

    fn is_persistent(&self) -> bool {
        self.store.is_persistent()
    }

    fn is_removed(&self) -> bool {
        self.store.is_removed()
    }

    fn alignment(&self) -> NrPages {
        self.store.alignment()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.store.fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        (self.hook)(StoreOperation::Read(pages(at, buffer)?))?;
        self.store.read(at, buffer)
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        (self.hook)(StoreOperation::Write(pages(at, buffer)?))?;
        self.store.write(at, buffer)
    }

    fn persist(&self) -> io::Result<()> {
        (self.hook)(StoreOperation::Persist)?;
        self.store.persist()
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        (self.hook)(StoreOperation::Attribute)?;
        self.store.attribute(name)
    }

    fn set_attribute(&self, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        (self.hook)(StoreOperation::SetAttribute)?;
        self.store.set_attribute(name, value)
    }

    fn attributes(&self) -> io::Result<Vec<String>> {
        (self.hook)(StoreOperation::Attribute)?;
        self.store.attributes()
    }

    fn identity(&self) -> io::Result<u64> {
        self.store.identity()
    }
}

impl<S: Store, H> fmt::Debug for HookedStore<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedStore").field("store", &self.store).finish_non_exhaustive()
    }
}
