// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mirrors' legs: making them the same, and putting others in their place, while they are served.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use pfn_blk::table::{OpenLeg, OpenMirror};
use pfn_blk::{
    Access, BioError, FileStore, LegState, Mirror, MirrorStatus, PfnSpace, Store, Target,
};
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
        // Files that were opened since have other fds in the threads of the window.
        mirrors.iter().filter(has_work).for_each(|open| make_whole(open, Mirror::resync_as_opened));
    };
    std::thread::Builder::new().name("resync".to_owned()).spawn(all)?;
    Ok(())
}

/// Brings up the legs of `open` that may differ. How that went is logged.
fn make_whole(open: &OpenMirror, resync: impl FnOnce(&Mirror) -> Result<MirrorStatus, BioError>) {
    let OpenMirror { position, mirror, .. } = open;
    let before = mirror.status();
    if (before.stale == 0 && before.is_healthy()) || mirror.access() == Access::ReadOnly {
        return;
    }
    info!(%position, regions = before.stale, "mirror: comparing what the legs may differ in");
    match resync(mirror) {
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

/// Brings up all legs, after opening again those whose path names another file by now. An error if one
/// of those can't be used: the mirror goes on with the one that it has. Where stores are opened.
pub(crate) fn bring_up(mirrors: &[OpenMirror]) -> anyhow::Result<()> {
    let mut others: BTreeMap<&Path, Vec<(OpenMirror, usize)>> = BTreeMap::new();
    for open in mirrors {
        for (number, leg) in open.legs.iter().enumerate() {
            if leg.is_file && names_another_file(open, number, leg) {
                others.entry(Path::new(&leg.device)).or_default().push((open.clone(), number));
            }
        }
    }
    let put = others.iter().map(|(path, legs)| put(legs, path));
    let put: Vec<_> = put.collect();
    mirrors.iter().for_each(|open| make_whole(open, Mirror::resync));
    put.into_iter().collect()
}

/// Whether the path of a leg names a file that isn't the leg's.
fn names_another_file(open: &OpenMirror, number: usize, leg: &OpenLeg) -> bool {
    let Ok(named) = rustix::fs::stat(&leg.device) else { return false };
    let Some(store) = open.mirror.leg_stores().swap_remove(number) else { return true };
    rustix::fs::fstat(store.store().fd())
        .is_ok_and(|held| (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino))
}

/// Finds the legs that `leg` names among those of `mirrors`: the mirror's place and the leg's. There
/// are several where mirrors share a file.
pub(crate) fn find(mirrors: &[OpenMirror], leg: &str) -> anyhow::Result<Vec<(usize, usize)>> {
    let path = std::path::absolute(leg)?;
    let is_it = |one: &OpenLeg| {
        one.device == leg || std::path::absolute(&one.device).is_ok_and(|one| one == path)
    };
    let places = mirrors.iter().enumerate().flat_map(|(at, mirror)| {
        let legs = mirror.legs.iter().enumerate().filter(|(_, one)| is_it(one));
        legs.map(move |(leg, _)| (at, leg))
    });
    match places.collect::<Vec<_>>() {
        places if !places.is_empty() => Ok(places),
        _ => {
            let legs: Vec<_> =
                mirrors.iter().flat_map(|one| &one.legs).map(|one| &*one.device).collect();
            bail!("{leg} is not a leg; there are {}", legs.join(", "))
        }
    }
}

/// Puts the file at `path` in the place of these legs, each a mirror's, and copies to it. Where stores
/// are opened.
pub(crate) fn replace(legs: &[(OpenMirror, usize)], path: &Path) -> anyhow::Result<()> {
    put(legs, path)?;
    legs.iter().for_each(|(open, _)| make_whole(open, Mirror::resync));
    Ok(())
}

fn put(legs: &[(OpenMirror, usize)], path: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot replace a leg by {}", path.display());
    let store = FileStore::open(path, Access::ReadWrite).with_context(context)?;
    let name = store.name().to_owned();
    let pagemap = PfnSpace::new().add(Box::new(store))?;
    for (place, (open, leg)) in legs.iter().enumerate() {
        let start = open.legs[*leg].start;
        let put = open.mirror.replace(*leg, Arc::clone(&pagemap) as _, start);
        if place == 0 && put.is_ok() {
            // Its fd is in this thread's table only. Were it closed by another thread, which may drop
            // the mirror, another file of that number would be closed.
            std::mem::forget(Arc::clone(&pagemap));
        }
        put.with_context(context)?;
        info!(position = %open.position, leg = name, "mirror: a leg is replaced");
    }
    Ok(())
}
