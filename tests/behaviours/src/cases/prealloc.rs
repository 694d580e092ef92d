// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Space that is allocated before there is data.

use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::mm::MapFlags;

use crate::case::cases;
use crate::data::{Bytes, RANGES, SPAN, expect_same, expect_touch, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD, Touch, extents};

cases! { "prealloc":
    keep_size_allocates_without_growing
    unwritten_space_is_zeroes_and_becomes_data
    one_store_makes_one_page_data
    allocated_space_shows_nothing_of_its_past
    allocating_changes_no_data
    allocated_space_beyond_the_end_is_zeroes_when_reached
    ; mounts:
    stores_to_unwritten_space_are_there_after_remount
}

fn keep_size_allocates_without_growing(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 100)?;
    file.allocate(FallocateFlags::KEEP_SIZE, 0, 2 * PMD)?;
    ensure!(file.metadata()?.blocks() * 512 >= 2 * PMD as u64, "nothing was allocated");
    expect_same("read", &file.get_all()?, &model)?;
    let mapping = Mapping::shared(&file, 0, 2 * PMD)?;
    expect_touch("beyond the end", mapping.touch_by_load(PMD)?, Touch::Bus)?;
    expect_touch("beyond the end", mapping.touch_by_store(PMD, 1)?, Touch::Bus)
}

fn unwritten_space_is_zeroes_and_becomes_data(site: &Site) -> Result<()> {
    let file = site.file("file")?;
    file.allocate(FallocateFlags::empty(), 0, SPAN)?;
    let mapping = Mapping::aligned(&file, 0, SPAN, MapFlags::SHARED)?;
    let mut model = vec![0; SPAN];
    expect_same("at first", &mapping.load(0, SPAN), &model)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
        expect_same(format!("stored {at}+{len}"), &file.get_all()?, &model)?;
    }
    let unwritten = extents(&file)?.iter().filter(|extent| extent.is_unwritten()).count();
    ensure!(unwritten == 0, "{unwritten} extents are still unwritten");
    Ok(())
}

fn one_store_makes_one_page_data(site: &Site) -> Result<()> {
    let file = site.file("file")?;
    file.allocate(FallocateFlags::empty(), 0, 4 * PMD)?;
    // An address that rules 2 MiB pages out.
    let mapping = Mapping::shared(&file, PAGE as u64, 3 * PMD)?;
    mapping.store(PMD + 17, &[0x77]);
    let mut model = vec![0; 4 * PMD];
    model[PAGE + PMD + 17] = 0x77;
    expect_same("read", &file.get_all()?, &model)?;
    expect_same("loaded", &mapping.load(0, 3 * PMD), &model[PAGE..PAGE + 3 * PMD])
}

fn allocated_space_shows_nothing_of_its_past(site: &Site) -> Result<()> {
    // As much as there is nearly, so that the blocks are the same.
    let most = usize::try_from(site.free()?)? / 10 * 8;
    let (secret, _) = site.filled("secret", 8 * PMD)?;
    secret.sync_all()?;
    std::fs::remove_file(site.path("secret"))?;
    drop(secret);
    let file = site.file("file")?;
    file.allocate(FallocateFlags::empty(), 0, most)?;
    let mapping = Mapping::all(&file)?;
    for at in (0..most - PAGE).step_by(PMD / 4) {
        mapping.store(at, &[1]);
        expect_zeroes(format!("beside {at}"), &mapping.load(at + 1, PAGE - 1))?;
    }
    for at in (0..most - PMD).step_by(PMD) {
        let bytes = file.get(at, PMD)?;
        let data = bytes.iter().filter(|byte| **byte != 0).count();
        ensure!(data == 4, "{data} bytes at {at} instead of 4");
    }
    Ok(())
}

fn allocating_changes_no_data(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::aligned(&file, 0, SPAN, MapFlags::SHARED)?;
    let mut model = vec![0; SPAN];
    for (seed, (at, len)) in (1..).zip(RANGES).step_by(2).take(4) {
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
    }
    file.allocate(FallocateFlags::empty(), 0, SPAN)?;
    expect_same("loaded", &mapping.load(0, SPAN), &model)?;
    model[PAGE..SPAN].copy_from_slice(&noise(9, SPAN - PAGE));
    mapping.store(PAGE, &model[PAGE..]);
    expect_same("read", &file.get_all()?, &model)
}

fn allocated_space_beyond_the_end_is_zeroes_when_reached(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", PAGE + 10)?;
    file.allocate(FallocateFlags::KEEP_SIZE, 0, 2 * PMD)?;
    let mapping = Mapping::shared(&file, 0, 2 * PMD)?;
    file.set_len(PMD as u64)?;
    model.resize(PMD, 0);
    expect_same("by truncate", &mapping.load(0, PMD), &model)?;
    file.put(2 * PMD - 5, &[5; 5])?;
    model.resize(2 * PMD, 0);
    model[2 * PMD - 5..].fill(5);
    expect_same("by write", &mapping.load(0, 2 * PMD), &model)
}

fn stores_to_unwritten_space_are_there_after_remount(site: &Site) -> Result<()> {
    let file = site.file("file")?;
    file.allocate(FallocateFlags::empty(), 0, SPAN)?;
    let mapping = Mapping::aligned(&file, 0, SPAN, MapFlags::SHARED)?;
    let mut model = vec![0; SPAN];
    for (seed, (at, len)) in (1..).zip(RANGES).take(8) {
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
    }
    drop((mapping, file));
    site.remount()?;
    expect_same("read", &site.open("file")?.get_all()?, &model)
}
