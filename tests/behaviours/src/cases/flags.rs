// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which files are used with DAX: as the mount says, or each as its flag does.

use std::fs::{File, create_dir, write};

use anyhow::{Result, ensure};

use crate::case::cases;
use crate::data::{Bytes, expect_same, noise};
use crate::site::{Site, is_dax};
use crate::sys::{FileFlags, Mapping, PAGE, file_flags, set_file_flags};

cases! { "flags":
    every_file_has_dax_when_mounted_so
    ; mounts:
    no_file_has_dax_when_mounted_so
    flag_gives_a_file_dax
    flag_of_a_directory_is_inherited
    file_keeps_its_data_when_it_changes_sides
}

fn every_file_has_dax_when_mounted_so(site: &Site) -> Result<()> {
    site.needs_dax()?;
    for file in [site.file("file")?, site.sparse("sparse", 1 << 30)?] {
        ensure!(is_dax(&file)?, "a file has no DAX");
    }
    create_dir(site.path("dir"))?;
    ensure!(is_dax(&site.file("dir/file")?)?, "a file in a directory has no DAX");
    Ok(())
}

fn no_file_has_dax_when_mounted_so(site: &Site) -> Result<()> {
    site.needs_dax()?;
    site.replace(&[], "dax=never")?;
    let file = site.file("file")?;
    ensure!(!is_dax(&file)?, "it has");
    set_dax(&file, true)?;
    drop(file);
    evict()?;
    ensure!(!is_dax(&site.open("file")?)?, "it has with the flag");
    Ok(())
}

fn set_dax(file: &File, dax: bool) -> Result<()> {
    let mut flags = file_flags(file)?;
    flags.xflags = if dax { flags.xflags | FileFlags::DAX } else { flags.xflags & !FileFlags::DAX };
    set_file_flags(file, flags)?;
    let set = file_flags(file)?.xflags & FileFlags::DAX != 0;
    ensure!(set == dax, "the flag hasn't changed");
    Ok(())
}

/// Has the kernel forget files that nobody has open: a flag counts when a file is met anew.
fn evict() -> Result<()> {
    rustix::fs::sync();
    Ok(write("/proc/sys/vm/drop_caches", "3")?)
}

fn flag_gives_a_file_dax(site: &Site) -> Result<()> {
    site.needs_dax()?;
    site.replace(&[], "dax=inode")?;
    let (with, model) = site.filled("with", 3 * PAGE)?;
    let without = site.file("without")?;
    ensure!(!is_dax(&with)? && !is_dax(&without)?, "a file has DAX without the flag");
    set_dax(&with, true)?;
    ensure!(!is_dax(&with)?, "an open file has changed sides");
    drop((with, without));
    evict()?;
    let with = site.open("with")?;
    ensure!(is_dax(&with)?, "the file with the flag has no DAX");
    ensure!(!is_dax(&site.open("without")?)?, "the file without has");
    expect_same("what was written before", &Mapping::all(&with)?.load(0, 3 * PAGE), &model)?;
    drop(with);
    site.unmount()?;
    site.mount_with("dax=inode")?;
    ensure!(is_dax(&site.open("with")?)?, "the flag has not lasted");
    Ok(())
}

fn flag_of_a_directory_is_inherited(site: &Site) -> Result<()> {
    site.needs_dax()?;
    site.replace(&[], "dax=inode")?;
    create_dir(site.path("dir"))?;
    set_dax(&File::open(site.path("dir"))?, true)?;
    create_dir(site.path("dir/sub"))?;
    ensure!(is_dax(&site.file("dir/file")?)?, "a file in it has no DAX");
    ensure!(is_dax(&site.file("dir/sub/file")?)?, "a file in a directory in it has no DAX");
    ensure!(!is_dax(&site.file("beside")?)?, "a file beside it has");
    Ok(())
}

fn file_keeps_its_data_when_it_changes_sides(site: &Site) -> Result<()> {
    site.needs_dax()?;
    site.replace(&[], "dax=inode")?;
    let (mut file, mut model) = site.filled("file", 20 * PAGE)?;
    for round in 1..7 {
        let dax = round % 2 == 1;
        set_dax(&file, dax)?;
        drop(file);
        evict()?;
        file = site.open("file")?;
        ensure!(is_dax(&file)? == dax, "it hasn't changed sides in round {round}");
        let mapping = Mapping::all(&file)?;
        expect_same(format!("round {round}"), &mapping.load(0, model.len()), &model)?;
        let bytes = noise(round, 2 * PAGE);
        let at = usize::try_from(round)? * PAGE + 100;
        model[at..at + bytes.len()].copy_from_slice(&bytes);
        mapping.store(at, &bytes);
    }
    expect_same("read", &file.get_all()?, &model)
}
