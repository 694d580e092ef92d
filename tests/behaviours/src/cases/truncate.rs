// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file's end, moved under a mapping.

use std::fs::File;

use anyhow::{Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::mm::MapFlags;

use crate::case::{cases, skip};
use crate::data::{Bytes, expect_same, expect_touch, expect_zeroes, noise};
use crate::site::{Filesystem, Site};
use crate::sys::{Mapping, PAGE, PMD, Touch};

cases! { "truncate":
    access_beyond_the_end_is_sigbus
    access_beyond_a_moved_end_is_sigbus
    what_was_cut_off_is_zeroes_when_the_file_grows
    truncation_at_open_empties_the_mapping
    tail_of_the_last_page_is_zeroes
    bytes_stored_behind_the_end_are_not_in_the_file
    bytes_stored_behind_the_end_are_zeroes_when_the_file_grows
    end_moved_within_2_mib_keeps_what_is_before
    truncated_and_written_again_is_all_new
}

fn access_beyond_the_end_is_sigbus(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", PAGE + 1)?;
    let mapping = Mapping::shared(&file, 0, PMD)?;
    expect_touch("last byte", mapping.touch_by_load(PAGE)?, Touch::Done)?;
    expect_touch("rest of its page", mapping.touch_by_load(2 * PAGE - 1)?, Touch::Done)?;
    for at in [2 * PAGE, PMD - 1] {
        expect_touch(format!("load at {at}"), mapping.touch_by_load(at)?, Touch::Bus)?;
        expect_touch(format!("store at {at}"), mapping.touch_by_store(at, 1)?, Touch::Bus)?;
    }
    ensure!(file.size()? == PAGE + 1, "the file has grown");
    Ok(())
}

fn access_beyond_a_moved_end_is_sigbus(site: &Site) -> Result<()> {
    let len = 2 * PMD;
    let (file, model) = site.filled("file", len)?;
    let mapping = Mapping::aligned(&file, 0, len, MapFlags::SHARED)?;
    for end in [len - 1, PMD + PAGE + 1, PMD, PMD - PAGE, PAGE + 7, 1, 0] {
        // So that all of it is mapped when the end moves.
        expect_same("before", &mapping.load(0, file.size()?), &model[..file.size()?])?;
        file.set_len(end as u64)?;
        let page = end.next_multiple_of(PAGE);
        expect_same(format!("up to {end}"), &mapping.load(0, end), &model[..end])?;
        if page < len {
            let what = format!("from {page} on, the end at {end}");
            expect_touch(&what, mapping.touch_by_load(page)?, Touch::Bus)?;
            expect_touch(&what, mapping.touch_by_store(page, 1)?, Touch::Bus)?;
        }
    }
    Ok(())
}

fn what_was_cut_off_is_zeroes_when_the_file_grows(site: &Site) -> Result<()> {
    let len = 2 * PMD;
    let (file, mut model) = site.filled("file", len)?;
    let mapping = Mapping::aligned(&file, 0, len, MapFlags::SHARED)?;
    for end in [len - 1, PMD + PAGE + 1, PMD, PMD - PAGE, PAGE + 7, 1, 0] {
        expect_same("before", &mapping.load(0, len), &model)?;
        file.set_len(end as u64)?;
        file.set_len(len as u64)?;
        model[end..].fill(0);
        expect_same(format!("cut at {end}"), &mapping.load(0, len), &model)?;
        expect_same(format!("cut at {end}, read"), &file.get_all()?, &model)?;
        let bytes = noise(end as u64, len - end);
        model[end..].copy_from_slice(&bytes);
        mapping.store(end, &bytes);
    }
    expect_same("all", &file.get_all()?, &model)
}

fn truncation_at_open_empties_the_mapping(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", 3 * PAGE)?;
    let mapping = Mapping::all(&file)?;
    mapping.store(0, &[1]);
    File::options().write(true).truncate(true).open(site.path("file"))?;
    expect_touch("truncated", mapping.touch_by_load(0)?, Touch::Bus)?;
    file.put(0, b"anew")?;
    expect_same("anew", &mapping.load(0, 4), b"anew")?;
    expect_zeroes("the rest", &mapping.load(4, PAGE - 4))
}

fn tail_of_the_last_page_is_zeroes(site: &Site) -> Result<()> {
    let (file, _) = site.filled("file", 3 * PAGE)?;
    for end in [2 * PAGE + 1000, PAGE + 1, 10] {
        file.set_len(end as u64)?;
        let page = end.next_multiple_of(PAGE);
        let mapping = Mapping::shared(&file, 0, page)?;
        expect_zeroes(format!("behind {end}"), &mapping.load(end, page - end))?;
    }
    Ok(())
}

fn bytes_stored_behind_the_end_are_not_in_the_file(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", PAGE + 100)?;
    let mapping = Mapping::shared(&file, 0, 2 * PAGE)?;
    mapping.store(PAGE + 100, &[0xee; 500]);
    mapping.sync()?;
    ensure!(file.size()? == PAGE + 100, "the file has grown");
    expect_same("read", &file.get_all()?, &model)
}

fn bytes_stored_behind_the_end_are_zeroes_when_the_file_grows(site: &Site) -> Result<()> {
    type Grow = fn(&File) -> Result<()>;
    let ways: [(&str, Grow); 3] = [
        ("truncate", |file| Ok(file.set_len(3 * PAGE as u64)?)),
        ("write", |file| file.put(2 * PAGE, &[0; PAGE])),
        ("fallocate", |file| Ok(file.allocate(FallocateFlags::empty(), 2 * PAGE, PAGE)?)),
    ];
    let mut left = false;
    for (way, grow) in ways {
        let (file, mut model) = site.filled(way, PAGE + 100)?;
        let mapping = Mapping::shared(&file, 0, 3 * PAGE)?;
        mapping.store(PAGE + 100, &[0xee; 500]);
        grow(&file)?;
        model.resize(3 * PAGE, 0);
        let same = expect_same(format!("grown by {way}"), &file.get_all()?, &model);
        if same.is_err() && site.dax && site.fs == Filesystem::Ext4 && way == "write" {
            left = true;
            continue;
        }
        same?;
    }
    if left {
        skip!("ext4 with DAX leaves them (seen in Linux 6.12) when a write makes the file grow");
    }
    Ok(())
}

fn end_moved_within_2_mib_keeps_what_is_before(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", PMD)?;
    let mapping = Mapping::aligned(&file, 0, PMD, MapFlags::SHARED)?;
    let mut end = PMD;
    while end > 1 {
        expect_same(format!("up to {end}"), &mapping.load(0, end), &model[..end])?;
        end = end / 3 * 2;
        file.set_len(end as u64)?;
    }
    Ok(())
}

fn truncated_and_written_again_is_all_new(site: &Site) -> Result<()> {
    let file = site.file("file")?;
    let mapping = Mapping::aligned(&file, 0, PMD, MapFlags::SHARED)?;
    for round in 1..9 {
        let bytes = noise(round, PMD - 9);
        file.set_len(0)?;
        file.put(0, &bytes)?;
        expect_same(format!("round {round}"), &mapping.load(0, bytes.len()), &bytes)?;
        expect_zeroes("the tail", &mapping.load(PMD - 9, 9))?;
    }
    Ok(())
}
