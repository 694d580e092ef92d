// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads at one file at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::mm::MapFlags;

use crate::case::cases;
use crate::data::{Bytes, Random, expect_same, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "threads":
    pages_of_their_own_keep_each_threads_stores
    first_stores_to_the_same_pages_all_stay
    readers_see_what_was_stored_before_they_ask
    punches_and_stores_leave_one_or_the_other
    appended_file_is_loaded_up_to_its_size
    syncs_amid_stores_lose_nothing
    files_grow_side_by_side
}

/// Runs `work` in `count` threads, and returns the first error of theirs.
fn at_once(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || work(index))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("it panicked")?)
    })
}

fn pages_of_their_own_keep_each_threads_stores(site: &Site) -> Result<()> {
    const THREADS: usize = 6;
    let file = site.sparse("file", 2 * PMD)?;
    let mapping = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::SHARED)?;
    let pages = 2 * PMD / PAGE;
    at_once(THREADS, |index| {
        for round in 1..9 {
            let value = u8::try_from(round * 16 + index)?;
            for page in (index..pages).step_by(THREADS) {
                mapping.store(page * PAGE, &[value; PAGE]);
            }
            if round % 3 == index % 3 {
                file.sync_data()?;
            }
            for page in (index..pages).step_by(THREADS) {
                let what = format!("page {page} of thread {index} in round {round}");
                expect_same(&what, &file.get(page * PAGE, PAGE)?, &[value; PAGE])?;
            }
        }
        Ok(())
    })
}

fn first_stores_to_the_same_pages_all_stay(site: &Site) -> Result<()> {
    const THREADS: usize = 4;
    let pages = PMD / PAGE;
    for round in 0..4 {
        let file = site.sparse(&format!("file-{round}"), PMD)?;
        let aligned = Mapping::aligned(&file, 0, PMD, MapFlags::SHARED)?;
        let other = Mapping::all(&file)?;
        at_once(THREADS, |index| {
            let mapping = if index % 2 == 0 { &aligned } else { &other };
            for page in 0..pages {
                mapping.byte(page * PAGE + index).store(1, Relaxed);
            }
            Ok(())
        })?;
        let bytes = file.get_all()?;
        for (page, bytes) in bytes.chunks(PAGE).enumerate() {
            expect_same(format!("page {page}"), &bytes[..THREADS], &[1; THREADS])?;
            expect_zeroes(format!("rest of page {page}"), &bytes[THREADS..])?;
        }
    }
    Ok(())
}

fn readers_see_what_was_stored_before_they_ask(site: &Site) -> Result<()> {
    const ROUNDS: u32 = 4000;
    let file = site.sparse("file", 4 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    let stored = AtomicU32::new(0);
    at_once(3, |index| {
        if index == 0 {
            for round in 1..=ROUNDS {
                mapping.atomic(PAGE + 64).store(round, Relaxed);
                stored.store(round, Release);
            }
            return Ok(());
        }
        while stored.load(Acquire) < ROUNDS {
            let before = stored.load(Acquire);
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, PAGE as u64 + 64)?;
            let read = u32::from_ne_bytes(bytes);
            ensure!(read >= before, "{read} was read after {before} had been stored");
        }
        Ok(())
    })
}

fn punches_and_stores_leave_one_or_the_other(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", PMD)?;
    let mapping = Mapping::aligned(&file, 0, PMD, MapFlags::SHARED)?;
    let seed = site.seed;
    mapping.store(0, &vec![0xff; PMD]);
    at_once(4, |index| {
        let mut random = Random::new(seed + index as u64);
        for _ in 0..400 {
            let page = random.below(PMD / PAGE) * PAGE;
            if index == 0 {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                file.allocate(how, page, PAGE * (1 + random.below(4)))?;
            } else {
                mapping.byte(page + index).store(0xff, Relaxed);
                let found = mapping.byte(page).load(Relaxed);
                ensure!([0, 0xff].contains(&found), "{found:#x} at {page}");
            }
        }
        Ok(())
    })?;
    let bytes = file.get_all()?;
    let strange = bytes.iter().position(|byte| ![0, 0xff].contains(byte));
    ensure!(strange.is_none(), "something else at {strange:?}");
    expect_same("loaded", &mapping.load(0, PMD), &bytes[..PMD])
}

fn appended_file_is_loaded_up_to_its_size(site: &Site) -> Result<()> {
    let file = site.file("file")?;
    let model = noise(1, 1 << 20);
    let mapping = Mapping::shared(&file, 0, model.len())?;
    let done = AtomicBool::new(false);
    at_once(2, |index| {
        if index == 0 {
            let mut at = 0;
            for piece in model.chunks(3001) {
                file.put(at, piece)?;
                at += piece.len();
            }
            done.store(true, Release);
            return Ok(());
        }
        let mut seen = 0;
        while !done.load(Acquire) {
            let size = file.size()?;
            expect_same(format!("up to {size}"), &mapping.load(seen, size - seen), {
                &model[seen..size]
            })?;
            seen = size;
        }
        Ok(())
    })
}

fn syncs_amid_stores_lose_nothing(site: &Site) -> Result<()> {
    let file = site.sparse("file", 2 * PMD)?;
    let mapping = Mapping::all(&file)?;
    let storing = AtomicU32::new(3);
    let seed = site.seed;
    at_once(5, |index| {
        if index >= 3 {
            while storing.load(Acquire) > 0 {
                if index == 3 { file.sync_data()? } else { mapping.sync()? }
            }
            return Ok(());
        }
        // Each has a third of each page.
        let mut random = Random::new(seed + index as u64);
        let mut own = vec![0; 2 * PMD / PAGE];
        for round in 1..1500_u64 {
            let page = random.below(own.len());
            own[page] = round;
            mapping.store(page * PAGE + index * 1360, &round.to_ne_bytes());
        }
        storing.fetch_sub(1, Release);
        for (page, round) in own.into_iter().enumerate() {
            let found = file.get(page * PAGE + index * 1360, 8)?;
            expect_same(format!("page {page} of thread {index}"), &found, &round.to_ne_bytes())?;
        }
        Ok(())
    })
}

fn files_grow_side_by_side(site: &Site) -> Result<()> {
    const THREADS: usize = 4;
    let files: Vec<File> =
        (0..THREADS).map(|index| site.file(&format!("{index}"))).collect::<Result<_>>()?;
    at_once(THREADS, |index| {
        let file = &files[index];
        let mapping = Mapping::shared(file, 0, PMD)?;
        let mut random = Random::new(index as u64);
        let mut model = Vec::new();
        while model.len() < PMD {
            let len = (1 + random.below(30_000)).min(PMD - model.len());
            let bytes = noise(random.next(), len);
            if random.below(2) == 0 {
                file.put(model.len(), &bytes)?;
            } else {
                file.set_len((model.len() + len) as u64)?;
                mapping.store(model.len(), &bytes);
            }
            model.extend(bytes);
        }
        expect_same(format!("file {index}"), &file.get_all()?, &model)
    })
}
