// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mappings shared by processes.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use anyhow::{Result, ensure};
use rustix::mm::MapFlags;
use rustix::thread::futex;

use crate::case::cases;
use crate::data::{Bytes, expect_same, noise};
use crate::site::Site;
use crate::sys::{Child, End, Mapping, PAGE, PMD};

cases! { "processes":
    child_shares_the_mapping
    child_has_private_pages_of_its_own
    mapping_outlives_the_process_that_made_it
    processes_count_together
    process_is_woken_through_the_mapping
}

fn child_shares_the_mapping(site: &Site) -> Result<()> {
    let file = site.sparse("file", 2 * PMD)?;
    let mapping = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::SHARED)?;
    let [ours, theirs] = [1, 2].map(|seed| noise(seed, 3 * PAGE));
    mapping.store(PMD - PAGE, &ours);
    let child = Child::run(|| {
        let found = mapping.load(PMD - PAGE, ours.len()) == ours;
        mapping.store(PAGE, &theirs);
        u8::from(!found)
    })?;
    ensure!(child.wait()? == End::Exit(0), "the child doesn't find what was stored");
    expect_same("stored by the child", &mapping.load(PAGE, theirs.len()), &theirs)?;
    expect_same("read", &file.get(PAGE, theirs.len())?, &theirs)
}

fn child_has_private_pages_of_its_own(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 4 * PAGE)?;
    let private = Mapping::private(&file, 4 * PAGE)?;
    private.store(0, &[7; PAGE]);
    let child = Child::run(|| {
        let inherited = private.load(0, PAGE) == [7; PAGE];
        private.store(0, &[8; 2 * PAGE]);
        u8::from(!inherited)
    })?;
    ensure!(child.wait()? == End::Exit(0), "the child didn't inherit the copy");
    expect_same("ours", &private.load(0, PAGE), &[7; PAGE])?;
    expect_same("the file's", &private.load(PAGE, PAGE), &model[PAGE..2 * PAGE])?;
    expect_same("the file", &file.get_all()?, &model)
}

fn mapping_outlives_the_process_that_made_it(site: &Site) -> Result<()> {
    let file = site.sparse("file", 4 * PAGE)?;
    let bytes = noise(5, 4 * PAGE);
    let child = Child::run(|| {
        let Ok(mapping) = Mapping::all(&file) else { return 1 };
        mapping.store(0, &bytes);
        // No msync: what a process has stored doesn't go with it.
        0
    })?;
    ensure!(child.wait()? == End::Exit(0), "the child has no mapping");
    expect_same("read", &file.get_all()?, &bytes)
}

fn processes_count_together(site: &Site) -> Result<()> {
    const COUNTS: u32 = 20_000;
    let file = site.sparse("file", PAGE)?;
    let mapping = Mapping::all(&file)?;
    let count = || {
        for _ in 0..COUNTS {
            mapping.atomic(8).fetch_add(1, Relaxed);
        }
        0
    };
    let children = [Child::run(count)?, Child::run(count)?, Child::run(count)?];
    count();
    for child in children {
        ensure!(child.wait()? == End::Exit(0), "a child failed");
    }
    let counted = mapping.atomic(8).load(Relaxed);
    ensure!(counted == 4 * COUNTS, "{counted} counted of {}", 4 * COUNTS);
    expect_same("read", &file.get(8, 4)?, &(4 * COUNTS).to_ne_bytes())
}

fn process_is_woken_through_the_mapping(site: &Site) -> Result<()> {
    const ROUNDS: u32 = 200;
    let file = site.sparse("file", PAGE)?;
    let mapping = Mapping::all(&file)?;
    // Each has its own mapping of the file: the kernel must find that both mean the same word.
    let other = Mapping::all(&file)?;
    let child = Child::run(|| u8::from(!take_turns(&other, 1, ROUNDS)))?;
    ensure!(take_turns(&mapping, 0, ROUNDS), "waiting failed");
    ensure!(child.wait()? == End::Exit(0), "the child's waiting failed");
    let turn = mapping.atomic(0).load(Acquire);
    ensure!(turn == 2 * ROUNDS, "turn {turn}");
    Ok(())
}

/// Adds one whenever it is odd, or even, waiting for the other side to do the same.
fn take_turns(mapping: &Mapping, odd: u32, rounds: u32) -> bool {
    let word = mapping.atomic(0);
    for _ in 0..rounds {
        loop {
            let turn = word.load(Acquire);
            if turn % 2 == odd {
                word.store(turn + 1, Release);
                break;
            }
            match futex::wait(word, futex::Flags::empty(), turn, None) {
                Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if futex::wake(word, futex::Flags::empty(), 1).is_err() {
            return false;
        }
    }
    true
}
