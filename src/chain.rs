// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The snapshots that a process before has left open, found by marks: a file's mark names the overlay
//! that has its changes, whose own mark names the next one.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use pfn_blk::{InvalidStore, MarkedStore, OriginMark};
use tracing::info;
use vhost_pmem::LAYERS_MAX;

use crate::marks::{self, Changes};

/// The overlays over files that are `marked`, the first one taken first. What is ambiguous is refused,
/// with the name of the file unless that is the one which is `shown`.
pub(crate) fn find(marked: &[MarkedStore], shown: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
    let Some((first, others)) = marked.split_first() else { return Ok(Vec::new()) };
    if let Some(other) = others.iter().find(|other| !is_same(&other.mark, &first.mark)) {
        bail!(
            "{} has its changes since a snapshot in {}, and {} has them in {}; merge one of them, by \
             \"vhost-pmemd merge --file FILE --overlay OVERLAY\"",
            first.store,
            first.mark.cow.display(),
            other.store,
            other.mark.cow.display()
        );
    }
    let (mut file, mut mark) = (PathBuf::from(&first.store), first.mark.clone());
    let mut cows = Vec::new();
    loop {
        match Changes::of(&mark) {
            Changes::Here => {}
            lost => {
                let error = explain(&mark, lost, &file);
                let is_shown = shown == Some(&*file);
                return Err(if is_shown {
                    error
                } else {
                    error.context(file.display().to_string())
                });
            }
        }
        if cows.contains(&mark.cow) || cows.len() == LAYERS_MAX {
            bail!("{}: more than {LAYERS_MAX} snapshots one over another", file.display());
        }
        info!(file = %file.display(), overlay = %mark.cow.display(), "what was written since a snapshot is in an overlay");
        cows.push(mark.cow.clone());
        file = mark.cow;
        match marks::of(&file).with_context(|| file.display().to_string())? {
            Some(next) => mark = next,
            None => return Ok(cows),
        }
    }
}

/// Whether two files have their changes in one overlay.
fn is_same(one: &OriginMark, other: &OriginMark) -> bool {
    one.cow == other.cow && one.id == other.id
}

fn explain(mark: &OriginMark, lost: Changes, file: &Path) -> anyhow::Error {
    let advice = lost.advice(file);
    anyhow!("{}{advice}", InvalidStore::Origin(mark.clone()))
}
