// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Holes, and what makes them under a mapping.

use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::case::cases;
use crate::data::{Bytes, RANGES, SPAN, expect_error, expect_same, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "holes":
    hole_is_zeroes_until_stored_to
    store_to_a_hole_fills_no_neighbour
    punched_range_is_zeroes_and_comes_back
    punched_blocks_are_freed
    zeroed_range_is_zeroes
    zeroing_beyond_the_end_grows_the_file_or_not
    collapsed_range_is_gone_from_the_mapping
    inserted_range_is_zeroes_in_the_mapping
    collapse_and_insert_of_odd_ranges_are_refused
    data_and_holes_are_found
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn hole_is_zeroes_until_stored_to(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let [one, two] = [Mapping::all(&file)?, Mapping::all(&file)?];
    for mapping in [&one, &two] {
        expect_zeroes("loaded", &mapping.load(0, SPAN))?;
    }
    let bytes = noise(1, SPAN);
    // Backwards, a byte of each page first.
    for at in (0..SPAN).step_by(PAGE).rev() {
        one.store(at, &bytes[at..=at]);
        expect_same(format!("byte {at}"), &two.load(at, 1), &bytes[at..=at])?;
        let end = SPAN.min(at + PAGE);
        expect_zeroes("the rest of its page", &two.load(at + 1, end - at - 1))?;
    }
    two.store(0, &bytes);
    expect_same("all", &file.get_all()?, &bytes)
}

fn store_to_a_hole_fills_no_neighbour(site: &Site) -> Result<()> {
    // What the blocks held before must not show.
    let (secret, _) = site.filled("secret", 8 * PMD)?;
    secret.sync_all()?;
    drop(secret);
    std::fs::remove_file(site.path("secret"))?;
    let file = site.sparse("file", 4 * PMD)?;
    let mapping = Mapping::aligned(&file, 0, 4 * PMD, MapFlags::SHARED)?;
    let mut model = vec![0; 4 * PMD];
    for at in [0, 5 * PAGE + 9, PMD - 1, PMD, 3 * PMD - PAGE] {
        model[at] = 0xa5;
        mapping.store(at, &[0xa5]);
    }
    expect_same("loaded", &mapping.load(0, 4 * PMD), &model)?;
    expect_same("read", &file.get_all()?, &model)
}

fn punched_range_is_zeroes_and_comes_back(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::aligned(&file, 0, SPAN, MapFlags::SHARED)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        expect_same(format!("before {at}+{len}"), &mapping.load(0, SPAN), &model)?;
        file.allocate(PUNCH, at, len)?;
        model[at..at + len].fill(0);
        expect_same(format!("punched {at}+{len}"), &mapping.load(0, SPAN), &model)?;
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
        expect_same(format!("stored {at}+{len}"), &file.get_all()?, &model)?;
    }
    Ok(())
}

fn punched_blocks_are_freed(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 4 * PMD)?;
    file.sync_all()?;
    let mapping = Mapping::all(&file)?;
    expect_same("loaded", &mapping.load(0, 4 * PMD), &model)?;
    let before = file.metadata()?.blocks() * 512;
    file.allocate(PUNCH, PMD, 2 * PMD)?;
    let after = file.metadata()?.blocks() * 512;
    ensure!(before - after >= 2 * PMD as u64, "{before} bytes before, {after} after");
    ensure!(file.size()? == 4 * PMD, "the size has changed");
    expect_zeroes("the hole", &mapping.load(PMD, 2 * PMD))
}

fn zeroed_range_is_zeroes(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::aligned(&file, 0, SPAN, MapFlags::SHARED)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        file.allocate(FallocateFlags::ZERO_RANGE, at, len)?;
        model[at..at + len].fill(0);
        expect_same(format!("zeroed {at}+{len}"), &mapping.load(0, SPAN), &model)?;
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
    }
    expect_same("all", &file.get_all()?, &model)
}

fn zeroing_beyond_the_end_grows_the_file_or_not(site: &Site) -> Result<()> {
    let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let (file, mut model) = site.filled("file", PAGE + 100)?;
    file.allocate(keep, PAGE, 4 * PAGE)?;
    model[PAGE..].fill(0);
    expect_same("with KEEP_SIZE", &file.get_all()?, &model)?;
    file.allocate(FallocateFlags::ZERO_RANGE, PAGE + 50, 4 * PAGE)?;
    model.resize(PAGE + 50 + 4 * PAGE, 0);
    expect_same("without", &file.get_all()?, &model)
}

fn collapsed_range_is_gone_from_the_mapping(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 3 * PMD + 77)?;
    let mapping = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::SHARED)?;
    for (at, len) in [(PAGE, PAGE), (5 * PAGE, 3 * PAGE), (0, 2 * PAGE), (PMD - PAGE, PMD / 2)] {
        expect_same("before", &mapping.load(0, 2 * PMD), &model[..2 * PMD])?;
        file.allocate(FallocateFlags::COLLAPSE_RANGE, at, len)?;
        model.drain(at..at + len);
        expect_same(format!("collapsed {at}+{len}"), &mapping.load(0, 2 * PMD), &model[..2 * PMD])?;
        model[at..at + 9].fill(0xc3);
        mapping.store(at, &[0xc3; 9]);
    }
    expect_same("all", &file.get_all()?, &model)
}

fn inserted_range_is_zeroes_in_the_mapping(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 2 * PMD + 77)?;
    let mapping = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::SHARED)?;
    for (at, len) in [(PAGE, PAGE), (0, 2 * PAGE), (PMD - PAGE, 4 * PAGE), (PAGE, PMD / 2)] {
        expect_same("before", &mapping.load(0, 2 * PMD), &model[..2 * PMD])?;
        file.allocate(FallocateFlags::INSERT_RANGE, at, len)?;
        model.splice(at..at, std::iter::repeat_n(0, len));
        expect_same(format!("inserted {at}+{len}"), &mapping.load(0, 2 * PMD), &model[..2 * PMD])?;
        let bytes = noise(len as u64, 30);
        model[at + 5..at + 35].copy_from_slice(&bytes);
        mapping.store(at + 5, &bytes);
    }
    expect_same("all", &file.get_all()?, &model)
}

fn collapse_and_insert_of_odd_ranges_are_refused(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 4 * PAGE)?;
    let refused = [
        ("collapse of a part of a block", FallocateFlags::COLLAPSE_RANGE, 100, PAGE),
        ("collapse of the end", FallocateFlags::COLLAPSE_RANGE, 2 * PAGE, 2 * PAGE),
        ("insert at a part of a block", FallocateFlags::INSERT_RANGE, PAGE, 100),
        ("insert at the end", FallocateFlags::INSERT_RANGE, 4 * PAGE, PAGE),
    ];
    for (what, how, at, len) in refused {
        expect_error(what, file.allocate(how, at, len), &[Errno::INVAL])?;
    }
    expect_same("all", &file.get_all()?, &model)
}

fn data_and_holes_are_found(site: &Site) -> Result<()> {
    let file = site.sparse("file", 64 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    ensure!(seek(&file, SeekFrom::Data(0)) == Err(Errno::NXIO), "data in a hole");
    // A load must not make data of a hole, a store must, and be found before it is synced.
    expect_zeroes("a hole", &mapping.load(0, 64 * PAGE))?;
    ensure!(seek(&file, SeekFrom::Data(0)) == Err(Errno::NXIO), "data in a hole that was loaded");
    mapping.store(16 * PAGE + 1, &[1]);
    let data = seek(&file, SeekFrom::Data(0))?;
    let hole = seek(&file, SeekFrom::Hole(data))?;
    let page = 16 * PAGE as u64;
    ensure!(data == page, "data at {data}, where {page} was stored to");
    ensure!(hole == page + PAGE as u64, "the next hole at {hole}");
    file.allocate(PUNCH, 16 * PAGE, PAGE)?;
    ensure!(seek(&file, SeekFrom::Data(0)) == Err(Errno::NXIO), "data after punching it");
    Ok(())
}
