// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store for the unit tests, whose syncs can be counted and made to fail.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::page::{NrPages, Pgoff};
use crate::store::{Access, MemoryStore, Store};

#[derive(Debug, Default)]
pub(crate) struct Control {
    fail_next: AtomicBool,
    syncs: AtomicU64,
}

impl Control {
    /// Has the next read, write or sync fail.
    pub(crate) fn fail_next(&self) {
        self.fail_next.store(true, Ordering::SeqCst);
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    fn check(&self) -> io::Result<()> {
        match self.fail_next.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::other("injected")),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct FaultyStore {
    store: MemoryStore,
    control: Arc<Control>,
}

impl FaultyStore {
    pub(crate) fn new(name: &str, nr_pages: u64) -> (Self, Arc<Control>) {
        let store = MemoryStore::new(name, NrPages::try_new(nr_pages).unwrap()).unwrap();
        let control = Arc::new(Control::default());
        (Self { store, control: Arc::clone(&control) }, control)
    }
}

impl Store for FaultyStore {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn nr_pages(&self) -> NrPages {
        self.store.nr_pages()
    }

    fn access(&self) -> Access {
        self.store.access()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.store.fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        self.control.check()?;
        self.store.read(at, buffer)
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        self.control.check()?;
        self.store.write(at, buffer)
    }

    fn persist(&self) -> io::Result<()> {
        self.control.syncs.fetch_add(1, Ordering::SeqCst);
        self.control.check()
    }
}
