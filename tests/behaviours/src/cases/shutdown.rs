// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A filesystem that is shut down, as after an error, and mounted again.

use std::fs::{remove_file, rename};

use anyhow::{Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::case::cases;
use crate::data::{Bytes, SPAN, expect_error, expect_same, expect_touch, noise};
use crate::site::{Site, expect_gone};
use crate::sys::{GoDown, Mapping, PAGE, PMD, Touch, go_down};

cases! { "shutdown":
    ; mounts:
    nothing_goes_on_after_a_shutdown
    log_that_is_written_brings_everything_back
    what_was_synced_is_there_without_the_log
    stores_to_new_space_are_there_once_synced
    what_was_not_synced_is_old_or_new
    unlinked_open_file_is_gone_and_its_space_free
    synced_names_are_there
}

/// Shuts the filesystem down, and mounts it again.
fn shut_down(site: &Site, how: GoDown) -> Result<()> {
    go_down(&site.top()?, how)?;
    site.remount()
}

fn nothing_goes_on_after_a_shutdown(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", PMD)?;
    file.set_len(2 * PMD as u64)?;
    file.sync_all()?;
    let mapping = Mapping::all(&file)?;
    go_down(&site.top()?, GoDown::LogFlush)?;
    expect_error("a write", file.put(0, &[1]), &[Errno::IO])?;
    expect_error("a sync", file.sync_all(), &[Errno::IO])?;
    expect_error("a new file", site.file("new"), &[Errno::IO])?;
    if site.dax {
        // Without, there is a page to store to, which never comes to the device.
        expect_touch("a store to a hole", mapping.touch_by_store(PMD, 1)?, Touch::Bus)?;
    }
    drop((mapping, file));
    site.remount()?;
    expect_same("after a remount", &site.open("file")?.get(0, PMD)?, &model)
}

fn log_that_is_written_brings_everything_back(site: &Site) -> Result<()> {
    let (synced, one) = site.filled("one", SPAN)?;
    synced.sync_all()?;
    let (_, two) = site.filled("two", SPAN)?;
    drop(synced);
    shut_down(site, GoDown::LogFlush)?;
    expect_same("the synced one", &site.open("one")?.get_all()?, &one)?;
    if site.dax {
        // What was written was written at once; only the log was to come.
        expect_same("the other", &site.open("two")?.get_all()?, &two)?;
    }
    Ok(())
}

fn what_was_synced_is_there_without_the_log(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    file.sync_all()?;
    let mapping = Mapping::all(&file)?;
    for (seed, at) in (1..).zip([0, PAGE + 3, PMD - 9, SPAN - 2 * PAGE]) {
        model[at..at + PAGE].copy_from_slice(&noise(seed, PAGE));
        mapping.store(at, &model[at..at + PAGE]);
    }
    mapping.sync()?;
    drop((mapping, file));
    shut_down(site, GoDown::NoLogFlush)?;
    expect_same("read", &site.open("file")?.get_all()?, &model)
}

fn stores_to_new_space_are_there_once_synced(site: &Site) -> Result<()> {
    let hole = site.sparse("hole", SPAN)?;
    let unwritten = site.file("unwritten")?;
    unwritten.allocate(FallocateFlags::empty(), 0, SPAN)?;
    let mut model = vec![0; SPAN];
    let stored = PMD - PAGE - 5..PMD + 2 * PAGE;
    model[stored.clone()].copy_from_slice(&noise(1, stored.len()));
    for file in [&hole, &unwritten] {
        let mapping = Mapping::all(file)?;
        mapping.store(stored.start, &model[stored.clone()]);
        mapping.sync()?;
    }
    drop((hole, unwritten));
    shut_down(site, GoDown::NoLogFlush)?;
    for name in ["hole", "unwritten"] {
        expect_same(name, &site.open(name)?.get_all()?, &model)?;
    }
    Ok(())
}

fn what_was_not_synced_is_old_or_new(site: &Site) -> Result<()> {
    // What the blocks held before is neither.
    let (secret, _) = site.filled("secret", 8 * PMD)?;
    secret.sync_all()?;
    drop(secret);
    remove_file(site.path("secret"))?;
    let file = site.sparse("file", SPAN)?;
    file.sync_all()?;
    let mapping = Mapping::all(&file)?;
    let new = vec![0xd7; SPAN];
    mapping.store(0, &new);
    drop((mapping, file));
    shut_down(site, GoDown::NoLogFlush)?;
    let found = site.open("file")?.get_all()?;
    ensure!(found.len() == SPAN, "{} bytes are left of {SPAN}", found.len());
    let strange = found.iter().position(|byte| ![0, 0xd7].contains(byte));
    ensure!(strange.is_none(), "something else at {strange:?}");
    Ok(())
}

fn unlinked_open_file_is_gone_and_its_space_free(site: &Site) -> Result<()> {
    // Once before, so that what the filesystem makes for its own use is there.
    site.filled("other", PAGE)?.0.sync_all()?;
    site.remount()?;
    let before = site.free()?;
    let (file, _) = site.filled("file", 16 * PMD)?;
    file.sync_all()?;
    let mapping = Mapping::all(&file)?;
    remove_file(site.path("file"))?;
    site.top()?.sync_all()?;
    go_down(&site.top()?, GoDown::LogFlush)?;
    drop((mapping, file));
    site.remount()?;
    expect_gone(&site.path("file"))?;
    // XFS frees such files after the mount has returned; this waits for it.
    site.remount()?;
    let difference = before.abs_diff(site.free()?);
    ensure!(difference < PMD as u64, "{difference} bytes more or less are free than before");
    Ok(())
}

fn synced_names_are_there(site: &Site) -> Result<()> {
    let mut models = Vec::new();
    for index in 0..12 {
        let (file, model) = site.filled(&format!("new-{index}"), 5000 + index)?;
        file.sync_all()?;
        rename(site.path(&format!("new-{index}")), site.path(&format!("old-{index}")))?;
        models.push(model);
    }
    site.top()?.sync_all()?;
    shut_down(site, GoDown::NoLogFlush)?;
    for (index, model) in models.iter().enumerate() {
        let name = format!("old-{index}");
        expect_same(&name, &site.open(&name)?.get_all()?, model)?;
        expect_gone(&site.path(&format!("new-{index}")))?;
    }
    Ok(())
}
