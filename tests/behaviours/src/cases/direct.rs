// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `O_DIRECT`, which goes past a page cache that isn't there.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, ensure};

use crate::case::{cases, skip};
use crate::data::{Bytes, expect_same, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "direct":
    direct_writes_are_loaded
    stores_are_read_directly
    direct_read_into_a_mapping_of_the_same_file
    direct_read_into_a_mapping_of_another_file
    direct_write_from_a_mapping_of_the_same_file
    direct_write_from_a_mapping_of_another_file
    direct_read_of_a_hole_is_zeroes
    direct_append_grows_the_file
    direct_io_of_the_device_from_a_mapping
}

/// Of a file that is there, another file that is open for direct I/O.
fn directly(site: &Site, name: &str) -> Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(site.path(name));
    file.context("cannot open it with O_DIRECT")
}

/// A buffer that direct I/O may use: memory of the program is aligned by chance only.
fn buffer(site: &Site, len: usize) -> Result<Mapping> {
    let file = site.sparse("buffer", len)?;
    Mapping::private(&file, len)
}

const LEN: usize = PMD + 16 * PAGE;
/// Offsets and lengths in whole blocks.
const BLOCKS: [(usize, usize); 4] =
    [(0, PAGE), (3 * PAGE, 5 * PAGE), (PMD - PAGE, 3 * PAGE), (0, PMD + PAGE)];

fn direct_writes_are_loaded(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", LEN)?;
    let direct = directly(site, "file")?;
    let mapping = Mapping::all(&file)?;
    let buffer = buffer(site, LEN)?;
    for (seed, (at, len)) in (1..).zip(BLOCKS) {
        model[at..at + len].copy_from_slice(&noise(seed, len));
        buffer.store(0, &model[at..at + len]);
        buffer.drain_by(0, len, |bytes| direct.put(at, bytes))?;
        expect_same(format!("{at}+{len}"), &mapping.load(0, LEN), &model)?;
    }
    expect_same("read", &file.get_all()?, &model)
}

fn stores_are_read_directly(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", LEN)?;
    let direct = directly(site, "file")?;
    let mapping = Mapping::all(&file)?;
    let buffer = buffer(site, LEN)?;
    for (seed, (at, len)) in (1..).zip(BLOCKS) {
        model[at + 1..at + len - 1].copy_from_slice(&noise(seed, len - 2));
        mapping.store(at + 1, &model[at + 1..at + len - 1]);
        buffer.fill_by(0, LEN, |into| direct.read_exact_at(into, 0))?;
        expect_same(format!("{at}+{len}"), &buffer.load(0, LEN), &model)?;
    }
    Ok(())
}

fn direct_read_into_a_mapping_of_the_same_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", LEN)?;
    let direct = directly(site, "file")?;
    let mapping = Mapping::all(&file)?;
    mapping.fill_by(PMD, 4 * PAGE, |into| direct.read_exact_at(into, 2 * PAGE as u64))?;
    model.copy_within(2 * PAGE..6 * PAGE, PMD);
    expect_same("read", &file.get_all()?, &model)
}

fn direct_read_into_a_mapping_of_another_file(site: &Site) -> Result<()> {
    let (_, from) = site.filled("from", LEN)?;
    let direct = directly(site, "from")?;
    // Data, unwritten space and holes to read into.
    let (to, mut model) = site.filled("to", PMD)?;
    to.allocate(rustix::fs::FallocateFlags::empty(), PMD, 8 * PAGE)?;
    to.set_len(LEN as u64)?;
    model.resize(LEN, 0);
    let mapping = Mapping::all(&to)?;
    for (into, at, len) in [(PMD - 4 * PAGE, 0, LEN - PMD), (0, PMD, PAGE)] {
        mapping.fill_by(into, len, |bytes| direct.read_exact_at(bytes, at as u64))?;
        model[into..into + len].copy_from_slice(&from[at..at + len]);
    }
    expect_same("read", &to.get_all()?, &model)
}

fn direct_write_from_a_mapping_of_the_same_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", LEN)?;
    let direct = directly(site, "file")?;
    let mapping = Mapping::all(&file)?;
    mapping.drain_by(2 * PAGE, 4 * PAGE, |bytes| direct.put(PMD, bytes))?;
    model.copy_within(2 * PAGE..6 * PAGE, PMD);
    expect_same("loaded", &mapping.load(0, LEN), &model)?;
    expect_same("read", &file.get_all()?, &model)
}

fn direct_write_from_a_mapping_of_another_file(site: &Site) -> Result<()> {
    let (from, mut source) = site.filled("from", PMD)?;
    from.set_len(LEN as u64)?;
    source.resize(LEN, 0);
    let mapping = Mapping::all(&from)?;
    let to = site.file("to")?;
    let direct = directly(site, "to")?;
    mapping.drain_by(0, LEN, |bytes| direct.put(0, bytes))?;
    expect_same("data and a hole", &to.get_all()?, &source)
}

fn direct_read_of_a_hole_is_zeroes(site: &Site) -> Result<()> {
    let file = site.sparse("file", LEN)?;
    let direct = directly(site, "file")?;
    let buffer = buffer(site, LEN)?;
    buffer.store(0, &noise(1, LEN));
    buffer.fill_by(0, LEN, |into| direct.read_exact_at(into, 0))?;
    expect_zeroes("the hole", &buffer.load(0, LEN))?;
    file.put(PAGE, &[1; PAGE])?;
    buffer.fill_by(0, LEN, |into| direct.read_exact_at(into, 0))?;
    expect_same("written", &buffer.load(PAGE, PAGE), &[1; PAGE])
}

fn direct_append_grows_the_file(site: &Site) -> Result<()> {
    let file = site.file("file")?;
    let mut direct = directly(site, "file")?;
    let mapping = Mapping::shared(&file, 0, 8 * PAGE)?;
    let buffer = buffer(site, PAGE)?;
    for round in 0..8 {
        let bytes = noise(round, PAGE);
        buffer.store(0, &bytes);
        buffer.drain_by(0, PAGE, |bytes| direct.write_all(bytes))?;
        let at = file.size()? - PAGE;
        ensure!(at as u64 == round * PAGE as u64, "appended at {at} in round {round}");
        expect_same(format!("round {round}"), &mapping.load(at, PAGE), &bytes)?;
    }
    Ok(())
}

/// The device itself read, past its own page cache, into a file on it: it is where FIEMAP says.
fn direct_io_of_the_device_from_a_mapping(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 4 * PAGE)?;
    file.sync_all()?;
    let Some(extent) = crate::sys::extents(&file)?.first().copied() else {
        skip!("the filesystem doesn't tell where the file is")
    };
    let device = File::options().read(true).custom_flags(libc::O_DIRECT).open(&site.device)?;
    let to = site.sparse("to", PAGE)?;
    let mapping = Mapping::all(&to)?;
    mapping.fill_by(0, PAGE, |into| device.read_exact_at(into, extent.physical))?;
    expect_same("read", &to.get_all()?, &model[..PAGE])
}
