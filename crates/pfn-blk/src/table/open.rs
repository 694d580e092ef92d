// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a table's lines to a table: opening the stores and putting the targets over them.

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tracing::warn;

use super::Table;
use super::error::{OpenTableError, OpenTableErrorKind};
use super::pieces;
use super::stores::StoreSet;
use super::text::{DeviceSpec, Line, LogSpec, TargetSpec};
use super::words::{Position, Word};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::store::{Access, InvalidStore};
use crate::target::{
    ErrorTarget, Linear, Mirror, MirrorLog, Origins, Snapshot, Striped, Target, ZeroTarget,
};

/// Tables of tables may be this deep.
pub(super) const DEPTH_MAX: usize = 64;

/// A table that was opened, and those of its targets that have something to tell, each with the
/// place of its line.
#[derive(Debug)]
pub struct OpenTable {
    /// The device.
    pub table: Table,
    /// Its mirrors, those beneath others first. They want a resync.
    pub mirrors: Vec<OpenMirror>,
    /// Its snapshots, those beneath others first.
    pub snapshots: Vec<(Position, Arc<Snapshot>)>,
}

/// A mirror that was opened.
#[derive(Debug, Clone)]
pub struct OpenMirror {
    /// The place of its line.
    pub position: Position,
    /// The mirror.
    pub mirror: Arc<Mirror>,
    /// Its legs, as the line has them.
    pub legs: Vec<OpenLeg>,
}

/// A leg of a mirror, as its line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenLeg {
    /// The path of a file, or the name of a table.
    pub device: String,
    /// The first page that is used of it.
    pub start: Pgoff,
    /// Whether it is a file.
    pub is_file: bool,
}

impl StoreSet {
    /// Opens what `lines` name and builds their tables, up to the one without a name: for reading
    /// and writing, but for the origins of snapshots, which are opened read-only with all that is
    /// beneath them.
    ///
    /// A line may use the tables before it only, so that no table can contain itself.
    pub fn open_table(&mut self, lines: &[Line]) -> Result<OpenTable, OpenTableError> {
        let definitions = Definition::all(lines)?;
        pieces::check(lines)?;
        let Some(device) = definitions.iter().position(|table| table.name.is_none()) else {
            let end = lines.last().map_or(1, |line| line.position.line + 1);
            let end = Position { line: end, column: 1 };
            return Err(end.open_error(OpenTableErrorKind::NoDevice));
        };
        if self.origins == Origins::Any {
            self.accept_beneath(lines)?;
        }
        let mut opener = Opener::new(self, definitions);
        let table = opener.open_lines(device, Access::ReadWrite)?;
        let Opener { definitions, mirrors, snapshots, .. } = opener;
        // The last one is nearest to the mistake: what it uses isn't used either.
        let unused = |table: &&Definition<'_>| {
            table.name.is_some() && table.opened.iter().all(Option::is_none)
        };
        if let Some(Definition { name: Some(name), lines, .. }) =
            definitions.iter().rev().find(unused)
        {
            let kind = OpenTableErrorKind::Unused((*name).to_owned());
            return Err(lines[0].position.open_error(kind));
        }
        Ok(OpenTable { table, mirrors, snapshots })
    }

    /// Records the accepted origin in each COW store below the uppermost one. The device opens those
    /// read-only, so each is opened by itself for that, the lowest first.
    fn accept_beneath(&self, lines: &[Line]) -> Result<(), OpenTableError> {
        let is_snapshot = |line: &Line| matches!(line.target, TargetSpec::Snapshot { .. });
        for (number, table) in Definition::all(lines)?.iter().enumerate() {
            if table.name.is_some() && table.lines.iter().any(is_snapshot) {
                let mut stores = Self::with_origins(self.origins).taking_marked();
                let definitions = Definition::all(lines)?;
                Opener::new(&mut stores, definitions).open_lines(number, Access::ReadWrite)?;
            }
        }
        Ok(())
    }
}

/// The lines of a table.
struct Definition<'a> {
    name: Option<&'a str>,
    lines: &'a [Line],
    /// What was made of it: read-only, and to be written.
    opened: [Option<Arc<Table>>; 2],
}

impl<'a> Definition<'a> {
    /// All tables, in order.
    fn all(lines: &'a [Line]) -> Result<Vec<Self>, OpenTableError> {
        let mut all: Vec<Self> = Vec::new();
        for lines in lines.chunk_by(|one, next| one.name == next.name) {
            let name = lines[0].name.as_deref();
            if all.iter().any(|table| table.name == name) {
                let name = name.unwrap_or("the device").to_owned();
                return Err(lines[0].position.open_error(OpenTableErrorKind::DefinedTwice(name)));
            }
            all.push(Self { name, lines, opened: [None, None] });
        }
        Ok(all)
    }
}

/// Opens the tables that a device is made of.
struct Opener<'a, 's> {
    stores: &'s mut StoreSet,
    definitions: Vec<Definition<'a>>,
    mirrors: Vec<OpenMirror>,
    snapshots: Vec<(Position, Arc<Snapshot>)>,
    depth: usize,
}

/// Devices, and the first page that is used of each.
type Devices = Vec<(Arc<dyn Target>, Pgoff)>;

/// How the words of a line are to be understood.
#[derive(Debug, Clone, Copy)]
struct Scope {
    /// Only the tables before this one are known.
    before: usize,
    access: Access,
}

impl<'a, 's> Opener<'a, 's> {
    fn new(stores: &'s mut StoreSet, definitions: Vec<Definition<'a>>) -> Self {
        Self { stores, definitions, mirrors: Vec::new(), snapshots: Vec::new(), depth: 0 }
    }

    /// The table of that number.
    fn open_lines(&mut self, number: usize, access: Access) -> Result<Table, OpenTableError> {
        let lines = self.definitions[number].lines;
        if self.depth == DEPTH_MAX {
            return Err(lines[0].position.open_error(OpenTableErrorKind::TooDeep));
        }
        self.depth += 1;
        let scope = Scope { before: number, access };
        let entries = lines
            .iter()
            .map(|line| Ok((line.pages, self.open_target(line, scope)?)))
            .collect::<Result<_, OpenTableError>>()?;
        self.depth -= 1;
        Table::try_new(entries).map_err(|error| {
            lines[error.entry()].position.open_error(OpenTableErrorKind::Table(error))
        })
    }

    fn open_target(
        &mut self,
        line: &Line,
        scope: Scope,
    ) -> Result<Arc<dyn Target>, OpenTableError> {
        let nr_pages = line.pages.nr_pages();
        let refused = |kind| line.position.open_error(kind);
        match &line.target {
            TargetSpec::Linear(spec) => self.open_linear(spec, nr_pages, scope),
            TargetSpec::Striped { chunk, stripes } => {
                let stripes = self.open_all(stripes, scope)?;
                let striped = Striped::try_new(stripes, *chunk, nr_pages)
                    .map_err(|error| refused(OpenTableErrorKind::Striped(error)))?;
                Ok(Arc::new(striped))
            }
            TargetSpec::Mirror { log, legs } => {
                let LogSpec { device, region, in_sync } = log;
                let device = device.as_ref().map(|word| self.open_device(word, scope));
                let log =
                    MirrorLog { device: device.transpose()?, region: *region, in_sync: *in_sync };
                let opened = legs.iter().map(|leg| self.open_leg(leg, nr_pages, scope));
                let mirror = Mirror::open(opened.collect::<Result<_, _>>()?, log, nr_pages)
                    .map_err(|error| refused(OpenTableErrorKind::Mirror(error)))?;
                let mirror = Arc::new(mirror);
                let legs = legs.iter().map(|leg| self.describe_leg(leg, scope)).collect();
                let position = line.position;
                self.mirrors.push(OpenMirror { position, mirror: Arc::clone(&mirror), legs });
                Ok(mirror)
            }
            TargetSpec::Snapshot { origin, cow, chunk } => {
                let read_only = Scope { access: Access::ReadOnly, ..scope };
                let origin = self.open_device(origin, read_only)?;
                let origins = self.stores.origins;
                let cow = self.open_device(cow, scope).map_err(|error| match &error.kind {
                    // One that was lost isn't to be made from nothing.
                    OpenTableErrorKind::Store { source: InvalidStore::Missing, .. }
                        if origins == Origins::Same =>
                    {
                        let position = error.position;
                        let refused = |why| position.open_error(OpenTableErrorKind::Snapshot(why));
                        Snapshot::check_new(&*origin).map_or_else(refused, |()| error)
                    }
                    _ => error,
                })?;
                let snapshot = Snapshot::open_over(origins, origin, cow, *chunk, nr_pages)
                    .map_err(|error| refused(OpenTableErrorKind::Snapshot(error)))?;
                let snapshot = Arc::new(snapshot);
                self.snapshots.push((line.position, Arc::clone(&snapshot)));
                Ok(snapshot)
            }
            TargetSpec::Zero => Ok(Arc::new(ZeroTarget::new(nr_pages))),
            TargetSpec::Error => Ok(Arc::new(ErrorTarget::new(nr_pages))),
        }
    }

    fn open_linear(
        &mut self,
        spec: &DeviceSpec,
        nr_pages: NrPages,
        scope: Scope,
    ) -> Result<Arc<dyn Target>, OpenTableError> {
        let position = spec.device.position;
        let beneath = self.open_device(&spec.device, scope)?;
        let pages = PgoffRange::try_new(spec.start, nr_pages)
            .map_err(|error| position.open_error(OpenTableErrorKind::Pages(error)))?;
        let linear = Linear::try_new(beneath, pages).map_err(|source| {
            let device = spec.device.text.clone();
            position.open_error(OpenTableErrorKind::Linear { device, source })
        })?;
        Ok(Arc::new(linear))
    }

    fn open_all(&mut self, specs: &[DeviceSpec], scope: Scope) -> Result<Devices, OpenTableError> {
        specs.iter().map(|spec| Ok((self.open_device(&spec.device, scope)?, spec.start))).collect()
    }

    /// A mirror's leg. A file that isn't there is no error: the mirror decides whether it can do
    /// without.
    fn open_leg(
        &mut self,
        leg: &DeviceSpec,
        nr_pages: NrPages,
        scope: Scope,
    ) -> Result<(Arc<dyn Target>, Pgoff), OpenTableError> {
        match self.open_device(&leg.device, scope) {
            Err(OpenTableError { kind: OpenTableErrorKind::Store { path, source }, position })
                if is_away(&source) =>
            {
                let error = &source as &dyn std::error::Error;
                warn!(%position, path, error, "mirror: a leg is missing");
                let end = NrPages::try_new(leg.start.get() + nr_pages.get())
                    .map_err(|error| position.open_error(OpenTableErrorKind::Pages(error)))?;
                Ok((Arc::new(ErrorTarget::new(end)), leg.start))
            }
            Err(OpenTableError {
                kind: OpenTableErrorKind::Store { path, source: source @ InvalidStore::Size(_) },
                position,
            }) => Err(position.open_error(OpenTableErrorKind::LegSize { path, source })),
            opened => Ok((opened?, leg.start)),
        }
    }

    fn describe_leg(&self, leg: &DeviceSpec, scope: Scope) -> OpenLeg {
        let device = leg.device.text.clone();
        let is_file = self.find(&device, scope).is_none();
        OpenLeg { device, start: leg.start, is_file }
    }

    /// The number of the table of that name, if there is one.
    fn find(&self, name: &str, scope: Scope) -> Option<usize> {
        self.definitions[..scope.before].iter().position(|table| table.name == Some(name))
    }

    /// The table of that name, or else the file of that path.
    fn open_device(
        &mut self,
        word: &Word,
        scope: Scope,
    ) -> Result<Arc<dyn Target>, OpenTableError> {
        let path = &word.text;
        let Scope { access, .. } = scope;
        let Some(number) = self.find(path, scope) else {
            let store = self.stores.open(Path::new(path), access).map_err(|source| {
                let kind = OpenTableErrorKind::Store { path: path.clone(), source };
                word.position.open_error(kind)
            })?;
            return Ok(store);
        };
        let kind = usize::from(access == Access::ReadWrite);
        if let Some(table) = &self.definitions[number].opened[kind] {
            return Ok(Arc::clone(table) as Arc<dyn Target>);
        }
        let table = Arc::new(self.open_lines(number, access)?);
        self.definitions[number].opened[kind] = Some(Arc::clone(&table));
        Ok(table)
    }
}

impl Position {
    fn open_error(self, kind: OpenTableErrorKind) -> OpenTableError {
        OpenTableError { position: self, kind }
    }
}

/// Whether there is no such file, or its disk fails, as one that was pulled out does.
fn is_away(refusal: &InvalidStore) -> bool {
    let InvalidStore::Io { source, .. } = refusal else {
        return matches!(refusal, InvalidStore::Missing);
    };
    matches!(
        Errno::from_io_error(source),
        Some(Errno::IO | Errno::NXIO | Errno::NODEV | Errno::NOTCONN | Errno::STALE)
    )
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
            let opened = StoreSet::default().open_table(&parse(&text).unwrap())?;
            Ok(opened.table)
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
    fn open_snapshots_share_an_origin_that_nobody_writes() {
        let files = Files::new(&[("a", 8192), ("b", 16384), ("c", 16384), ("d", 16384)]);
        let text = "base: 0 16 linear @/a 0\n\
                    one: 0 16 snapshot base @/b P 8\n\
                    two: 0 16 snapshot one @/c P 8\n\
                    0 16 linear two 0\n\
                    16 16 snapshot @/a @/d P 8";
        let region = crate::Region::try_new(Arc::new(files.open(text).unwrap())).unwrap();
        region.write(region.pages(), &[7; 4 * 4096]).unwrap();
        region.persist(region.pages()).unwrap();
        drop(region);
        let held = |name| std::fs::read(files.0.path().join(name)).unwrap();
        assert!(held("a").iter().chain(&held("b")).all(|byte| *byte == 0));
        let region = crate::Region::try_new(Arc::new(files.open(text).unwrap())).unwrap();
        let mut bytes = vec![0; 4 * 4096];
        region.read(region.pages(), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn open_too_many_tables_above_one_another_is_refused() {
        let files = Files::new(&[]);
        let mut text = "t0: 0 8 zero\n".to_owned();
        for table in 1..DEPTH_MAX + 1 {
            text += &format!("t{table}: 0 8 linear t{} 0\n", table - 1);
        }
        let device = |table: usize| format!("{text}0 8 linear t{table} 0");
        assert!(files.error(&device(DEPTH_MAX)).contains("more than 64 tables one above another"));
        let text = text.lines().take(DEPTH_MAX - 1).map(|line| format!("{line}\n"));
        files.open(&(text.collect::<String>() + "0 8 linear t62 0")).unwrap();
    }

    #[test]
    fn leg_whose_disk_fails_is_away_and_one_that_is_refused_is_not() {
        let io = |errno: Errno| InvalidStore::Io { action: "open it", source: errno.into() };
        assert!(is_away(&InvalidStore::Missing) && is_away(&io(Errno::IO)));
        assert!(!is_away(&InvalidStore::NoPages) && !is_away(&io(Errno::ACCESS)));
    }

    /// Tables that use the one before them twice, `count` of them, with a line each.
    fn doubling(line: impl Fn(usize) -> String, count: usize) -> String {
        (1..count).fold("t0: 0 8 zero\n".to_owned(), |text, table| text + &line(table) + "\n")
    }

    #[test]
    fn open_table_of_too_many_pieces_is_refused_before_anything_is_opened() {
        let files = Files::new(&[]);
        let linear = |table: usize| {
            let (half, below) = (8u64 << (table - 1), table - 1);
            format!(
                "t{table}: 0 {half} linear t{below} 0\nt{table}: {half} {half} linear t{below} 0"
            )
        };
        let text = doubling(linear, 41) + "0 8 linear t40 0";
        // 1, 4, 10, 22…: 3 * 2^n - 2, more than 65536 with t15's second line.
        let expected =
            "line 31, column 1: with this line its table is made of more than 65536 lines";
        assert!(files.error(&text).starts_with(expected), "{}", files.error(&text));
        // Other targets use tables too; the files that they name aren't there.
        let striped = |table: usize| {
            let below = table - 1;
            format!("t{table}: 0 8 striped 2 8 t{below} 0 t{below} 0")
        };
        let mirror = |table: usize| {
            let below = table - 1;
            format!("t{table}: 0 8 mirror disk 2 t{below} 8 2 @/none 0 t{below} 0")
        };
        let snapshot = |table: usize| format!("t{0}: 0 8 snapshot t{1} t{1} P 8", table, table - 1);
        let lines: [&dyn Fn(usize) -> String; 3] = [&striped, &mirror, &snapshot];
        for line in lines {
            let text = doubling(line, 17) + "0 8 linear t16 0";
            let error = files.error(&text);
            assert!(error.starts_with("line 17, column 1: with this line"), "{error}");
        }
        let few = doubling(linear, 15) + "0 8 linear t14 0";
        files.open(&few).unwrap();
    }

    #[test]
    fn open_bad_lines_says_where_and_what() {
        let files = Files::new(&[("a", 8192), ("b", 8192), ("c", 8192)]);
        std::fs::write(files.0.path().join("junk"), vec![7; 12288]).unwrap();
        for (text, expected) in [
            (
                "0 16 linear @/a 8",
                "line 1, column 13: @/a: pgoff 0x1 + 2 pages reaches past the end at 2 pages; end it there",
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
            ("s: 0 8 zero\nt: 0 8 linear s 0", "line 3, column 1: no line without a name"),
            (
                "s: 0 8 zero\nt: 0 8 linear s 0\n0 8 zero",
                "line 2, column 1: t is not used by any line behind it; use it, or leave it away",
            ),
            (
                "0 16 mirror disk 2 @/a 8 2 @/b 0 @/a 0",
                "line 1, column 1: @/a is used by another target already, from pgoff 0x0 on",
            ),
            (
                "0 16 mirror core 1 8 2 @/a 0 @/b 8",
                "line 1, column 1: leg 1: pgoff 0x1 + 2 pages reaches past the end at 2 pages",
            ),
            (
                "0 16 snapshot @/a @/b P 8",
                "line 1, column 1: a COW store of 2 pages is too small; it needs 3 pages",
            ),
            (
                "o: 0 16 linear @/a 0\n0 16 snapshot o @/a P 8",
                "line 2, column 17: @/a: used both to be written and as a snapshot's origin",
            ),
            ("0 24 snapshot @/a @/b P 8", "line 1, column 1: the snapshot has 3 pages, its origin"),
            (
                "0 16 snapshot @/c @/junk P 8",
                "line 1, column 1: the COW store can't be used: not a COW store, and not blank",
            ),
            ("", "line 1, column 1: no line without a name"),
        ] {
            assert!(files.error(text).starts_with(expected), "{text:?}: {}", files.error(text));
        }
    }
}
