// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! 2 MiB mapped at once, and what breaks it up.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::mm::{MapFlags, MprotectFlags};

use crate::case::{cases, skip};
use crate::data::{Bytes, expect_same, noise};
use crate::site::{Filesystem, Site};
use crate::sys::{Child, End, Mapping, PAGE, PMD, extents};

cases! { "huge":
    hole_of_2_mib_is_one_zero_page_until_stored_to
    ; mounts:
    aligned_file_is_mapped_2_mib_at_once
    misaligned_mapping_is_mapped_page_by_page
    punched_page_leaves_the_others
    private_store_copies_a_page_of_it
    child_and_parent_share_all_of_it
    protected_page_leaves_the_others
}

const LEN: usize = 2 * PMD;

/// A file whose blocks lie so on the device that 2 MiB of it can be mapped at once.
fn aligned_file(site: &Site) -> Result<File> {
    site.needs_dax()?;
    // A stripe unit has a filesystem put files there.
    let options = match site.fs {
        Filesystem::Ext4 => ["-E", "stride=512,stripe_width=512"],
        // With one it would make small groups, and a small device's too small for its log. Only these
        // cases have it: Linux 6.12 was seen to stop with `BUG_ON(inode->i_data.nrpages)` in
        // `clear_inode` after `copy_file_range` on files laid out so.
        Filesystem::Xfs => ["-d", "su=2m,sw=1,agcount=4"],
    };
    site.replace(&options, "dax=always")?;
    let file = site.file("file")?;
    // More than is needed: what is aligned of it counts.
    file.allocate(FallocateFlags::empty(), 0, 4 * PMD)?;
    file.put(0, &noise(1, LEN))?;
    let at = extents(&file)?;
    let whole = at.iter().any(|extent| {
        extent.logical == 0 && extent.physical % (PMD as u64) == 0 && extent.length >= LEN as u64
    });
    if !whole {
        let first = at.first().map(|extent| (extent.physical, extent.length));
        skip!("the filesystem put the file where no 2 MiB page can be (first extent {first:x?})");
    }
    Ok(file)
}

/// How many page faults this process takes in `work`.
fn faults(work: impl FnOnce()) -> Result<u64> {
    let before = fault_count()?;
    work();
    Ok(fault_count()? - before)
}

fn fault_count() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the name, which may hold anything: state is the third field, minor faults the tenth and
    // major ones the twelfth.
    let (_, fields) = stat.rsplit_once(") ").context("no name in /proc/self/stat")?;
    let fields: Vec<_> = fields.split(' ').collect();
    let [minor, major] = [7, 9].map(|index| fields.get(index).context("no faults there"));
    Ok(minor?.parse::<u64>()? + major?.parse::<u64>()?)
}

/// Stores to each of the first 512 pages.
fn store_to_each(mapping: &Mapping) {
    for at in (0..PMD).step_by(PAGE) {
        mapping.store(at, &[1]);
    }
}

fn aligned_file_is_mapped_2_mib_at_once(site: &Site) -> Result<()> {
    let file = aligned_file(site)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::SHARED)?;
    let faults = faults(|| store_to_each(&mapping))?;
    ensure!(faults < 64, "{faults} faults for 512 pages");
    Ok(())
}

fn misaligned_mapping_is_mapped_page_by_page(site: &Site) -> Result<()> {
    let file = aligned_file(site)?;
    // Without this the case before could pass for another reason.
    let mapping = Mapping::aligned(&file, PAGE as u64, PMD, MapFlags::SHARED)?;
    let faults = faults(|| store_to_each(&mapping))?;
    ensure!(faults >= 512, "{faults} faults for 512 pages");
    Ok(())
}

fn hole_of_2_mib_is_one_zero_page_until_stored_to(site: &Site) -> Result<()> {
    site.needs_dax()?;
    let file = site.sparse("file", LEN)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::SHARED)?;
    let mut found = 0;
    let faults = faults(|| {
        for at in (0..PMD).step_by(PAGE) {
            found |= mapping.load(at, 1)[0];
        }
    })?;
    ensure!(found == 0, "{found:#x} in a hole");
    mapping.store(5 * PAGE, &[5; PAGE]);
    let mut model = vec![0; LEN];
    model[5 * PAGE..6 * PAGE].fill(5);
    expect_same("stored", &mapping.load(0, LEN), &model)?;
    // Last, as it is the kernel's choice.
    if faults >= 512 {
        skip!("this kernel has no 2 MiB zero page for holes; what is read is right");
    }
    Ok(())
}

fn punched_page_leaves_the_others(site: &Site) -> Result<()> {
    let file = aligned_file(site)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::SHARED)?;
    let mut model = noise(2, LEN);
    mapping.store(0, &model);
    for at in [7 * PAGE, 0, PMD - PAGE] {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        file.allocate(how, at, PAGE)?;
        model[at..at + PAGE].fill(0);
        expect_same(format!("punched at {at}"), &mapping.load(0, LEN), &model)?;
    }
    mapping.store(7 * PAGE, &[7; PAGE]);
    model[7 * PAGE..8 * PAGE].fill(7);
    expect_same("stored", &file.get(0, LEN)?, &model)
}

fn private_store_copies_a_page_of_it(site: &Site) -> Result<()> {
    let file = aligned_file(site)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::PRIVATE)?;
    let model = noise(1, LEN);
    expect_same("loaded", &mapping.load(0, LEN), &model)?;
    let mut own = model.clone();
    own[3 * PAGE..5 * PAGE].fill(3);
    mapping.store(3 * PAGE, &own[3 * PAGE..5 * PAGE]);
    expect_same("private", &mapping.load(0, LEN), &own)?;
    expect_same("the file", &file.get(0, LEN)?, &model)
}

fn child_and_parent_share_all_of_it(site: &Site) -> Result<()> {
    let file = aligned_file(site)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::SHARED)?;
    store_to_each(&mapping);
    let bytes = noise(3, PMD);
    let child = Child::run(|| {
        mapping.store(PMD / 2, &bytes);
        0
    })?;
    ensure!(child.wait()? == End::Exit(0), "the child failed");
    expect_same("stored by the child", &mapping.load(PMD / 2, PMD), &bytes)
}

fn protected_page_leaves_the_others(site: &Site) -> Result<()> {
    let file = aligned_file(site)?;
    let mapping = Mapping::aligned(&file, 0, LEN, MapFlags::SHARED)?;
    store_to_each(&mapping);
    mapping.protect(PAGE..2 * PAGE, MprotectFlags::READ)?;
    let model = noise(4, LEN - 2 * PAGE);
    mapping.store(2 * PAGE, &model);
    mapping.protect(0..LEN, MprotectFlags::READ | MprotectFlags::WRITE)?;
    mapping.store(PAGE, &[9; PAGE]);
    let expected = [vec![9; PAGE], model].concat();
    expect_same("read", &file.get(PAGE, LEN - PAGE)?, &expected)
}
