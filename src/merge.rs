// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd merge --file --overlay`: an overlay into its base, while nobody serves either.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use pfn_blk::{
    Access, FileStore, OriginMark, Origins, PfnSpace, Snapshot, Store, Target, origin_mark,
    unmark_origin,
};

use crate::backing::{explain_overlay, overlay_chunk};
use crate::marks::{Changes, is_kept_in};
use crate::progress::{Progress, Unit};
use crate::size::ByteSize;

/// Writes what `overlay` has changed of `base` to the base, and removes the overlay.
pub(crate) fn run(
    base: &Path,
    overlay: &Path,
    origins: Origins,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let merge = || {
        let store = FileStore::open_origin(base).context("the base")?;
        if let Some(mark) = origin_mark(store.fd())? {
            check_mark(base, &mark, overlay)?;
        }
        let file = store.fd().try_clone_to_owned()?;
        let changes = FileStore::open(overlay, Access::ReadWrite).context("the overlay")?;
        let mut space = PfnSpace::new();
        let (origin, cow) = (space.add(Box::new(store))?, space.add(Box::new(changes))?);
        let (size, chunk) = (origin.nr_pages(), overlay_chunk());
        let snapshot =
            Snapshot::open_over(origins, origin, cow, chunk, size).map_err(explain_overlay)?;
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

/// That the changes to a base which its mark tells of are those in `overlay`.
fn check_mark(base: &Path, mark: &OriginMark, overlay: &Path) -> anyhow::Result<()> {
    let advice = match Changes::of(mark) {
        // Of another file: merged here they would be missing there.
        Changes::Anothers => Changes::Anothers.advice(base),
        _ if is_kept_in(mark, overlay) => return Ok(()),
        Changes::Here => String::new(),
        lost => lost.advice(base),
    };
    bail!("the changes since its snapshot are in {}{advice}", mark.cow.display())
}
