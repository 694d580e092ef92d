// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is done to mappings.

use std::fs::{self, File};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::case::cases;
use crate::data::{Bytes, SPAN, expect_error, expect_same, expect_touch, expect_zeroes, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD, Touch};

cases! { "mappings":
    private_stores_stay_private
    private_copy_is_not_changed_by_writes
    private_copy_of_a_hole_fills_nothing
    mapping_survives_close_and_unlink
    read_only_mapping_refuses_stores
    mapping_may_do_no_more_than_its_file
    protection_is_taken_and_given_back
    moved_and_grown_mapping_shows_the_file
    halves_of_a_mapping_go_alone
    dropped_pages_come_back
    populated_mapping_shows_the_file
    mapping_can_be_locked
    synchronous_mapping_is_refused
    mapping_is_reached_through_proc_mem
}

fn private_stores_stay_private(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", SPAN)?;
    let private = Mapping::private(&file, SPAN)?;
    let shared = Mapping::all(&file)?;
    let mut own = model.clone();
    for at in [0, PAGE - 1, 5 * PAGE + 7, PMD - 1, PMD, SPAN - 1] {
        own[at] = !own[at];
        private.store(at, &own[at..=at]);
    }
    expect_same("private", &private.load(0, SPAN), &own)?;
    expect_same("shared", &shared.load(0, SPAN), &model)?;
    expect_same("read", &file.get_all()?, &model)
}

fn private_copy_is_not_changed_by_writes(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 4 * PAGE)?;
    let private = Mapping::private(&file, 4 * PAGE)?;
    private.store(PAGE, &model[PAGE..=PAGE]);
    file.put(0, &noise(8, 4 * PAGE))?;
    expect_same("copied", &private.load(PAGE, PAGE), &model[PAGE..2 * PAGE])?;
    file.set_len(0)?;
    expect_touch("cut off", private.touch_by_load(PAGE)?, Touch::Bus)
}

fn private_copy_of_a_hole_fills_nothing(site: &Site) -> Result<()> {
    let file = site.sparse("file", 2 * PMD)?;
    let private = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::PRIVATE)?;
    expect_zeroes("a hole", &private.load(0, 2 * PMD))?;
    let bytes = noise(1, 2 * PAGE);
    private.store(PMD - PAGE, &bytes);
    expect_same("private", &private.load(PMD - PAGE, 2 * PAGE), &bytes)?;
    expect_zeroes("the file", &file.get_all()?)
}

fn mapping_survives_close_and_unlink(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", PMD)?;
    let mapping = Mapping::all(&file)?;
    drop(file);
    fs::remove_file(site.path("file"))?;
    // Were the blocks free, this would get them.
    let (other, others) = site.filled("other", 8 * PMD)?;
    expect_same("loaded", &mapping.load(0, PMD), &model)?;
    model[PAGE..3 * PAGE].copy_from_slice(&noise(1, 2 * PAGE));
    mapping.store(PAGE, &model[PAGE..3 * PAGE]);
    mapping.sync()?;
    expect_same("stored", &mapping.load(0, PMD), &model)?;
    expect_same("the other file", &other.get_all()?, &others)
}

fn read_only_mapping_refuses_stores(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 2 * PAGE)?;
    let mapping = Mapping::read_only(&file, 2 * PAGE)?;
    expect_same("loaded", &mapping.load(0, PAGE), &model[..PAGE])?;
    expect_touch("loaded before", mapping.touch_by_store(0, 1)?, Touch::Segv)?;
    expect_touch("never loaded", mapping.touch_by_store(PAGE, 1)?, Touch::Segv)?;
    let bytes = noise(3, PAGE);
    file.put(0, &bytes)?;
    expect_same("written meanwhile", &mapping.load(0, PAGE), &bytes)
}

fn mapping_may_do_no_more_than_its_file(site: &Site) -> Result<()> {
    site.filled("file", PAGE)?;
    let reader = File::open(site.path("file"))?;
    let writer = File::options().write(true).open(site.path("file"))?;
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let refused = |what, file, access, flags| {
        let mapping = Mapping::with(file, 0, PAGE, access, flags);
        expect_error(what, mapping, &[Errno::ACCESS])
    };
    refused("stores to a reader's", &reader, both, MapFlags::SHARED)?;
    refused("loads of a writer's", &writer, ProtFlags::READ, MapFlags::SHARED)?;
    refused("a writer's private copy", &writer, both, MapFlags::PRIVATE)?;
    let mapping = Mapping::read_only(&reader, PAGE)?;
    let raised = mapping.protect(0..PAGE, MprotectFlags::READ | MprotectFlags::WRITE);
    expect_error("stores allowed later", raised, &[Errno::ACCESS])
}

fn protection_is_taken_and_given_back(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 2 * PMD)?;
    let mapping = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::SHARED)?;
    mapping.store(0, &model);
    // One page amid 2 MiB.
    let page = 7 * PAGE..8 * PAGE;
    mapping.protect(page.clone(), MprotectFlags::READ)?;
    expect_touch("its store", mapping.touch_by_store(page.start, 1)?, Touch::Segv)?;
    expect_touch("store before it", mapping.touch_by_store(page.start - 1, 1)?, Touch::Done)?;
    model[page.start - 1] = 1;
    mapping.protect(page.clone(), MprotectFlags::empty())?;
    expect_touch("its load", mapping.touch_by_load(page.start)?, Touch::Segv)?;
    let bytes = noise(4, PAGE);
    file.put(page.start, &bytes)?;
    mapping.protect(page.clone(), MprotectFlags::READ | MprotectFlags::WRITE)?;
    expect_same("written meanwhile", &mapping.load(page.start, PAGE), &bytes)?;
    model[page.clone()].fill(9);
    mapping.store(page.start, &model[page]);
    expect_same("all", &file.get_all()?, &model)
}

fn moved_and_grown_mapping_shows_the_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 8 * PMD)?;
    let mut mapping = Mapping::aligned(&file, 0, PMD, MapFlags::SHARED)?;
    mapping.store(0, &model[..PMD]);
    // Something in the way, so that it must move.
    let _neighbours: Vec<_> = (0..4).map(|_| Mapping::all(&file)).collect::<Result<_>>()?;
    for len in [PMD + PAGE, 4 * PMD, 8 * PMD, PMD / 2, 8 * PMD] {
        mapping.resize(len)?;
        expect_same(format!("{len} bytes"), &mapping.load(0, len), &model[..len])?;
        let bytes = noise(len as u64, 3 * PAGE);
        model[len - 3 * PAGE..len].copy_from_slice(&bytes);
        mapping.store(len - 3 * PAGE, &bytes);
    }
    expect_same("read", &file.get_all()?, &model)
}

fn halves_of_a_mapping_go_alone(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", 2 * PMD)?;
    let mapping = Mapping::aligned(&file, 0, 2 * PMD, MapFlags::SHARED)?;
    mapping.store(0, &model);
    let (first, rest) = mapping.split(9 * PAGE);
    let (middle, last) = rest.split(PMD);
    drop(middle);
    for (mapping, at) in [(first, 0), (last, 9 * PAGE + PMD)] {
        expect_same(format!("at {at}"), &mapping.load(0, PAGE), &model[at..at + PAGE])?;
        model[at..at + PAGE].fill(3);
        mapping.store(0, &[3; PAGE]);
    }
    expect_same("read", &file.get_all()?, &model)
}

fn dropped_pages_come_back(site: &Site) -> Result<()> {
    let file = site.sparse("file", SPAN)?;
    let mapping = Mapping::aligned(&file, 0, SPAN, MapFlags::SHARED)?;
    let model = noise(6, SPAN);
    mapping.store(0, &model);
    let advice = [
        Advice::LinuxDontNeed,
        Advice::WillNeed,
        Advice::Random,
        Advice::Sequential,
        Advice::LinuxCold,
        Advice::LinuxPageOut,
    ];
    for advice in advice {
        mapping.advise(0..SPAN, advice)?;
        expect_same(format!("after {advice:?}"), &mapping.load(0, SPAN), &model)?;
    }
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    expect_same("after caches were dropped", &mapping.load(0, SPAN), &model)?;
    expect_same("read", &file.get_all()?, &model)
}

fn populated_mapping_shows_the_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("file", SPAN)?;
    // A hole among the data.
    file.set_len((SPAN + 4 * PAGE) as u64)?;
    model.resize(SPAN + 4 * PAGE, 0);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    let mapping = Mapping::with(&file, 0, model.len(), access, flags)?;
    expect_same("loaded", &mapping.load(0, model.len()), &model)?;
    mapping.store(SPAN - 1, &[1, 2, 3]);
    expect_same("stored", &file.get(SPAN - 1, 3)?, &[1, 2, 3])
}

fn mapping_can_be_locked(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 16 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    mapping.lock_and_unlock()?;
    expect_same("loaded", &mapping.load(0, model.len()), &model)
}

/// `MAP_SYNC` promises that a store is durable once the processor has written it out. Of virtio-pmem
/// that isn't so: it takes a flush.
fn synchronous_mapping_is_refused(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", PAGE)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
    let mapping = Mapping::with(&file, 0, PAGE, access, flags);
    expect_error("MAP_SYNC", mapping, &[Errno::OPNOTSUPP])?;
    Mapping::with(&file, 0, PAGE, access, MapFlags::SHARED_VALIDATE)?;
    Ok(())
}

fn mapping_is_reached_through_proc_mem(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", 4 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    let memory = File::options().read(true).write(true).open("/proc/self/mem")?;
    let found = memory.get(mapping.address() + 100, 2 * PAGE)?;
    expect_same("read", &found, &model[100..100 + 2 * PAGE])?;
    let bytes = noise(2, 2 * PAGE);
    memory.put(mapping.address() + PAGE + 9, &bytes)?;
    ensure!(mapping.load(PAGE + 9, bytes.len()) == bytes, "it was written elsewhere");
    expect_same("written", &file.get(PAGE + 9, bytes.len())?, &bytes)
}
