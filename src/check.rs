// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd check`: what a table makes, without serving it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use pfn_blk::table::{DeviceSpec, Line, TargetSpec};
use pfn_blk::{Extent, NotDirect, PAGE_SIZE, Pgoff, Region};
use vhost_pmem::Device;

use crate::backing;
use crate::size::ByteSize;

/// More extents than this are counted, not shown.
const SHOWN_MAX: usize = 64;

/// Prints the stack, its extents, and how it would be served; an error if it could not be.
pub(crate) fn run(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let (lines, region) = backing::open_table(path)?;
    writeln!(out, "device: {}, {}", ByteSize(region.nr_pages().bytes()), region.nr_pages())?;
    Tree::new(&lines).print(None, "", out)?;
    writeln!(out, "extents:")?;
    print_extents(&region, out)?;
    match Device::try_new(region) {
        Ok(device) => writeln!(out, "window: direct, in {} mappings", device.extents())?,
        Err(error) => {
            writeln!(out, "window: none")?;
            return Err(backing::explain(error, false).context("cannot be served"));
        }
    }
    Ok(())
}

/// The lines of each table, by its name.
struct Tree<'a>(HashMap<Option<&'a str>, Vec<&'a Line>>);

impl<'a> Tree<'a> {
    fn new(lines: &'a [Line]) -> Self {
        let mut tables: HashMap<_, Vec<_>> = HashMap::new();
        for line in lines {
            tables.entry(line.name.as_deref()).or_default().push(line);
        }
        Self(tables)
    }

    /// Prints a table's lines and what is beneath each. Tables are made of those before them only,
    /// so this comes to an end.
    fn print(&self, name: Option<&str>, indent: &str, out: &mut impl Write) -> io::Result<()> {
        let lines = self.0.get(&name).map(Vec::as_slice).unwrap_or_default();
        for (index, line) in lines.iter().enumerate() {
            let (branch, below) = branches(index, lines.len());
            let size = ByteSize(line.pages.nr_pages().bytes());
            let at = line.pages.start();
            writeln!(out, "{indent}{branch}{}, {size} from {at}", kind(&line.target))?;
            self.print_devices(&line.target, &format!("{indent}{below}"), out)?;
        }
        Ok(())
    }

    fn print_devices(
        &self,
        target: &TargetSpec,
        indent: &str,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let devices = devices(target);
        for (index, DeviceSpec { device, start }) in devices.iter().enumerate() {
            let (branch, below) = branches(index, devices.len());
            let is_table = self.0.contains_key(&Some(device.text.as_str()));
            let what = if is_table { "table" } else { "file" };
            writeln!(out, "{indent}{branch}{what} {} from {start}", device.text)?;
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
        TargetSpec::Zero => "zero".to_owned(),
        TargetSpec::Error => "error".to_owned(),
        other => other.to_string(),
    }
}

fn devices(target: &TargetSpec) -> &[DeviceSpec] {
    match target {
        TargetSpec::Linear(device) => std::slice::from_ref(device),
        TargetSpec::Striped { stripes, .. } => stripes,
        _ => &[],
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
