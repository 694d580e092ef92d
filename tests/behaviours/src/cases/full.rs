// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No space left, or none that a user may have.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, Uid};
use rustix::io::Errno;
use rustix::thread::set_thread_uid;

use crate::case::{cases, skip};
use crate::data::{Bytes, errno, expect_error, expect_same, expect_touch, noise};
use crate::site::{Filesystem, Site};
use crate::sys::{Child, End, Mapping, PAGE, PMD, Touch, limit_user};

cases! { "full":
    writes_fail_when_it_is_full_and_go_on_when_it_is_not
    store_to_a_hole_is_sigbus_when_it_is_full
    stores_to_what_there_is_go_on_when_it_is_full
    ; mounts:
    quota_ends_writes_and_stores
}

/// Takes all the space there is; truncated, the file gives it back.
fn fill(site: &Site) -> Result<File> {
    let ballast = site.file("ballast")?;
    let mut at = 0;
    let mut len = 256 << 20;
    while len >= PAGE {
        match ballast.allocate(FallocateFlags::empty(), at, len) {
            Ok(()) => at += len,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSPC) => len /= 2,
            Err(error) => bail!("allocating {len} bytes at {at}: {error}"),
        }
    }
    Ok(ballast)
}

/// Writes or stores page after page, until one is refused. Of some a full filesystem may have kept
/// room; of more than these it can't have.
fn until_refused(mut page: impl FnMut(usize) -> Result<bool>) -> Result<()> {
    const MOST: usize = 512;
    for at in (0..MOST * PAGE).step_by(PAGE) {
        if !page(at)? {
            return Ok(());
        }
    }
    bail!("{MOST} pages more found room")
}

fn writes_fail_when_it_is_full_and_go_on_when_it_is_not(site: &Site) -> Result<()> {
    let (file, model) = site.filled("file", PMD)?;
    let hole = site.sparse("hole", PMD)?;
    let ballast = fill(site)?;
    until_refused(|at| match hole.put(at, &[1; PAGE]) {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Some(Errno::NOSPC) => Ok(false),
        Err(error) => Err(error),
    })?;
    expect_same("another file", &file.get_all()?, &model)?;
    ballast.set_len(0)?;
    ballast.sync_all()?;
    let bytes = noise(1, PMD);
    hole.put(0, &bytes)?;
    expect_same("when there is room again", &hole.get_all()?, &bytes)
}

fn store_to_a_hole_is_sigbus_when_it_is_full(site: &Site) -> Result<()> {
    let hole = site.sparse("hole", PMD)?;
    let mapping = Mapping::all(&hole)?;
    let ballast = fill(site)?;
    let mut refused = 0;
    until_refused(|at| match mapping.touch_by_store(at, 1)? {
        Touch::Done => Ok(true),
        Touch::Bus => {
            refused = at;
            Ok(false)
        }
        touch => bail!("{touch:?} at {at}"),
    })?;
    expect_touch("a load there", mapping.touch_by_load(refused)?, Touch::Done)?;
    ballast.set_len(0)?;
    ballast.sync_all()?;
    let store = mapping.touch_by_store(refused, 2)?;
    expect_touch("when there is room again", store, Touch::Done)?;
    expect_same("stored", &hole.get(refused, 2)?, &[2, 0])
}

fn stores_to_what_there_is_go_on_when_it_is_full(site: &Site) -> Result<()> {
    let (data, _) = site.filled("data", 8 * PAGE)?;
    let allocated = site.file("allocated")?;
    allocated.allocate(FallocateFlags::empty(), 0, 8 * PAGE)?;
    let files = [data, allocated];
    let _ballast = fill(site)?;
    for (seed, file) in (1..).zip(&files) {
        let mapping = Mapping::all(file)?;
        let bytes = noise(seed, 8 * PAGE);
        mapping.store(0, &bytes);
        mapping.sync()?;
        expect_same(format!("file {seed}"), &file.get_all()?, &bytes)?;
    }
    Ok(())
}

fn quota_ends_writes_and_stores(site: &Site) -> Result<()> {
    const USER: i32 = 1000;
    let mkfs: &[&str] = match site.fs {
        Filesystem::Ext4 => &["-O", "quota"],
        Filesystem::Xfs => &[],
    };
    let dax = if site.dax { ",dax=always" } else { "" };
    if !Path::new("/proc/sys/fs/quota").exists() {
        skip!("this kernel has no quota");
    }
    site.unmount()?;
    site.make(mkfs)?;
    if let Err(error) = site.mount_with(&format!("usrquota{dax}")) {
        if Errno::from_io_error(&error) == Some(Errno::SRCH) {
            skip!("this kernel has no quota of ext4's format; its module is quota_v2");
        }
        return Err(error).context("cannot mount it with usrquota");
    }
    limit_user(&site.device, USER, 1024).context("cannot set the limit")?;
    let file = site.sparse("file", 8 << 20)?;
    chown(site.path("file"), Some(1000), None)?;
    let mapping = Mapping::all(&file)?;
    let child = Child::run(|| match within_quota(&file, &mapping) {
        Ok(()) => 0,
        Err(error) => {
            println!("# as a user with quota: {error:#}");
            1
        }
    })?;
    ensure!(child.wait()? == End::Exit(0), "see the line before");
    let taken = file.metadata()?.blocks() * 512;
    ensure!((900 << 10..=1 << 20).contains(&taken), "{taken} bytes are taken of 1 MiB");
    Ok(())
}

/// What a user meets who may have 1 MiB.
fn within_quota(file: &File, mapping: &Mapping) -> Result<()> {
    set_thread_uid(Uid::from_raw(1000)).context("cannot become a user")?;
    file.put(0, &[1; 512 << 10])?;
    let at = 2 << 20;
    until_refused(|page| match mapping.touch_by_store(at + page, 1)? {
        Touch::Done => Ok(true),
        Touch::Bus => Ok(false),
        touch => bail!("{touch:?}"),
    })?;
    expect_error("a write", file.put(6 << 20, &[1; 64 << 10]), &[Errno::DQUOT])?;
    expect_touch("a store to data", mapping.touch_by_store(100, 2)?, Touch::Done)
}
