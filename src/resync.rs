// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mirrors' legs: making them the same, and putting others in their place, while they are served.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use pfn_blk::table::{OpenLeg, OpenMirror};
use pfn_blk::{Access, BioError, FileStore, LegState, PfnSpace, Store, Target};
use tracing::{info, warn};

use crate::sandbox::Pass;

/// Brings up the legs of `mirrors` that may differ, one mirror after another.
pub(crate) fn begin(mirrors: Vec<OpenMirror>, pass: Pass) -> io::Result<()> {
    if mirrors.is_empty() {
        return Ok(());
    }
    let all = move || {
        pass.enter();
        // Legs that aren't there were logged, and don't come by themselves.
        let has_work =
            |open: &&OpenMirror| open.mirror.status().legs.contains(&LegState::Recovering);
        mirrors.iter().filter(has_work).for_each(make_whole);
    };
    std::thread::Builder::new().name("resync".to_owned()).spawn(all)?;
    Ok(())
}

/// Brings up the legs of `open` that may differ. How that went is logged.
fn make_whole(open: &OpenMirror) {
    let OpenMirror { position, mirror, .. } = open;
    let before = mirror.status();
    if (before.stale == 0 && before.is_healthy()) || mirror.access() == Access::ReadOnly {
        return;
    }
    info!(%position, regions = before.stale, "mirror: comparing what the legs may differ in");
    match mirror.resync() {
        Ok(status) if status.is_healthy() => {
            info!(%position, "mirror: all legs are the same");
        }
        Ok(status) => {
            let legs: Vec<_> = status.legs.iter().map(LegState::to_string).collect();
            warn!(%position, ?legs, "mirror: degraded: not all legs could be brought up");
        }
        Err(BioError::Interrupted) => info!(%position, "mirror: making way for another leg"),
        Err(error) => {
            warn!(%position, error = &error as &dyn Error, "mirror: cannot be made whole");
        }
    }
}

/// Brings up all legs, after opening again those whose path names another file by now. Where stores
/// are opened.
pub(crate) fn bring_up(open: &OpenMirror) {
    for (number, leg) in open.legs.iter().enumerate() {
        let is_other = leg.is_file && names_another_file(open, number, leg);
        if is_other {
            if let Err(error) = put(open, number, Path::new(&leg.device), leg.start) {
                warn!(leg = leg.device, "mirror: a leg can't be opened again: {error:#}");
            }
        }
    }
    make_whole(open);
}

/// Whether the path of a leg names a file that isn't the leg's.
fn names_another_file(open: &OpenMirror, number: usize, leg: &OpenLeg) -> bool {
    let Ok(named) = rustix::fs::stat(&leg.device) else { return false };
    let Some(store) = open.mirror.leg_stores().swap_remove(number) else { return true };
    rustix::fs::fstat(store.store().fd())
        .is_ok_and(|held| (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino))
}

/// Finds the leg that `leg` names among those of `mirrors`: the mirror's place and the leg's.
pub(crate) fn find(mirrors: &[OpenMirror], leg: &str) -> anyhow::Result<(usize, usize)> {
    let path = std::path::absolute(leg)?;
    let is_it = |one: &OpenLeg| {
        one.device == leg || std::path::absolute(&one.device).is_ok_and(|one| one == path)
    };
    let places = mirrors.iter().enumerate().flat_map(|(at, mirror)| {
        let legs = mirror.legs.iter().enumerate().filter(|(_, one)| is_it(one));
        legs.map(move |(leg, _)| (at, leg))
    });
    match places.collect::<Vec<_>>()[..] {
        [place] => Ok(place),
        _ => {
            let legs: Vec<_> =
                mirrors.iter().flat_map(|one| &one.legs).map(|one| &*one.device).collect();
            bail!("{leg} is not a leg; there are {}", legs.join(", "))
        }
    }
}

/// Puts the file at `path` in a leg's place, and copies to it. Where stores are opened.
pub(crate) fn replace(open: &OpenMirror, leg: usize, path: &Path) -> anyhow::Result<()> {
    put(open, leg, path, open.legs[leg].start)?;
    make_whole(open);
    Ok(())
}

fn put(open: &OpenMirror, leg: usize, path: &Path, start: pfn_blk::Pgoff) -> anyhow::Result<()> {
    let context = || format!("cannot replace a leg by {}", path.display());
    let store = FileStore::open(path, Access::ReadWrite).with_context(context)?;
    let name = store.name().to_owned();
    let pagemap = PfnSpace::new().add(Box::new(store))?;
    open.mirror.replace(leg, Arc::clone(&pagemap) as _, start).with_context(context)?;
    // Its fd is in this thread's table only. Were it closed by another thread, which may drop the
    // mirror, another file of that number would be closed.
    std::mem::forget(pagemap);
    info!(position = %open.position, leg = name, "mirror: a leg is replaced");
    Ok(())
}
