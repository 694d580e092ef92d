// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes that the kernel moves by itself, between files and pipes.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::fs::{copy_file_range, sendfile};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use rustix::pipe::{SpliceFlags, pipe, splice};

use crate::case::cases;
use crate::data::{Bytes, RANGES, SPAN, expect_error, expect_same, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "transfer":
    stores_are_sent_from_a_file
    stores_are_spliced_out_of_a_file
    what_is_spliced_into_a_file_is_loaded
    ranges_are_copied_between_files
    ranges_are_copied_within_a_file
    holes_are_copied_as_zeroes
    mapping_is_written_to_a_pipe_and_filled_from_one
    vectors_of_mapped_memory_are_read_and_written
}

/// Reads all that comes, while `send` sends it.
fn received(send: impl FnOnce(File) -> Result<()>) -> Result<Vec<u8>> {
    let (mut reader, writer) = ends()?;
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        let sent = send(writer);
        let bytes = receiver.join().ok().context("the receiver panicked")??;
        sent.map(|()| bytes)
    })
}

/// The two ends of a pipe: where it is read, where it is written.
fn ends() -> Result<(File, File)> {
    let (reader, writer) = pipe()?;
    Ok((reader.into(), writer.into()))
}

fn stores_are_sent_from_a_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for (seed, (at, len)) in (1..).zip(RANGES) {
        model[at..at + len].copy_from_slice(&noise(seed, len));
        mapping.store(at, &model[at..at + len]);
        let bytes = received(|to| {
            let mut offset = at as u64;
            let end = (at + len) as u64;
            while offset < end {
                let left = usize::try_from(end - offset)?;
                let sent = sendfile(&to, &file, Some(&mut offset), left)?;
                ensure!(sent > 0, "it ends at {offset}");
            }
            Ok(())
        })?;
        expect_same(format!("{at}+{len}"), &bytes, &model[at..at + len])?;
    }
    Ok(())
}

fn stores_are_spliced_out_of_a_file(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    let model = noise(1, SPAN);
    mapping.store(0, &model);
    let bytes = received(|to| {
        let mut offset = 0;
        while splice(&file, Some(&mut offset), &to, None, SPAN, SpliceFlags::empty())? > 0 {}
        Ok(())
    })?;
    expect_same("all", &bytes, &model)
}

fn what_is_spliced_into_a_file_is_loaded(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    expect_zeroes("at first", &mapping.load(0, SPAN))?;
    let model = noise(2, SPAN - 100);
    let (reader, mut writer) = ends()?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let sent = writer.write_all(&model);
            drop(writer);
            sent
        });
        let mut offset = 100;
        while splice(&reader, None, &file, Some(&mut offset), SPAN, SpliceFlags::empty())? > 0 {}
        sender.join().ok().context("the sender panicked")??;
        expect_same("loaded", &mapping.load(100, model.len()), &model)
    })
}

/// `copy_file_range`, to its end.
fn copy(from: &File, at: usize, to: &File, into: usize, len: usize) -> Result<()> {
    let [mut at, mut into] = [at as u64, into as u64];
    let end = at + len as u64;
    while at < end {
        let left = usize::try_from(end - at)?;
        let copied = copy_file_range(from, Some(&mut at), to, Some(&mut into), left)?;
        ensure!(copied > 0, "the copy ends at {at}");
    }
    Ok(())
}

fn ranges_are_copied_between_files(site: &Site) -> Result<()> {
    let (from, mut source) = site.filled("from", SPAN)?;
    let (to, mut model) = site.filled("to", SPAN)?;
    let [here, there] = [Mapping::all(&from)?, Mapping::all(&to)?];
    for (seed, (at, len)) in (1..).zip(RANGES) {
        source[at..at + len].copy_from_slice(&noise(seed, len));
        here.store(at, &source[at..at + len]);
        // Some at the same place within a block, some elsewhere.
        let into = if seed % 2 == 0 { at } else { (SPAN - len).min(7) };
        copy(&from, at, &to, into, len)?;
        model[into..into + len].copy_from_slice(&source[at..at + len]);
        expect_same(format!("{at}+{len} to {into}"), &there.load(0, SPAN), &model)?;
    }
    // A copy isn't the same memory, even if it shares blocks for a while.
    there.store(0, &[1; PAGE]);
    expect_same("the source", &here.load(0, SPAN), &source)
}

fn ranges_are_copied_within_a_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for (at, into, len) in [(0, PMD, PAGE), (3, PMD + 9, 5000), (PMD, SPAN, PMD)] {
        copy(&file, at, &file, into, len)?;
        model.resize(model.len().max(into + len), 0);
        model.copy_within(at..at + len, into);
    }
    expect_same("loaded", &mapping.load(0, SPAN), &model[..SPAN])?;
    expect_same("read", &file.get_all()?, &model)?;
    let (mut at, mut into) = (0, PAGE as u64);
    let overlapping = copy_file_range(&file, Some(&mut at), &file, Some(&mut into), 2 * PAGE);
    expect_error("an overlapping copy", overlapping, &[Errno::INVAL])
}

fn holes_are_copied_as_zeroes(site: &Site) -> Result<()> {
    let from = site.sparse("from", 4 * PMD)?;
    from.put(PMD, b"an island")?;
    let (to, _) = site.filled("to", 4 * PMD)?;
    let mapping = Mapping::all(&to)?;
    copy(&from, 0, &to, 0, 4 * PMD)?;
    let mut model = vec![0; 4 * PMD];
    model[PMD..PMD + 9].copy_from_slice(b"an island");
    expect_same("loaded", &mapping.load(0, 4 * PMD), &model)
}

fn mapping_is_written_to_a_pipe_and_filled_from_one(site: &Site) -> Result<()> {
    let (from, source) = site.filled("from", SPAN)?;
    let here = Mapping::all(&from)?;
    let there = Mapping::all(&site.sparse("to", SPAN)?)?;
    let (mut reader, mut writer) = ends()?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| here.drain_by(0, SPAN, |bytes| writer.write_all(bytes)));
        there.fill_by(0, SPAN, |into| reader.read_exact(into))?;
        sender.join().ok().context("the sender panicked")??;
        expect_same("loaded", &there.load(0, SPAN), &source)
    })?;
    drop(there);
    expect_same("read", &site.open("to")?.get_all()?, &source)
}

fn vectors_of_mapped_memory_are_read_and_written(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 16 * PAGE)?;
    let other = site.sparse("other", 8 * PAGE)?;
    let mapping = Mapping::all(&other)?;
    mapping.store(0, &noise(1, 8 * PAGE));
    let (one, two) = mapping.split(4 * PAGE);
    one.drain_by(5, 3 * PAGE, |first| {
        two.drain_by(PAGE, 100, |second| {
            let vectors = [IoSlice::new(first), IoSlice::new(second)];
            let written = pwritev2(&file, &vectors, 50, ReadWriteFlags::DSYNC)?;
            ensure!(written == 3 * PAGE + 100, "{written} bytes were written");
            model[50..50 + written].copy_from_slice(&[first, second].concat());
            Ok(())
        })
    })?;
    expect_same("written", &file.get_all()?, &model)?;
    let read = one.fill_by(1, PAGE, |first| {
        two.fill_by(2, 2 * PAGE, |second| {
            let mut vectors = [IoSliceMut::new(first), IoSliceMut::new(second)];
            preadv2(&file, &mut vectors, 10, ReadWriteFlags::empty())
        })
    })?;
    ensure!(read == 3 * PAGE, "{read} bytes were read");
    expect_same("the first", &one.load(1, PAGE), &model[10..10 + PAGE])?;
    expect_same("the second", &two.load(2, 2 * PAGE), &model[10 + PAGE..10 + 3 * PAGE])
}
