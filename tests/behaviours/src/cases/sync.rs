// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The calls that make what is stored durable. That it is then, only a power cut can show.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Result, ensure};
use rustix::io::Errno;
use rustix::mm::MsyncFlags;

use crate::case::cases;
use crate::data::{Bytes, SPAN, expect_error, expect_same, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "sync":
    msync_takes_the_flags_it_should
    msync_of_a_part_leaves_the_rest_to_be_synced
    every_way_to_sync_a_store_goes_well
    synced_pages_take_stores_again
    file_is_synced_through_a_reader
    writes_to_a_synchronous_file_are_loaded
    directory_is_synced_with_its_names
    ; mounts:
    names_are_right_after_remount
}

fn msync_takes_the_flags_it_should(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", 4 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    mapping.store(0, &[1; 4 * PAGE]);
    let all = 0..4 * PAGE;
    for flags in [MsyncFlags::ASYNC, MsyncFlags::SYNC, MsyncFlags::SYNC | MsyncFlags::INVALIDATE] {
        mapping.msync(all.clone(), flags)?;
    }
    mapping.msync(0..0, MsyncFlags::SYNC)?;
    mapping.msync(PAGE..PAGE + 1, MsyncFlags::SYNC)?;
    let both = mapping.msync(all.clone(), MsyncFlags::SYNC | MsyncFlags::ASYNC);
    expect_error("both at once", both, &[Errno::INVAL])?;
    let odd = mapping.msync(1..PAGE, MsyncFlags::SYNC);
    expect_error("from within a page", odd, &[Errno::INVAL])?;
    let (first, rest) = mapping.split(PAGE);
    drop(rest);
    expect_error("over a gap", first.msync(all, MsyncFlags::SYNC), &[Errno::NOMEM])
}

fn msync_of_a_part_leaves_the_rest_to_be_synced(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    let model = noise(1, SPAN);
    mapping.store(0, &model);
    for at in (0..SPAN - PAGE).step_by(PMD / 4) {
        mapping.msync(at..at + PAGE, MsyncFlags::SYNC)?;
    }
    expect_same("loaded", &mapping.load(0, SPAN), &model)?;
    mapping.sync()?;
    expect_same("read", &file.get_all()?, &model)
}

fn every_way_to_sync_a_store_goes_well(site: &Site) -> Result<()> {
    type Way = fn(&File, &Mapping) -> Result<()>;
    let ways: [(&str, Way); 6] = [
        ("msync", |_, mapping| Ok(mapping.sync()?)),
        ("fsync", |file, _| Ok(file.sync_all()?)),
        ("fdatasync", |file, _| Ok(file.sync_data()?)),
        ("syncfs", |file, _| Ok(rustix::fs::syncfs(file)?)),
        ("sync", |_, _| {
            rustix::fs::sync();
            Ok(())
        }),
        ("nothing", |_, _| Ok(())),
    ];
    let (file, mut model) = site.filled("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for (seed, (way, sync)) in (1..).zip(ways) {
        let bytes = noise(seed, 3 * PAGE);
        model[PMD - PAGE..PMD + 2 * PAGE].copy_from_slice(&bytes);
        mapping.store(PMD - PAGE, &bytes);
        sync(&file, &mapping)?;
        expect_same(way, &file.get_all()?, &model)?;
    }
    Ok(())
}

fn synced_pages_take_stores_again(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::all(&file)?;
    for round in 1..30 {
        let bytes = noise(round, PAGE + 3);
        let at = usize::try_from(round % 4)? * PMD / 2;
        mapping.store(at, &bytes);
        match round % 3 {
            0 => mapping.sync()?,
            1 => file.sync_data()?,
            _ => mapping.msync(at..at + PAGE + 3, MsyncFlags::SYNC)?,
        }
        expect_same(format!("round {round}"), &file.get(at, bytes.len())?, &bytes)?;
    }
    Ok(())
}

fn file_is_synced_through_a_reader(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", PMD)?;
    let mapping = Mapping::all(&file)?;
    let reader = File::open(site.path("file"))?;
    mapping.store(0, &[1; PMD]);
    reader.sync_all()?;
    Mapping::read_only(&reader, PMD)?.sync()?;
    expect_same("read", &reader.get_all()?, &[1; PMD])
}

fn writes_to_a_synchronous_file_are_loaded(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 8 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    for (seed, flag) in [(1, libc::O_SYNC), (2, libc::O_DSYNC)] {
        let synchronous = File::options().write(true).custom_flags(flag).open(site.path("file"))?;
        let bytes = noise(seed, 2 * PAGE + 9);
        let at = usize::try_from(seed)? * PAGE - 5;
        synchronous.put(at, &bytes)?;
        model[at..at + bytes.len()].copy_from_slice(&bytes);
        expect_same(format!("flag {flag:#o}"), &mapping.load(0, 8 * PAGE), &model)?;
    }
    Ok(())
}

fn directory_is_synced_with_its_names(site: &Site) -> Result<()> {
    std::fs::create_dir_all(site.path("one/two/three"))?;
    for name in ["one/two/three", "one/two", "one", ""] {
        File::open(site.path(name))?.sync_all()?;
    }
    let dir = File::open(site.path("one"))?;
    for round in 0..20 {
        let name = format!("one/{round}");
        site.filled(&name, 100)?.0.sync_all()?;
        dir.sync_all()?;
        std::fs::rename(site.path(&name), site.path(&format!("one/two/{round}")))?;
        dir.sync_data()?;
    }
    let left = std::fs::read_dir(site.path("one"))?.count();
    ensure!(left == 1, "{left} names are left");
    Ok(())
}

fn names_are_right_after_remount(site: &Site) -> Result<()> {
    std::fs::create_dir_all(site.path("from/deep"))?;
    std::fs::create_dir(site.path("to"))?;
    let mut models = Vec::new();
    for index in 0..50 {
        let (file, model) = site.filled(&format!("from/{index}"), 1000 * (index + 1))?;
        if index % 3 == 0 {
            file.sync_all()?;
        }
        std::fs::rename(site.path(&format!("from/{index}")), site.path(&format!("to/{index}")))?;
        models.push(model);
    }
    std::fs::rename(site.path("from/deep"), site.path("to/deep"))?;
    std::fs::hard_link(site.path("to/7"), site.path("to/deep/seven"))?;
    std::fs::remove_file(site.path("to/7"))?;
    site.top()?.sync_all()?;
    site.remount()?;
    for (index, model) in models.iter().enumerate() {
        let name = if index == 7 { "to/deep/seven".to_owned() } else { format!("to/{index}") };
        expect_same(&name, &site.open(&name)?.get_all()?, model)?;
    }
    crate::site::expect_gone(&site.path("to/7"))?;
    let left = std::fs::read_dir(site.path("from"))?.count();
    ensure!(left == 0, "{left} names are left");
    Ok(())
}
