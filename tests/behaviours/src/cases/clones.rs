// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that share blocks until one of them is changed.

use std::fs::File;

use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::case::{cases, skip};
use crate::data::{Bytes, RANGES, SPAN, expect_error, expect_same, noise};
use crate::site::{Filesystem, Site};
use crate::sys::{Mapping, PAGE, PMD, clone_file, clone_range, dedupe, extents};

cases! { "clones":
    clone_is_refused_where_there_are_none
    store_to_the_original_leaves_the_clone
    store_to_the_clone_leaves_the_original
    write_to_either_leaves_the_other
    clone_over_a_mapped_file_shows_in_its_mapping
    cloned_range_shows_in_the_mapping
    clone_of_parts_of_blocks_is_refused
    equal_files_are_deduplicated_and_others_not
    cut_and_punched_original_leaves_the_clone
    unshared_file_shares_nothing
    clone_shows_what_was_stored_just_before
    ; mounts:
    clones_are_right_after_remount
}

const LEN: usize = SPAN;

fn needs_clones(site: &Site) -> Result<()> {
    if site.fs == Filesystem::Ext4 {
        skip!("ext4 has no clones");
    }
    Ok(())
}

/// A mapped file and its clone, and what both are now.
fn pair(site: &Site) -> Result<([Mapping; 2], [File; 2], Vec<u8>)> {
    needs_clones(site)?;
    let (original, model) = site.filled("original", LEN)?;
    let clone = site.file("clone")?;
    clone_file(&original, &clone)?;
    let shared = extents(&clone)?.iter().any(crate::sys::Extent::is_shared);
    ensure!(shared, "the clone shares nothing");
    let map = |file: &File| Mapping::aligned(file, 0, LEN, MapFlags::SHARED);
    Ok(([map(&original)?, map(&clone)?], [original, clone], model))
}

fn clone_is_refused_where_there_are_none(site: &Site) -> Result<()> {
    let (original, _) = site.filled("original", PAGE)?;
    let cloned = clone_file(&original, &site.file("clone")?);
    match site.fs {
        Filesystem::Ext4 => expect_error("a clone", cloned, &[Errno::OPNOTSUPP]),
        Filesystem::Xfs => Ok(cloned?),
    }
}

/// Stores to one of two clones, everywhere, and looks at both.
fn stores_stay(site: &Site, changed: usize, loaded_before: bool) -> Result<()> {
    let (mappings, files, model) = pair(site)?;
    let mut models = [model.clone(), model];
    for (seed, (at, len)) in (1..).zip(RANGES) {
        for (mapping, model) in mappings.iter().zip(&models).filter(|_| loaded_before) {
            expect_same("before", &mapping.load(0, LEN), model)?;
        }
        let bytes = noise(seed, len);
        mappings[changed].store(at, &bytes);
        models[changed][at..at + len].copy_from_slice(&bytes);
        for (which, (mapping, model)) in mappings.iter().zip(&models).enumerate() {
            expect_same(format!("{which} after {at}+{len}"), &mapping.load(0, LEN), model)?;
        }
    }
    for (which, (file, model)) in files.iter().zip(&models).enumerate() {
        expect_same(format!("{which}, read"), &file.get_all()?, model)?;
    }
    Ok(())
}

fn store_to_the_original_leaves_the_clone(site: &Site) -> Result<()> {
    stores_stay(site, 0, false)
}

fn store_to_the_clone_leaves_the_original(site: &Site) -> Result<()> {
    stores_stay(site, 1, true)
}

fn write_to_either_leaves_the_other(site: &Site) -> Result<()> {
    let (mappings, files, model) = pair(site)?;
    let mut models = [model.clone(), model];
    for (seed, (at, len)) in (1..).zip(RANGES) {
        let which = usize::try_from(seed % 2)?;
        let bytes = noise(seed, len);
        files[which].put(at, &bytes)?;
        models[which][at..at + len].copy_from_slice(&bytes);
        for (which, (mapping, model)) in mappings.iter().zip(&models).enumerate() {
            expect_same(format!("{which} after {at}+{len}"), &mapping.load(0, LEN), model)?;
        }
    }
    Ok(())
}

fn clone_over_a_mapped_file_shows_in_its_mapping(site: &Site) -> Result<()> {
    needs_clones(site)?;
    let (file, before) = site.filled("file", LEN)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::SHARED)?;
    expect_same("before", &mapping.load(0, LEN), &before)?;
    let (other, model) = site.filled("another", LEN)?;
    clone_file(&other, &file)?;
    expect_same("loaded", &mapping.load(0, LEN), &model)?;
    mapping.store(PAGE, &[1; PAGE]);
    expect_same("the other", &other.get_all()?, &model)
}

fn cloned_range_shows_in_the_mapping(site: &Site) -> Result<()> {
    needs_clones(site)?;
    let (from, source) = site.filled("from", 2 * PMD)?;
    let (to, mut model) = site.filled("to", 2 * PMD)?;
    let mapping = Mapping::aligned(&to, 0, 2 * PMD, MapFlags::SHARED)?;
    for (at, len, into) in [(0, PAGE, PAGE), (PMD, PMD, 0), (PAGE, 5 * PAGE, PMD - PAGE)] {
        expect_same("before", &mapping.load(0, 2 * PMD), &model)?;
        clone_range(&from, (at as u64, len as u64, into as u64), &to)?;
        model[into..into + len].copy_from_slice(&source[at..at + len]);
        expect_same(format!("{at}+{len} to {into}"), &mapping.load(0, 2 * PMD), &model)?;
        model[into..into + 9].fill(0);
        mapping.store(into, &[0; 9]);
    }
    expect_same("the source", &from.get_all()?, &source)
}

fn clone_of_parts_of_blocks_is_refused(site: &Site) -> Result<()> {
    needs_clones(site)?;
    let (from, _) = site.filled("from", 4 * PAGE)?;
    let (to, model) = site.filled("to", 4 * PAGE)?;
    let page = PAGE as u64;
    for part in [(1, page, 0), (0, page, 1), (0, 100, 0)] {
        let cloned = clone_range(&from, part, &to);
        expect_error(format!("{part:?}"), cloned, &[Errno::INVAL])?;
    }
    expect_same("the target", &to.get_all()?, &model)
}

fn equal_files_are_deduplicated_and_others_not(site: &Site) -> Result<()> {
    needs_clones(site)?;
    let (one, mut model) = site.filled("one", 16 * PAGE)?;
    let two = site.file("two")?;
    two.put(0, &model)?;
    let len = model.len() as u64;
    let mapping = Mapping::all(&two)?;
    mapping.store(9 * PAGE, &[1]);
    ensure!(!dedupe(&one, len, &two)?, "files that differ were taken as equal");
    mapping.store(9 * PAGE, &model[9 * PAGE..=9 * PAGE]);
    ensure!(dedupe(&one, len, &two)?, "files that are equal were taken to differ");
    expect_same("loaded", &mapping.load(0, model.len()), &model)?;
    mapping.store(0, &[2; PAGE]);
    expect_same("the other", &one.get_all()?, &model)?;
    model[..PAGE].fill(2);
    expect_same("it", &two.get_all()?, &model)
}

fn cut_and_punched_original_leaves_the_clone(site: &Site) -> Result<()> {
    let (mappings, files, model) = pair(site)?;
    for mapping in &mappings {
        expect_same("before", &mapping.load(0, LEN), &model)?;
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    files[0].allocate(punch, 100, PMD)?;
    files[0].allocate(FallocateFlags::ZERO_RANGE, PMD + 200, 3 * PAGE)?;
    files[0].set_len((PMD + 8 * PAGE + 50) as u64)?;
    files[0].set_len(0)?;
    expect_same("the clone", &mappings[1].load(0, LEN), &model)?;
    expect_same("read", &files[1].get_all()?, &model)
}

fn unshared_file_shares_nothing(site: &Site) -> Result<()> {
    let (mappings, files, mut model) = pair(site)?;
    fallocate(&files[1], FallocateFlags::UNSHARE_RANGE, 0, LEN as u64)?;
    let shared = extents(&files[1])?.iter().filter(|extent| extent.is_shared()).count();
    ensure!(shared == 0, "{shared} extents are still shared");
    expect_same("the clone", &mappings[1].load(0, LEN), &model)?;
    expect_same("the original", &mappings[0].load(0, LEN), &model)?;
    mappings[1].store(PAGE, &[1; PAGE]);
    expect_same("the original later", &files[0].get_all()?, &model)?;
    model[PAGE..2 * PAGE].fill(1);
    expect_same("the clone later", &files[1].get_all()?, &model)
}

fn clone_shows_what_was_stored_just_before(site: &Site) -> Result<()> {
    needs_clones(site)?;
    let original = site.sparse("original", PMD)?;
    let mapping = Mapping::aligned(&original, 0, PMD, MapFlags::SHARED)?;
    for round in 1..6 {
        let bytes = noise(round, PMD);
        mapping.store(0, &bytes);
        let clone = site.file(&format!("clone-{round}"))?;
        clone_file(&original, &clone)?;
        mapping.store(PAGE, &[0; PAGE]);
        expect_same(format!("round {round}"), &clone.get_all()?, &bytes)?;
    }
    Ok(())
}

fn clones_are_right_after_remount(site: &Site) -> Result<()> {
    let (mappings, files, model) = pair(site)?;
    let mut models = [model.clone(), model];
    for (seed, (at, len)) in (1..).zip(RANGES).take(10) {
        let which = usize::try_from(seed % 2)?;
        models[which][at..at + len].copy_from_slice(&noise(seed, len));
        mappings[which].store(at, &models[which][at..at + len]);
    }
    drop((mappings, files));
    site.remount()?;
    for (name, model) in ["original", "clone"].iter().zip(models) {
        expect_same(name, &site.open(name)?.get_all()?, &model)?;
    }
    Ok(())
}
