// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A filesystem that is held still, and let go.

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use crate::case::cases;
use crate::data::{Bytes, expect_error, expect_same};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, freeze, thaw};

cases! { "freeze":
    write_waits_for_the_thaw
    store_to_a_hole_waits_for_the_thaw
    store_to_synced_data_waits_for_the_thaw
    loads_and_reads_go_on
    frozen_twice_is_refused
}

/// Long enough for what isn't held up to be through, though nothing fails if it isn't.
const WHILE: Duration = Duration::from_millis(500);

/// Does `change` while the filesystem is frozen, and looks whether it waits.
fn waits(site: &Site, file: &File, change: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let top = site.top()?;
    let before = file.get_all()?;
    freeze(&top)?;
    let [begun, done] = [const { AtomicBool::new(false) }; 2];
    thread::scope(|scope| {
        let changing = scope.spawn(|| {
            begun.store(true, Release);
            let changed = change();
            done.store(true, Release);
            changed
        });
        while !begun.load(Acquire) {
            thread::yield_now();
        }
        thread::sleep(WHILE);
        let early = done.load(Acquire);
        let meanwhile = file.get_all();
        // Whatever was found: nobody else ends the other's wait.
        thaw(&top)?;
        changing.join().ok().context("it panicked")??;
        ensure!(!early, "it went through while the filesystem was frozen");
        expect_same("while it was frozen", &meanwhile?, &before)
    })
}

fn write_waits_for_the_thaw(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 4 * PAGE)?;
    waits(site, &file, || file.put(PAGE, &[1; PAGE]))?;
    model[PAGE..2 * PAGE].fill(1);
    expect_same("after the thaw", &file.get_all()?, &model)
}

fn store_to_a_hole_waits_for_the_thaw(site: &Site) -> Result<()> {
    let file = site.sparse("file", 4 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    waits(site, &file, || {
        mapping.byte(PAGE).store(1, Relaxed);
        Ok(())
    })?;
    expect_same("after the thaw", &file.get(PAGE, 2)?, &[1, 0])
}

fn store_to_synced_data_waits_for_the_thaw(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 4 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    // Mapped for writing until the freeze takes that away.
    mapping.store(0, &model);
    waits(site, &file, || {
        mapping.byte(PAGE).store(0, Relaxed);
        Ok(())
    })?;
    model[PAGE] = 0;
    expect_same("after the thaw", &file.get_all()?, &model)
}

fn loads_and_reads_go_on(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 16 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    let top = site.top()?;
    freeze(&top)?;
    let [loaded, read] = [Ok(mapping.load(0, model.len())), file.get_all()];
    thaw(&top)?;
    expect_same("loaded", &loaded?, &model)?;
    expect_same("read", &read?, &model)
}

fn frozen_twice_is_refused(site: &Site) -> Result<()> {
    let top = site.top()?;
    freeze(&top)?;
    let again = freeze(&top);
    thaw(&top)?;
    expect_error("a second freeze", again, &[Errno::BUSY])?;
    expect_error("a second thaw", thaw(&top), &[Errno::INVAL])
}
