// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! There is one copy of a file, whichever way leads to it.

use std::fs::{File, hard_link};
use std::io::Write;

use anyhow::Result;

use crate::case::cases;
use crate::data::{Bytes, RANGES, SPAN, expect_same, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "coherence":
    what_is_written_is_loaded
    what_is_stored_is_read
    two_mappings_are_one_memory
    mappings_of_two_names_are_one_memory
    writes_and_stores_take_turns_within_a_page
    write_before_first_load_is_loaded
    writes_into_a_hole_replace_zeroes_that_were_loaded
    appended_bytes_appear_in_a_longer_mapping
    file_is_read_into_a_mapping_of_itself
    file_is_written_from_a_mapping_of_itself
    mapping_at_a_far_offset_is_that_offset
    ; mounts:
    what_was_stored_is_there_after_remount
    what_was_written_without_dax_is_loaded_with_it
}

fn what_is_written_is_loaded(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        let bytes = noise(seed, len);
        file.put(at, &bytes)?;
        model[at..at + len].copy_from_slice(&bytes);
        expect_same(format!("load {at}+{len}"), &mapping.load(at, len), &bytes)?;
    }
    expect_same("all", &mapping.load(0, SPAN), &model)
}

fn what_is_stored_is_read(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        let bytes = noise(seed, len);
        mapping.store(at, &bytes);
        model[at..at + len].copy_from_slice(&bytes);
        expect_same(format!("read {at}+{len}"), &file.get(at, len)?, &bytes)?;
    }
    expect_same("all", &file.get_all()?, &model)
}

fn two_mappings_are_one_memory(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    // Of which one can have 2 MiB pages and one can't.
    let one = Mapping::aligned(&file, 0, SPAN, rustix::mm::MapFlags::SHARED)?;
    let two = Mapping::shared(&file, PAGE as u64, SPAN - PAGE)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        if at < PAGE {
            continue;
        }
        let bytes = noise(seed, len);
        one.store(at, &bytes);
        expect_same(format!("{at}+{len}, here"), &two.load(at - PAGE, len), &bytes)?;
        let bytes = noise(seed + 100, len);
        two.store(at - PAGE, &bytes);
        expect_same(format!("{at}+{len}, there"), &one.load(at, len), &bytes)?;
    }
    Ok(())
}

fn mappings_of_two_names_are_one_memory(site: &Site) -> Result<()> {
    let (file, _) = site.filled("one", 3 * PAGE)?;
    hard_link(site.path("one"), site.path("two"))?;
    let other = File::options().read(true).write(true).open(site.path("two"))?;
    let [here, there] = [Mapping::all(&file)?, Mapping::all(&other)?];
    drop((file, other));
    let bytes = noise(5, 2 * PAGE);
    here.store(100, &bytes);
    expect_same("through the other name", &there.load(100, bytes.len()), &bytes)
}

fn writes_and_stores_take_turns_within_a_page(site: &Site) -> Result<()> {
    let file = site.sparse("file", 2 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    let model = noise(3, 2 * PAGE);
    for (turn, (at, piece)) in model.chunks(61).scan(0, place).enumerate() {
        match turn % 2 {
            0 => mapping.store(at, piece),
            _ => file.put(at, piece)?,
        }
    }
    expect_same("read", &file.get_all()?, &model)?;
    expect_same("loaded", &mapping.load(0, 2 * PAGE), &model)
}

/// A piece, with where it begins.
fn place<'a>(end: &mut usize, piece: &'a [u8]) -> Option<(usize, &'a [u8])> {
    let at = *end;
    *end += piece.len();
    Some((at, piece))
}

fn write_before_first_load_is_loaded(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    let bytes = noise(1, SPAN);
    file.put(0, &bytes)?;
    expect_same("loaded", &mapping.load(0, SPAN), &bytes)
}

fn writes_into_a_hole_replace_zeroes_that_were_loaded(site: &Site) -> Result<()> {
    for (seed, (at, len)) in (1..).zip(RANGES) {
        let file = site.sparse(&format!("file-{seed}"), SPAN)?;
        // Of which one has 2 MiB of zeroes as one page, where there are such.
        let mappings =
            [Mapping::all(&file)?, Mapping::aligned(&file, 0, SPAN, rustix::mm::MapFlags::SHARED)?];
        for mapping in &mappings {
            expect_zeroes("a hole", &mapping.load(0, SPAN))?;
        }
        let bytes = noise(seed, len);
        file.put(at, &bytes)?;
        for mapping in &mappings {
            expect_same(format!("{at}+{len}"), &mapping.load(at, len), &bytes)?;
            expect_zeroes(format!("before {at}"), &mapping.load(0, at))?;
            let end = at + len;
            expect_zeroes(format!("behind {end}"), &mapping.load(end, SPAN - end))?;
        }
    }
    Ok(())
}

fn appended_bytes_appear_in_a_longer_mapping(site: &Site) -> Result<()> {
    let mut file = site.file("file")?;
    let mapping = Mapping::shared(&file, 0, 5 * PAGE)?;
    let model = noise(2, 5 * PAGE);
    for (at, piece) in model.chunks(1000).scan(0, place) {
        file.write_all(piece)?;
        expect_same(format!("at {at}"), &mapping.load(at, piece.len()), piece)?;
    }
    expect_same("all", &mapping.load(0, 5 * PAGE), &model)
}

fn file_is_read_into_a_mapping_of_itself(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 8 * PAGE)?;
    file.set_len(16 * PAGE as u64)?;
    model.resize(16 * PAGE, 0);
    let mapping = Mapping::all(&file)?;
    // Into a hole, and over data; neither is mapped yet.
    for (to, from, len) in [(9 * PAGE + 5, PAGE - 3, 3 * PAGE), (2 * PAGE, 6 * PAGE + 1, 1000)] {
        mapping.fill_by(to, len, |into| {
            std::os::unix::fs::FileExt::read_exact_at(&file, into, from as u64)
        })?;
        model.copy_within(from..from + len, to);
    }
    expect_same("all", &file.get_all()?, &model)
}

fn file_is_written_from_a_mapping_of_itself(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 8 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    // The last one grows the file. None of what is read is mapped yet: it is while the file is being
    // written.
    for (from, to, len) in [(0, 2 * PAGE + 5, 1000), (4 * PAGE - 1, PAGE, 2), (PAGE, 8 * PAGE, 50)]
    {
        mapping.drain_by(from, len, |bytes| file.put(to, bytes))?;
        model.resize(model.len().max(to + len), 0);
        model.copy_within(from..from + len, to);
    }
    expect_same("all", &file.get_all()?, &model)
}

fn mapping_at_a_far_offset_is_that_offset(site: &Site) -> Result<()> {
    // Beyond 32 bits of bytes, and of pages.
    for (index, far) in [(5_u64 << 30) + PAGE as u64, (1 << 43)].into_iter().enumerate() {
        let file = site.sparse(&format!("file-{index}"), 0)?;
        file.set_len(far + (2 * PMD) as u64)?;
        let mapping = Mapping::shared(&file, far, 2 * PMD)?;
        let bytes = noise(far, 3 * PAGE);
        mapping.store(PMD - PAGE, &bytes);
        let at = usize::try_from(far)? + PMD - PAGE;
        expect_same(format!("at {at}"), &file.get(at, bytes.len())?, &bytes)?;
        expect_zeroes("before it", &file.get(at - PAGE, PAGE)?)?;
        expect_zeroes("at the beginning", &file.get(0, PAGE)?)?;
    }
    Ok(())
}

fn what_was_stored_is_there_after_remount(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for (seed, (at, len)) in (1..).zip(RANGES).take(8) {
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
    }
    drop((mapping, file));
    site.remount()?;
    let file = site.open("file")?;
    expect_same("loaded", &Mapping::all(&file)?.load(0, SPAN), &model)?;
    expect_same("read", &file.get_all()?, &model)
}

fn what_was_written_without_dax_is_loaded_with_it(site: &Site) -> Result<()> {
    site.needs_dax()?;
    site.replace(&[], "dax=never")?;
    let (file, model) = site.filled("file", SPAN)?;
    let stored = noise(9, 2 * PAGE);
    Mapping::all(&file)?.store(PMD - PAGE, &stored);
    drop(file);
    site.remount()?;
    let mut model = model;
    model[PMD - PAGE..PMD + PAGE].copy_from_slice(&stored);
    let file = site.open("file")?;
    let mapping = Mapping::all(&file)?;
    expect_same("with DAX", &mapping.load(0, SPAN), &model)?;
    model[7..7 + PMD].copy_from_slice(&noise(10, PMD));
    mapping.store(7, &model[7..7 + PMD]);
    drop((mapping, file));
    site.unmount()?;
    site.mount_with("dax=never")?;
    expect_same("without DAX again", &site.open("file")?.get_all()?, &model)
}
