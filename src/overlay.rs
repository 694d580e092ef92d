// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An overlay: what a guest writes, kept apart from a file that is only read.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use pfn_blk::{
    Access, CowFile, FileStore, InvalidSnapshot, Linear, MarkedStore, MemoryStore, NrPages,
    Origins, Pagemap, Pgoff, PgoffRange, Snapshot, SnapshotUsage, StoreSet, Table, Target,
    ZeroTarget, origin_mark,
};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tracing::info;
use vhost_pmem::LAYER_CHUNK;

use crate::marks::{self, Changes};
use crate::size::ByteSize;

/// The size of an overlay's chunks: that of a snapshot which is taken later, as it may become an
/// overlay's file.
pub(crate) fn overlay_chunk() -> NrPages {
    NrPages::try_new(LAYER_CHUNK).expect("a few pages")
}

/// The files that overlays are used over.
pub(crate) fn origins(accept_base: bool) -> Origins {
    if accept_base { Origins::Any } else { Origins::Same }
}

/// What the user asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) base: &'a Path,
    pub(crate) overlay: &'a Path,
    /// What the guest is to see of it.
    pub(crate) size: Option<ByteSize>,
    pub(crate) origins: Origins,
}

impl Asked<'_> {
    /// Opens the overlay, or makes it.
    pub(crate) fn open(self, set: &mut StoreSet) -> anyhow::Result<Arc<Snapshot>> {
        let Self { base: path, overlay, origins, .. } = self;
        let base = set.open(path, Access::ReadOnly)?;
        let context = || format!("overlay {}", overlay.display());
        self.check_not_merging().with_context(context)?;
        let size = self.size(base.nr_pages()).with_context(context)?;
        let chunk = overlay_chunk();
        let ample = Snapshot::ample_cow(size, chunk)?;
        let cow = if overlay == Path::new("memory") {
            set.space().add(Box::new(MemoryStore::new("memory", ample)?))?
        } else if overlay.exists() && !is_empty_file(overlay) {
            self.grow(ample).with_context(context)?;
            set.open(overlay, Access::ReadWrite).with_context(context)?
        } else {
            if origins == Origins::Same {
                check_unmarked(path, &base).with_context(context)?;
            }
            let (store, _) = FileStore::open_new(overlay, ample).with_context(context)?;
            let size = ByteSize(ample.bytes());
            info!(path = %overlay.display(), %size, "overlay created, sparse");
            set.add(store).with_context(context)?
        };
        let origin = with_tail(base, size)?;
        let snapshot = Snapshot::open_over(origins, origin, cow, chunk, size)
            .map_err(explain_overlay)
            .with_context(context)?;
        let SnapshotUsage { used, capacity, .. } = snapshot.usage();
        info!(path = %overlay.display(), used, capacity, "overlay opened; its chunks in use");
        Ok(Arc::new(snapshot))
    }

    /// Checks that the base is not half merged, with the rest in another overlay.
    fn check_not_merging(self) -> anyhow::Result<()> {
        match marks::of(self.base)? {
            Some(mark) if marks::is_kept_in(&mark, self.overlay) => Ok(()),
            _ => marks::check_not_merging(self.base),
        }
    }

    /// What the guest sees: what was asked for, or else what the overlay was made for, or all of the
    /// base.
    fn size(self, base: NrPages) -> anyhow::Result<NrPages> {
        let was = self.made_for();
        let Some(ByteSize(asked)) = self.size else {
            return Ok(match (was, self.origins) {
                (Some(was), Origins::Any) => was.max(base),
                (Some(was), _) => was,
                (None, _) => base,
            });
        };
        let size = NrPages::try_from_bytes(asked).with_context(|| format!("--size {asked}"))?;
        for (least, what) in [(Some(base), "the file is larger"), (was, "the overlay is larger")] {
            if let Some(least) = least.filter(|least| size < *least) {
                bail!("--size {asked}: {what}; give --size {} or more", least.bytes());
            }
        }
        Ok(size)
    }

    /// Gives the overlay's file the size `ample`, if the guest is to see more than before.
    fn grow(self, ample: NrPages) -> anyhow::Result<()> {
        let metadata = self.overlay.metadata()?;
        let is_shorter = metadata.is_file() && metadata.len() < ample.bytes();
        // Never something else.
        let is_ours = || self.made_for().is_some() || is_hole(self.overlay);
        if self.size.is_some() && is_shorter && is_ours() {
            FileStore::open_sized(self.overlay, ample)?;
        }
        Ok(())
    }

    /// The size that the overlay has been given.
    fn made_for(self) -> Option<NrPages> {
        let is_file = self.overlay != Path::new("memory");
        is_file.then(|| CowFile::read(self.overlay)).flatten().map(|cow| cow.nr_pages)
    }
}

/// `base`, and zeroes after it up to `size`.
pub(crate) fn with_tail(base: Arc<Pagemap>, size: NrPages) -> anyhow::Result<Arc<dyn Target>> {
    let pages = base.pages();
    let Ok(tail) = NrPages::try_new(size.get().saturating_sub(pages.end())) else {
        return Ok(base);
    };
    let start = Pgoff::try_new(pages.end())?;
    let tail = PgoffRange::try_new(start, tail)?;
    let base = Arc::new(Linear::try_new(base, pages)?) as Arc<dyn Target>;
    let zeroes = Arc::new(ZeroTarget::new(tail.nr_pages())) as Arc<dyn Target>;
    Ok(Arc::new(Table::try_new(vec![(pages, base), (tail, zeroes)])?))
}

/// That there are no changes to a base somewhere else, before an overlay is made over it.
fn check_unmarked(path: &Path, base: &Pagemap) -> anyhow::Result<()> {
    match origin_mark(base.store().fd())? {
        Some(mark) => {
            let marked = MarkedStore { store: path.display().to_string(), mark };
            Err(explain_overlay(InvalidSnapshot::Marked(marked)))
        }
        None => Ok(()),
    }
}

/// Adds to a refusal of an overlay what the user can do about it.
pub(crate) fn explain_overlay(error: InvalidSnapshot) -> anyhow::Error {
    let hint = hint_overlay(&error);
    anyhow!("{:#}{hint}", anyhow!(error))
}

/// What to do about a base that has changed.
pub(crate) const HINT_BASE: &str =
    "; bring it back as it was, or, if it is right as it is, give --accept-base";

pub(crate) fn hint_overlay(error: &InvalidSnapshot) -> String {
    match error {
        InvalidSnapshot::Base(_) => HINT_BASE.to_owned(),
        InvalidSnapshot::Marked(MarkedStore { store, mark }) => format!(
            "{}; to keep an overlay over the state of the snapshot, give --accept-base",
            Changes::of(mark).advice(Path::new(store))
        ),
        _ => String::new(),
    }
}

/// Whether nothing was ever written to a file.
fn is_hole(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(rustix::fs::seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO))
}

/// Whether a file is one that was made and not yet given a size, as a power cut may leave it.
fn is_empty_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}
