// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Names that change while a file is mapped.

use std::fs::{self, File, hard_link, rename};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use rustix::io::Errno;

use crate::case::cases;
use crate::data::{Bytes, expect_error, expect_same, noise};
use crate::site::{Site, expect_gone};
use crate::sys::{Mapping, PAGE, PMD};

cases! { "names":
    replaced_file_lives_on_in_its_mapping
    exchanged_files_keep_their_mappings
    rename_that_must_not_replace_does_not
    linked_file_is_one_file
    nameless_file_is_mapped_and_then_named
    ; mounts:
    blocks_of_a_mapped_unlinked_file_are_freed_at_its_end
    links_and_renames_are_right_after_remount
}

fn replaced_file_lives_on_in_its_mapping(site: &Site) -> Result<()> {
    let (old, old_model) = site.filled("old", PMD)?;
    let (new, mut new_model) = site.filled("new-one", PMD)?;
    let [at_old, at_new] = [Mapping::all(&old)?, Mapping::all(&new)?];
    rename(site.path("new-one"), site.path("old"))?;
    drop((old, new));
    expect_gone(&site.path("new-one"))?;
    expect_same("the old one", &at_old.load(0, PMD), &old_model)?;
    new_model[..PAGE].copy_from_slice(&noise(1, PAGE));
    at_new.store(0, &new_model[..PAGE]);
    at_old.store(PAGE, &noise(2, PAGE));
    expect_same("what the name leads to", &site.open("old")?.get_all()?, &new_model)
}

fn exchanged_files_keep_their_mappings(site: &Site) -> Result<()> {
    let (one, _) = site.filled("one", PAGE)?;
    let (two, _) = site.filled("two", PAGE)?;
    let [at_one, at_two] = [Mapping::all(&one)?, Mapping::all(&two)?];
    renameat_with(CWD, site.path("one"), CWD, site.path("two"), RenameFlags::EXCHANGE)?;
    at_one.store(0, &[1; PAGE]);
    at_two.store(0, &[2; PAGE]);
    expect_same("one", &site.open("one")?.get_all()?, &[2; PAGE])?;
    expect_same("two", &site.open("two")?.get_all()?, &[1; PAGE])
}

fn rename_that_must_not_replace_does_not(site: &Site) -> Result<()> {
    let (_, model) = site.filled("one", PAGE)?;
    site.filled("two", PAGE)?;
    let renamed =
        renameat_with(CWD, site.path("two"), CWD, site.path("one"), RenameFlags::NOREPLACE);
    expect_error("a rename over another", renamed, &[Errno::EXIST])?;
    expect_same("it", &site.open("one")?.get_all()?, &model)
}

fn linked_file_is_one_file(site: &Site) -> Result<()> {
    let (file, mut model) = site.filled("first", PMD)?;
    let mapping = Mapping::all(&file)?;
    hard_link(site.path("first"), site.path("second"))?;
    ensure!(file.metadata()?.nlink() == 2, "it hasn't two names");
    model[PAGE..2 * PAGE].fill(1);
    site.open("second")?.put(PAGE, &[1; PAGE])?;
    expect_same("written by the other name", &mapping.load(0, PMD), &model)?;
    fs::remove_file(site.path("first"))?;
    model[..PAGE].fill(2);
    mapping.store(0, &[2; PAGE]);
    expect_same("the name left", &site.open("second")?.get_all()?, &model)?;
    ensure!(file.metadata()?.nlink() == 1, "it hasn't one name");
    Ok(())
}

fn nameless_file_is_mapped_and_then_named(site: &Site) -> Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let file = File::from(openat(CWD, &site.root, flags, Mode::from(0o600))?);
    file.set_len(PMD as u64)?;
    let mapping = Mapping::all(&file)?;
    let model = noise(3, PMD);
    mapping.store(0, &model);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, path, CWD, site.path("named"), AtFlags::SYMLINK_FOLLOW)?;
    expect_same("named", &site.open("named")?.get_all()?, &model)
}

fn blocks_of_a_mapped_unlinked_file_are_freed_at_its_end(site: &Site) -> Result<()> {
    let before = site.free()?;
    let (file, model) = site.filled("file", 16 * PMD)?;
    file.sync_all()?;
    let mapping = Mapping::all(&file)?;
    fs::remove_file(site.path("file"))?;
    drop(file);
    let held = before - site.free()?;
    ensure!(held >= 16 * PMD as u64, "only {held} bytes are taken while it is mapped");
    expect_same("loaded", &mapping.load(0, 16 * PMD), &model)?;
    drop(mapping);
    site.remount()?;
    let after = before.abs_diff(site.free()?);
    ensure!(after < PMD as u64, "{after} bytes more or less are free than before");
    Ok(())
}

fn links_and_renames_are_right_after_remount(site: &Site) -> Result<()> {
    let (_, one) = site.filled("one", PAGE + 1)?;
    let (_, two) = site.filled("two", PAGE + 2)?;
    let (_, three) = site.filled("three", PAGE + 3)?;
    hard_link(site.path("one"), site.path("uno"))?;
    rename(site.path("two"), site.path("one"))?;
    renameat_with(CWD, site.path("one"), CWD, site.path("three"), RenameFlags::EXCHANGE)?;
    site.remount()?;
    for (name, model) in [("uno", one), ("three", two), ("one", three)] {
        expect_same(name, &site.open(name)?.get_all()?, &model)?;
    }
    expect_gone(&site.path("two"))
}
