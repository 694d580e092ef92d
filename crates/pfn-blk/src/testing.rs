// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store for the unit tests, whose syncs can be counted and made to fail.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::page::{NrPages, Pgoff};
use crate::store::{Access, Store};

#[derive(Debug, Default)]
pub(crate) struct Control {
    fail_next: AtomicBool,
    syncs: AtomicU64,
}

impl Control {
    fn check(&self) -> io::Result<()> {
        match self.fail_next.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::other("injected")),
            false => Ok(()),
        }
    }

    /// Has the next read, write or sync fail.
    pub(crate) fn fail_next(&self) {
        self.fail_next.store(true, Ordering::SeqCst);
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(crate) struct MemoryStore {
    name: String,
    file: File,
    nr_pages: NrPages,
    control: Arc<Control>,
}

impl MemoryStore {
    pub(crate) fn new(name: &str, nr_pages: u64) -> (Self, Arc<Control>) {
        let nr_pages = NrPages::try_new(nr_pages).unwrap();
        let memfd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(nr_pages.bytes()).unwrap();
        let control = Arc::new(Control::default());
        (Self { name: name.to_owned(), file, nr_pages, control: Arc::clone(&control) }, control)
    }
}

impl Store for MemoryStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        self.control.check()?;
        self.file.read_exact_at(buffer, at.bytes())
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        self.control.check()?;
        self.file.write_all_at(buffer, at.bytes())
    }

    fn persist(&self) -> io::Result<()> {
        self.control.syncs.fetch_add(1, Ordering::SeqCst);
        self.control.check()
    }
}
