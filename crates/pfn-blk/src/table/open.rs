// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a table's lines to a table: opening the stores and putting the targets over them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::{InvalidTable, Line, Position, Table, TargetSpec};
use crate::page::{InvalidPages, PgoffRange};
use crate::pagemap::Pagemap;
use crate::space::PfnSpace;
use crate::store::{Access, FileStore, InvalidStore, Store};
use crate::target::{InvalidLinear, Linear, Target};

/// Lines that make no table.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenTableError {
    /// A line's file can't be a store.
    #[error("{position}: {path}")]
    Store {
        /// The line.
        position: Position,
        /// The file.
        path: String,
        /// Why it can't.
        #[source]
        source: InvalidStore,
    },
    /// A line uses pages that its file doesn't have.
    #[error("{position}: {path}")]
    Linear {
        /// The line.
        position: Position,
        /// The file.
        path: String,
        /// The pages.
        #[source]
        source: InvalidLinear,
    },
    /// The lines don't tile the table.
    #[error("{0}: {1}")]
    Table(Position, InvalidTable),
    /// The pfn space is used up.
    #[error("no pfns left for {0}")]
    Pfns(String, #[source] InvalidPages),
}

/// The open stores of a process, each file once, and their pfns.
#[derive(Debug, Default)]
pub struct StoreSet {
    space: PfnSpace,
    /// By device and inode: two names of one file are one store.
    files: HashMap<(u64, u64), Arc<Pagemap>>,
}

impl StoreSet {
    /// The file at `path` as a store, opened for reading and writing if it isn't open yet.
    pub fn open(&mut self, path: &Path) -> Result<Arc<Pagemap>, InvalidStore> {
        let known = rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if let Some(pagemap) = known.and_then(|file| self.files.get(&file)) {
            return Ok(Arc::clone(pagemap));
        }
        self.add(FileStore::open(path, Access::ReadWrite)?)
    }

    /// A file that was opened already.
    pub fn add(&mut self, store: FileStore) -> Result<Arc<Pagemap>, InvalidStore> {
        let stat = rustix::fs::fstat(store.fd())
            .map_err(|errno| InvalidStore::Io { action: "inspect it", source: errno.into() })?;
        let pagemap = self.space.add(Box::new(store)).map_err(InvalidStore::Size)?;
        self.files.insert((stat.st_dev, stat.st_ino), Arc::clone(&pagemap));
        Ok(pagemap)
    }

    /// Opens what `lines` name and builds their table.
    pub fn open_table(&mut self, lines: &[Line]) -> Result<Table, OpenTableError> {
        let entries = lines
            .iter()
            .map(|line| Ok((line.pages, self.open_target(line)?)))
            .collect::<Result<_, OpenTableError>>()?;
        Table::try_new(entries).map_err(|error| {
            let position = lines
                .get(error.entry())
                .map_or(Position { line: 1, column: 1 }, |line| line.position);
            OpenTableError::Table(position, error)
        })
    }

    fn open_target(&mut self, line: &Line) -> Result<Arc<dyn Target>, OpenTableError> {
        let position = line.position;
        match &line.target {
            TargetSpec::Linear { path, start } => {
                let name = || path.display().to_string();
                let store = self.open(path).map_err(|source| OpenTableError::Store {
                    position,
                    path: name(),
                    source,
                })?;
                let pages = PgoffRange::try_new(*start, line.pages.nr_pages())
                    .map_err(|source| OpenTableError::Pfns(name(), source))?;
                let linear = Linear::try_new(store, pages)
                    .map_err(|source| OpenTableError::Linear { position, path: name(), source })?;
                Ok(Arc::new(linear))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::parse;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(files: &[(&str, usize)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in files {
                std::fs::write(dir.path().join(name), vec![0; *bytes]).unwrap();
            }
            Self(dir)
        }

        fn open(&self, text: &str) -> Result<Table, OpenTableError> {
            let text = text.replace('@', &self.0.path().display().to_string());
            StoreSet::default().open_table(&parse(&text).unwrap())
        }
    }

    #[test]
    fn open_one_file_by_two_names_is_one_store() {
        let files = Files::new(&[("a", 8192)]);
        std::fs::hard_link(files.0.path().join("a"), files.0.path().join("b")).unwrap();
        let table = files.open("0 8 linear @/a 0\n8 8 linear @/b 8").unwrap();
        assert_eq!(table.nr_pages().get(), 2);
    }

    #[test]
    fn open_past_end_of_file_is_refused() {
        let files = Files::new(&[("a", 8192)]);
        let error = files.open("0 16 linear @/a 8").unwrap_err();
        assert!(matches!(error, OpenTableError::Linear { .. }), "{error:?}");
    }

    #[test]
    fn open_with_gap_names_the_line_behind_it() {
        let files = Files::new(&[("a", 8192)]);
        let error = files.open("0 8 linear @/a 0\n# gap\n16 8 linear @/a 8").unwrap_err();
        let expected = "line 3, column 1: gap: pages from 0x1 on have no target";
        assert_eq!(error.to_string(), expected);
    }
}
