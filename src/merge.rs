// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd merge --file --overlay`: an overlay into its base, while nobody serves either.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use pfn_blk::{Access, FileStore, PfnSpace, Snapshot, Store, Target, origin_mark, unmark_origin};

use crate::backing::overlay_chunk;
use crate::progress::{Progress, Unit};
use crate::size::ByteSize;

/// Writes what `overlay` has changed of `base` to the base, and removes the overlay.
pub(crate) fn run(base: &Path, overlay: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let merge = || {
        let store = FileStore::open_origin(base).context("the base")?;
        let marked = origin_mark(store.fd())?;
        let file = store.fd().try_clone_to_owned()?;
        if let Some(cow) =
            marked.filter(|cow| *cow != std::path::absolute(overlay).unwrap_or_default())
        {
            bail!("the changes since its snapshot are in {}", cow.display());
        }
        let changes = FileStore::open(overlay, Access::ReadWrite).context("the overlay")?;
        let mut space = PfnSpace::new();
        let (origin, cow) = (space.add(Box::new(store))?, space.add(Box::new(changes))?);
        let (size, chunk) = (origin.nr_pages(), overlay_chunk());
        let snapshot = Snapshot::open(origin, cow, chunk, size)?;
        let mut progress = Progress::begin("merging", Unit::Bytes);
        let mut chunks = 0;
        loop {
            progress.left(snapshot.usage().used * chunk.bytes());
            // As many as it does at a time, but one at least.
            match snapshot.merge(1)? {
                0 => break,
                some => chunks += some,
            }
        }
        drop(progress);
        unmark_origin(file).context("the base is still marked as a snapshot's origin")?;
        fs::remove_file(overlay).context("cannot remove the overlay, which is merged")?;
        anyhow::Ok(chunks * chunk.bytes())
    };
    let context = || format!("cannot merge {} into {}", overlay.display(), base.display());
    let bytes = merge().with_context(context)?;
    writeln!(out, "merged {}; the overlay is removed", ByteSize(bytes))?;
    Ok(())
}
