// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a table's lines to a table: opening the stores and putting the targets over them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::text::{DeviceSpec, Line, TargetSpec};
use super::words::Position;
use super::{InvalidTable, Table};
use crate::page::{InvalidPages, NrPages, PgoffRange};
use crate::pagemap::Pagemap;
use crate::space::PfnSpace;
use crate::store::{Access, FileStore, InvalidStore, Store};
use crate::target::{
    ErrorTarget, InvalidLinear, InvalidStriped, Linear, Striped, Target, ZeroTarget,
};

/// Lines that make no table.
#[derive(Debug, Error)]
#[error("{position}: {kind}")]
pub struct OpenTableError {
    /// Where in the text.
    pub position: Position,
    /// What.
    pub kind: OpenTableErrorKind,
}

/// What is wrong with what a line stands for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenTableErrorKind {
    /// The file can't be a store.
    #[error("{path}: {}", chain(.source))]
    Store {
        /// The file.
        path: String,
        /// Why it can't.
        source: InvalidStore,
    },
    /// It reaches past what is beneath.
    #[error("{device}: {source}")]
    Linear {
        /// What is beneath.
        device: String,
        /// How far it reaches.
        source: InvalidLinear,
    },
    /// The stripes don't make a target.
    #[error("{}", chain(.0))]
    Striped(InvalidStriped),
    /// The lines of a table don't tile it.
    #[error(transparent)]
    Table(InvalidTable),
    /// The lines of a table don't stand together.
    #[error("{0} is defined already; the lines of a table stand together")]
    DefinedTwice(String),
    /// A table that nothing is made of.
    #[error("{0} is not used by any line behind it")]
    Unused(String),
    /// There is no device, only tables to make one of.
    #[error("no line without a name; those are the device itself")]
    NoDevice,
    /// The pfn space is used up, or a page number too large.
    #[error(transparent)]
    Pages(InvalidPages),
}

/// An error and what caused it, on one line: a position goes before them both.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The open stores of a process, each file once, and their pfns.
#[derive(Debug, Default)]
pub struct StoreSet {
    space: PfnSpace,
    /// By device and inode: two names of one file are one store.
    files: HashMap<(u64, u64), Arc<Pagemap>>,
}

/// A named table, and whether anything is made of it.
struct Named {
    table: Arc<Table>,
    position: Position,
    used: bool,
}

impl StoreSet {
    /// The pfns of the stores.
    pub fn space(&mut self) -> &mut PfnSpace {
        &mut self.space
    }

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

    /// Opens what `lines` name and builds their tables; returns the one without a name.
    ///
    /// A line may use the tables before it only, so that no table can contain itself.
    pub fn open_table(&mut self, lines: &[Line]) -> Result<Table, OpenTableError> {
        let mut tables = HashMap::new();
        let mut device = None;
        for lines in lines.chunk_by(|one, next| one.name == next.name) {
            let Line { position, name, .. } = &lines[0];
            let defined = name.as_ref().map_or(device.is_some(), |name| tables.contains_key(name));
            if defined {
                let name = name.clone().unwrap_or_else(|| "the device".to_owned());
                return Err(position.open_error(OpenTableErrorKind::DefinedTwice(name)));
            }
            let table = self.open_lines(lines, &mut tables)?;
            match name {
                None => device = Some(table),
                Some(name) => {
                    let table = Arc::new(table);
                    let named = Named { table, position: *position, used: false };
                    tables.insert(name.clone(), named);
                }
            }
        }
        if let Some((name, unused)) = tables.into_iter().find(|(_, table)| !table.used) {
            return Err(unused.position.open_error(OpenTableErrorKind::Unused(name)));
        }
        device.ok_or_else(|| {
            let end = lines.last().map_or(1, |line| line.position.line + 1);
            Position { line: end, column: 1 }.open_error(OpenTableErrorKind::NoDevice)
        })
    }

    /// The table that `lines`, which belong together, describe.
    fn open_lines(
        &mut self,
        lines: &[Line],
        tables: &mut HashMap<String, Named>,
    ) -> Result<Table, OpenTableError> {
        let entries = lines
            .iter()
            .map(|line| Ok((line.pages, self.open_target(line, tables)?)))
            .collect::<Result<_, OpenTableError>>()?;
        Table::try_new(entries).map_err(|error| {
            lines[error.entry()].position.open_error(OpenTableErrorKind::Table(error))
        })
    }

    fn open_target(
        &mut self,
        line: &Line,
        tables: &mut HashMap<String, Named>,
    ) -> Result<Arc<dyn Target>, OpenTableError> {
        let nr_pages = line.pages.nr_pages();
        match &line.target {
            TargetSpec::Linear(spec) => self.open_linear(spec, nr_pages, tables),
            TargetSpec::Striped { chunk, stripes } => {
                let stripes = stripes
                    .iter()
                    .map(|spec| Ok((self.open_device(spec, tables)?, spec.start)))
                    .collect::<Result<_, OpenTableError>>()?;
                let striped = Striped::try_new(stripes, *chunk, nr_pages).map_err(|error| {
                    line.position.open_error(OpenTableErrorKind::Striped(error))
                })?;
                Ok(Arc::new(striped))
            }
            TargetSpec::Zero => Ok(Arc::new(ZeroTarget::new(nr_pages))),
            TargetSpec::Error => Ok(Arc::new(ErrorTarget::new(nr_pages))),
        }
    }

    fn open_linear(
        &mut self,
        spec: &DeviceSpec,
        nr_pages: NrPages,
        tables: &mut HashMap<String, Named>,
    ) -> Result<Arc<dyn Target>, OpenTableError> {
        let position = spec.device.position;
        let beneath = self.open_device(spec, tables)?;
        let pages = PgoffRange::try_new(spec.start, nr_pages)
            .map_err(|error| position.open_error(OpenTableErrorKind::Pages(error)))?;
        let linear = Linear::try_new(beneath, pages).map_err(|source| {
            let device = spec.device.text.clone();
            position.open_error(OpenTableErrorKind::Linear { device, source })
        })?;
        Ok(Arc::new(linear))
    }

    /// The table of that name, or else the file of that path.
    fn open_device(
        &mut self,
        spec: &DeviceSpec,
        tables: &mut HashMap<String, Named>,
    ) -> Result<Arc<dyn Target>, OpenTableError> {
        let path = &spec.device.text;
        if let Some(named) = tables.get_mut(path) {
            named.used = true;
            return Ok(Arc::clone(&named.table) as Arc<dyn Target>);
        }
        let store = self.open(Path::new(path)).map_err(|source| {
            let kind = OpenTableErrorKind::Store { path: path.clone(), source };
            spec.device.position.open_error(kind)
        })?;
        Ok(store)
    }
}

impl Position {
    fn open_error(self, kind: OpenTableErrorKind) -> OpenTableError {
        OpenTableError { position: self, kind }
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

        fn error(&self, text: &str) -> String {
            let error = self.open(text).unwrap_err().to_string();
            error.replace(&self.0.path().display().to_string(), "@")
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
    fn open_nested_tables_stacks_them() {
        let files = Files::new(&[("a", 8192), ("b", 8192)]);
        let table = files
            .open("s: 0 32 striped 2 8 @/a 0 @/b 0\nt: 0 8 zero\n0 24 linear s 8\n24 8 linear t 0")
            .unwrap();
        let mut leaves = Vec::new();
        table.leaves(
            PgoffRange::try_new(crate::Pgoff::ZERO, table.nr_pages()).unwrap(),
            &mut |_, pages| {
                leaves.push((pages.start().get(), pages.nr_pages().get()));
            },
        );
        assert_eq!(leaves, [(1, 1), (0, 2)]);
    }

    #[test]
    fn open_bad_lines_says_where_and_what() {
        let files = Files::new(&[("a", 8192), ("b", 8192)]);
        for (text, expected) in [
            (
                "0 16 linear @/a 8",
                "line 1, column 13: @/a: pgoff 0x1 + 2 pages reaches past the end at 2 pages",
            ),
            ("0 8 linear @/none 0", "line 1, column 12: @/none: no such file"),
            (
                "0 8 linear @/a 0\n# gap\n16 8 linear @/a 8",
                "line 3, column 1: gap: pages from 0x1 on have no target",
            ),
            (
                "0 24 striped 2 8 @/a 0 @/b 0",
                "line 1, column 1: 3 pages can't be dealt to 2 stripes in chunks of 1 pages; the size must be a multiple of 2",
            ),
            (
                "0 32 striped 2 8 @/a 0 @/b 8",
                "line 1, column 1: stripe 1: pgoff 0x1 + 2 pages reaches past the end at 2 pages",
            ),
            ("0 8 linear s 0\ns: 0 8 zero", "line 1, column 12: s: no such file"),
            ("s: 0 8 linear s 0\n0 8 linear s 0", "line 1, column 15: s: no such file"),
            ("s: 0 8 zero\n0 8 error", "line 1, column 1: s is not used by any line behind it"),
            ("s: 0 8 zero\n0 8 linear s 0\ns: 0 8 zero", "line 3, column 1: s is defined already"),
            (
                "0 8 zero\ns: 0 8 zero\n8 8 linear s 0",
                "line 3, column 1: the device is defined already",
            ),
            ("s: 0 8 zero\nt: 0 8 linear s 0", "line 2, column 1: t is not used"),
            ("", "line 1, column 1: no line without a name"),
        ] {
            assert!(files.error(text).starts_with(expected), "{text:?}: {}", files.error(text));
        }
    }
}
