// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Anonymous memory as a store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rustix::fs::{MemfdFlags, SealFlags};

use super::{Access, Store};
use crate::lock::lock;
use crate::page::{NrPages, Pgoff};

/// A memfd: pages that live as long as the process and those that map them, and can't shrink.
#[derive(Debug)]
pub struct MemoryStore {
    name: String,
    file: File,
    nr_pages: NrPages,
    attributes: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl MemoryStore {
    /// As many pages of zeroes; they take memory once they are written.
    pub fn new(name: &str, nr_pages: NrPages) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(name, flags)?);
        file.set_len(nr_pages.bytes())?;
        // Nobody who maps it can be made to fault.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(Self { name: name.to_owned(), file, nr_pages, attributes: Mutex::default() })
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

    fn is_persistent(&self) -> bool {
        false
    }

    fn is_removed(&self) -> bool {
        // It never had a name.
        false
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, at.bytes())
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buffer, at.bytes())
    }

    fn persist(&self) -> io::Result<()> {
        // There is nothing that it could lose and the process keep.
        Ok(())
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(lock(&self.attributes).get(name).cloned())
    }

    fn set_attribute(&self, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        let mut attributes = lock(&self.attributes);
        match value {
            Some(value) => attributes.insert(name.to_owned(), value.to_owned()),
            None => attributes.remove(name),
        };
        Ok(())
    }

    fn attributes(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.attributes).keys().cloned().collect())
    }

    fn identity(&self) -> io::Result<u64> {
        Ok(0)
    }
}
