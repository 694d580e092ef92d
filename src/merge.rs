// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd merge --file --overlay`: an overlay into its base, while nobody serves either.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use pfn_blk::{
    Access, CowFile, ErrorTarget, FileStore, InvalidStore, NrPages, OriginMark, Origins, PfnSpace,
    Snapshot, Store, mark_origin, origin_mark, unmark_origin,
};

use crate::backing::leave_mirrors;
use crate::marks::{Changes, cannot_be_marked, is_kept_in};
use crate::overlay::{explain_overlay, overlay_chunk, with_tail};
use crate::progress::{Progress, Unit};
use crate::size::ByteSize;

/// Writes what `overlay` has changed of `base` to the base, and removes the overlay.
pub(crate) fn run(
    base: &Path,
    overlay: &Path,
    origins: Origins,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let context = || format!("cannot merge {} into {}", overlay.display(), base.display());
    let bytes = Pair { base, overlay, origins }.merge().with_context(context)?;
    writeln!(out, "merged {}; the overlay is removed", ByteSize(bytes))?;
    Ok(())
}

/// What is merged into what.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    base: &'a Path,
    overlay: &'a Path,
    origins: Origins,
}

impl Pair<'_> {
    /// Returns how many bytes were merged.
    fn merge(self) -> anyhow::Result<u64> {
        let Self { base, overlay, .. } = self;
        let store = FileStore::open_origin(base).context("the base")?;
        if let Some(mark) = origin_mark(store.fd())? {
            check_mark(base, &mark, overlay)?;
        }
        let beneath = CowFile::read(base);
        let is = beneath.map_or(store.nr_pages(), |cow| cow.nr_pages);
        let size = CowFile::read(overlay).map_or(is, |cow| cow.nr_pages);
        if let Some(beneath) = beneath {
            let (snapshot, file) = self.open_over_cow(store, beneath)?;
            return self.finish(&snapshot, file);
        }
        let (snapshot, file) = self.open(store, size)?;
        if size <= is {
            return self.finish(&snapshot, file);
        }
        // The overlay has a tail. What it is for is the base of before until the merge has begun.
        snapshot.begin_merge()?;
        drop(snapshot);
        grow(&file, size).context("cannot grow the base")?;
        drop(file);
        let store = FileStore::open_origin(base).context("the base")?;
        let (snapshot, file) = self.open(store, size)?;
        self.finish(&snapshot, file)
    }

    /// Merges all that there is, and removes what is empty then.
    fn finish(self, snapshot: &Snapshot, file: File) -> anyhow::Result<u64> {
        let chunk = snapshot.usage().chunk;
        if snapshot.usage().used > 0 {
            self.mark(snapshot, &file)?;
        }
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
        fs::remove_file(self.overlay).context("cannot remove the overlay, which is merged")?;
        Ok(chunks * chunk.bytes())
    }

    /// Marks the base, which isn't to be served by itself until all is merged.
    fn mark(self, snapshot: &Snapshot, file: &File) -> anyhow::Result<()> {
        // Which writes the id down that the mark has.
        snapshot.begin_merge()?;
        let Some(id) = snapshot.id() else { return Ok(()) };
        match mark_origin(file, id, self.overlay) {
            Err(error) if cannot_be_marked(&error) => Ok(()),
            marked => marked.context("cannot mark the base as one whose changes are elsewhere"),
        }
    }

    /// The overlay over a base that is an overlay, whose own base isn't needed: whole chunks are
    /// written to it.
    fn open_over_cow(self, store: FileStore, beneath: CowFile) -> anyhow::Result<(Snapshot, File)> {
        let CowFile { nr_pages, chunk, .. } = beneath;
        let file = File::from(store.fd().try_clone_to_owned()?);
        let mut space = PfnSpace::new();
        let (base, cow) = (space.add(Box::new(store))?, space.add(Box::new(self.changes()?))?);
        let unread = Arc::new(ErrorTarget::new(nr_pages));
        let base = Snapshot::open_over(Origins::StandIn, unread, base, chunk, nr_pages)?;
        let snapshot = Snapshot::open_over(self.origins, Arc::new(base), cow, chunk, nr_pages)
            .map_err(explain_overlay)?;
        Ok((snapshot, file))
    }

    /// The overlay's file.
    fn changes(self) -> anyhow::Result<FileStore> {
        FileStore::open(self.overlay, Access::ReadWrite).map_err(|error| {
            let hint = match &error {
                InvalidStore::Origin(mark) => format!(
                    "; merge those first: vhost-pmemd merge --file {} --overlay {}",
                    self.overlay.display(),
                    mark.cow.display()
                ),
                _ => String::new(),
            };
            anyhow!("the overlay: {:#}{hint}", anyhow!(error))
        })
    }

    /// The overlay over a base that was opened, and the base's file.
    fn open(self, store: FileStore, size: NrPages) -> anyhow::Result<(Snapshot, File)> {
        let file = File::from(store.fd().try_clone_to_owned()?);
        let mut space = PfnSpace::new();
        let (base, cow) = (space.add(Box::new(store))?, space.add(Box::new(self.changes()?))?);
        leave_mirrors(&[Arc::clone(&base)])?;
        let origin = with_tail(Arc::clone(&base), size)?;
        let snapshot = Snapshot::open_over(self.origins, origin, cow, overlay_chunk(), size)
            .map_err(explain_overlay)?;
        Ok((snapshot, file))
    }
}

/// Gives a file that size, durably.
fn grow(file: &File, size: NrPages) -> std::io::Result<()> {
    file.set_len(size.bytes())?;
    file.sync_all()
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
