// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that tables are made of, each opened once.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::pagemap::Pagemap;
use crate::space::PfnSpace;
use crate::store::{Access, FileStore, InvalidStore, Store, origin_mark};
use crate::target::Origins;

/// The open stores of a process, each file once, and their pfns.
#[derive(Debug, Default)]
pub struct StoreSet {
    space: PfnSpace,
    /// By device and inode: two names of one file are one store.
    files: HashMap<(u64, u64), Arc<Pagemap>>,
    pub(super) origins: Origins,
    /// Whether files to be written that are marked as origins are opened also.
    takes_marked: bool,
    is_only_looked_at: bool,
}

impl StoreSet {
    /// A set for tables whose snapshots are used over such origins.
    pub fn with_origins(origins: Origins) -> Self {
        Self { origins, ..Self::default() }
    }

    /// The set, with files to be written that are marked as origins opened also: for a caller who
    /// puts their changes over them, as [`marked_stores`](crate::marked_stores) tells.
    #[must_use]
    pub fn taking_marked(self) -> Self {
        Self { takes_marked: true, ..self }
    }

    /// The set, for a caller who writes to nothing: COW stores that are kept over its files stay good.
    #[must_use]
    pub fn only_looked_at(self) -> Self {
        Self { is_only_looked_at: true, ..self }
    }

    /// The pfns of the stores.
    pub fn space(&mut self) -> &mut PfnSpace {
        &mut self.space
    }

    /// The stores, in the order of their pfns.
    pub fn stores(&self) -> impl Iterator<Item = &Arc<Pagemap>> {
        self.space.stores()
    }

    /// The file at `path` as a store, opened if it isn't open yet.
    pub fn open(&mut self, path: &Path, access: Access) -> Result<Arc<Pagemap>, InvalidStore> {
        let known = rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        match known.and_then(|file| self.files.get(&file)) {
            Some(pagemap) if pagemap.store().access() == access => Ok(Arc::clone(pagemap)),
            Some(_) => Err(InvalidStore::BothWays),
            None => {
                let store = self.open_store(path, access)?;
                self.add(store)
            }
        }
    }

    fn open_store(&mut self, path: &Path, access: Access) -> Result<FileStore, InvalidStore> {
        let opened = match access {
            Access::ReadWrite if self.is_only_looked_at => open_unmarked(path),
            access => FileStore::open(path, access),
        };
        match opened {
            Err(InvalidStore::Origin(_)) if self.takes_marked => FileStore::open_origin(path),
            opened => opened,
        }
    }

    /// A file that was opened already.
    pub fn add(&mut self, store: FileStore) -> Result<Arc<Pagemap>, InvalidStore> {
        let stat = rustix::fs::fstat(store.fd())
            .map_err(|errno| InvalidStore::Io { action: "inspect it", source: errno.into() })?;
        let pagemap = self.space.add(Box::new(store)).map_err(InvalidStore::Size)?;
        self.files.insert((stat.st_dev, stat.st_ino), Arc::clone(&pagemap));
        Ok(pagemap)
    }
}

/// A file to be written, with its generation left as it is.
fn open_unmarked(path: &Path) -> Result<FileStore, InvalidStore> {
    let store = FileStore::open_origin(path)?;
    let action = "read its extended attributes";
    match origin_mark(store.fd()).map_err(|source| InvalidStore::Io { action, source })? {
        Some(mark) => Err(InvalidStore::Origin(mark)),
        None => Ok(store),
    }
}
