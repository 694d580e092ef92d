// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd check`: what a table makes, without serving it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use pfn_blk::table::{DeviceSpec, Line, OpenMirror, Position, TargetSpec, Word};
use pfn_blk::{
    Access, Extent, LegState, MirrorStatus, NotDirect, NrPages, PAGE_SIZE, Pgoff, Region,
    SnapshotUsage, Store, StoreSet,
};
use vhost_pmem::WindowChoice;

use crate::backing::{self, Backing, OpenedTable};
use crate::image;
use crate::size::ByteSize;

/// More extents than this are counted, not shown.
const SHOWN_MAX: usize = 64;

/// Prints the stack, its extents, and how it would be served; an error if it could not be.
pub(crate) fn run(path: &Path, choice: WindowChoice, out: &mut impl Write) -> anyhow::Result<()> {
    let opened = backing::open_table(path, StoreSet::default().only_looked_at())?;
    let Backing { region, stores, cows, .. } = &opened.backing;
    let size = region.nr_pages();
    writeln!(out, "device: {}, {size}", ByteSize(size.bytes()))?;
    Tree::new(&opened).print(None, "", out)?;
    writeln!(out, "extents:")?;
    print_extents(region, out)?;
    writeln!(out, "stores:")?;
    for store in stores {
        print_store(store.store(), out)?;
    }
    for cow in cows {
        writeln!(out, "since a snapshot: {}", cow.display())?;
    }
    // What is over the region is served, as is much else.
    let choice = match choice {
        WindowChoice::Auto if !cows.is_empty() => WindowChoice::Served,
        choice => choice,
    };
    match vhost_pmem::choose(region, choice) {
        Ok(window) => writeln!(out, "window: {}", backing::describe(&window, size))?,
        Err(error) => {
            writeln!(out, "window: none")?;
            return Err(backing::explain(error, None).context("cannot be served"));
        }
    }
    Ok(())
}

/// The lines of each table, by its name, and what their targets tell.
struct Tree<'a> {
    tables: HashMap<Option<&'a str>, Vec<&'a Line>>,
    opened: &'a OpenedTable,
}

/// What a target is made of.
struct Part<'a> {
    /// What for, where that isn't plain.
    role: &'static str,
    device: &'a Word,
    start: Pgoff,
}

impl<'a> Tree<'a> {
    fn new(opened: &'a OpenedTable) -> Self {
        let mut tables: HashMap<_, Vec<_>> = HashMap::new();
        for line in &opened.lines {
            tables.entry(line.name.as_deref()).or_default().push(line);
        }
        Self { tables, opened }
    }

    /// Prints a table's lines and what is beneath each. Tables are made of those before them only,
    /// so this comes to an end.
    fn print(&self, name: Option<&str>, indent: &str, out: &mut impl Write) -> io::Result<()> {
        let lines = self.tables.get(&name).map(Vec::as_slice).unwrap_or_default();
        for (index, line) in lines.iter().enumerate() {
            let (branch, below) = branches(index, lines.len());
            let size = ByteSize(line.pages.nr_pages().bytes());
            let at = line.pages.start();
            let status = self.status(line);
            writeln!(out, "{indent}{branch}{}, {size} from {at}{status}", kind(&line.target))?;
            self.print_parts(&line.target, &format!("{indent}{below}"), out)?;
        }
        Ok(())
    }

    /// How a line's target is, if it has something to tell. One that was opened for reading too
    /// tells the same twice.
    fn status(&self, line: &Line) -> String {
        let here = |position: &Position| *position == line.position;
        let Backing { mirrors, snapshots, .. } = &self.opened.backing;
        let mirror = mirrors.iter().find(|one| here(&one.position));
        let snapshot = snapshots.iter().find(|(position, _)| here(position));
        if let Some(OpenMirror { mirror, .. }) = mirror {
            let MirrorStatus { legs, stale, regions } = mirror.status();
            let legs: Vec<_> = legs.iter().map(LegState::to_string).collect();
            return format!(
                ": legs {}, {stale} of {regions} regions to be copied",
                legs.join(", ")
            );
        }
        if let Some((_, snapshot)) = snapshot {
            let SnapshotUsage { used, capacity, .. } = snapshot.usage();
            return format!(": {used} of {capacity} chunks in use");
        }
        String::new()
    }

    fn print_parts(
        &self,
        target: &TargetSpec,
        indent: &str,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let parts = parts(target);
        for (index, Part { role, device, start }) in parts.iter().enumerate() {
            let (branch, below) = branches(index, parts.len());
            let is_table = self.tables.contains_key(&Some(device.text.as_str()));
            let what = if is_table { "table" } else { "file" };
            writeln!(out, "{indent}{branch}{role}{what} {} from {start}", device.text)?;
            if is_table {
                self.print(Some(&device.text), &format!("{indent}{below}"), out)?;
            }
        }
        Ok(())
    }
}

/// What leads to an entry, and to what is beneath it.
fn branches(index: usize, count: usize) -> (&'static str, &'static str) {
    if index + 1 == count { ("└─ ", "   ") } else { ("├─ ", "│  ") }
}

fn kind(target: &TargetSpec) -> String {
    match target {
        TargetSpec::Linear(_) => "linear".to_owned(),
        TargetSpec::Striped { chunk, stripes } => {
            format!("striped over {} in chunks of {}", stripes.len(), ByteSize(chunk.bytes()))
        }
        TargetSpec::Mirror { log, legs } => {
            format!("mirror of {} in regions of {}", legs.len(), ByteSize(log.region.bytes()))
        }
        TargetSpec::Snapshot { chunk, .. } => {
            format!("snapshot in chunks of {}", ByteSize(chunk.bytes()))
        }
        TargetSpec::Zero => "zero".to_owned(),
        TargetSpec::Error => "error".to_owned(),
        other => other.to_string(),
    }
}

fn parts(target: &TargetSpec) -> Vec<Part<'_>> {
    fn part(role: &'static str) -> impl Fn(&DeviceSpec) -> Part<'_> {
        move |DeviceSpec { device, start }| Part { role, device, start: *start }
    }
    let whole = |role, device| Part { role, device, start: Pgoff::ZERO };
    match target {
        TargetSpec::Linear(device) => vec![part("")(device)],
        TargetSpec::Striped { stripes, .. } => stripes.iter().map(part("")).collect(),
        TargetSpec::Mirror { log, legs } => {
            let log = log.device.as_ref().map(|device| whole("log: ", device));
            log.into_iter().chain(legs.iter().map(part("leg: "))).collect()
        }
        TargetSpec::Snapshot { origin, cow, .. } => {
            vec![whole("origin: ", origin), whole("changes: ", cow)]
        }
        _ => Vec::new(),
    }
}

fn print_store(store: &dyn Store, out: &mut impl Write) -> io::Result<()> {
    let size = ByteSize(store.nr_pages().bytes());
    let access = match store.access() {
        Access::ReadOnly => "read-only",
        Access::ReadWrite => "read-write",
    };
    let persistent = if store.is_persistent() { "persistent" } else { "lost without power" };
    write!(out, "  {}: {size}, {access}, {persistent}", store.name())?;
    if let Some(format) = image::of(store) {
        write!(out, ", looks like a {format} image")?;
    }
    match store.alignment() {
        NrPages::ONE => writeln!(out),
        more => writeln!(out, ", mapped in multiples of {}", ByteSize(more.bytes())),
    }
}

fn print_extents(region: &Region, out: &mut impl Write) -> anyhow::Result<()> {
    let mut extents = region.extents(region.pages())?;
    for (start, piece) in extents.by_ref().take(SHOWN_MAX) {
        print_extent(start, &piece, out)?;
    }
    match extents.count() {
        0 => {}
        more => writeln!(out, "  and {more} more")?,
    }
    Ok(())
}

fn print_extent(
    start: Pgoff,
    piece: &Result<Extent<'_>, NotDirect>,
    out: &mut impl Write,
) -> io::Result<()> {
    match piece {
        Ok(extent) => {
            let store = extent.pagemap().store().name();
            let at = extent.pgoff().get() * PAGE_SIZE;
            writeln!(out, "  {start}, {}: direct, {store} from byte {at}", extent.nr_pages())
        }
        Err(not) => writeln!(out, "  {start}, {}: not direct, {}", not.nr_pages, not.because),
    }
}
