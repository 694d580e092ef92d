// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that a snapshot was taken of, and what to do about them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use pfn_blk::{Access, CowFile, FileStore, OriginMark, Store, origin_mark};
use rustix::io::Errno;

use crate::printable::printable;

/// Where the changes are that a mark tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changes {
    /// Where the mark says.
    Here,
    /// The mark is another file's, of which this is a copy.
    Anothers,
    /// There is nothing.
    Missing,
    /// Something else is there.
    Replaced,
}

impl Changes {
    /// Looks for them.
    pub(crate) fn of(mark: &OriginMark) -> Self {
        if mark.is_copied {
            Self::Anothers
        } else if is_kept_in(mark, &mark.cow) {
            Self::Here
        } else if mark.cow.exists() {
            Self::Replaced
        } else {
            Self::Missing
        }
    }

    /// What can be done about `file`, after what is wrong with it.
    pub(crate) fn advice(self, file: &Path) -> String {
        let file = file.display();
        match self {
            Self::Here => "; serve it with that as its --overlay, or merge".to_owned(),
            Self::Anothers => format!(
                "; this file was copied or moved since: to use a copy as it is, in the state of the \
                 snapshot, run \"vhost-pmemd unmark {file}\"; serve a file that was moved with that \
                 as its --overlay"
            ),
            Self::Missing | Self::Replaced => {
                let what = match self {
                    Self::Replaced => "holds something else now",
                    _ => "doesn't exist",
                };
                format!(
                    ", which {what}; bring it back, or, to give up what was written since the snapshot, \
                     run \"vhost-pmemd unmark {file}\""
                )
            }
        }
    }
}

/// The mark of the file at `path`, if that is one and has a mark.
pub(crate) fn of(path: &Path) -> io::Result<Option<OriginMark>> {
    // A FIFO would have us wait.
    match fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        true => origin_mark(File::open(path)?),
        false => Ok(None),
    }
}

/// Whether the COW store at `path` is the one that a mark tells of.
pub(crate) fn is_kept_in(mark: &OriginMark, path: &Path) -> bool {
    let Some(found) = CowFile::read(path) else { return false };
    match mark.id {
        Some(id) => found.id == Some(id),
        // A mark of before there were ids.
        None => std::path::absolute(path).is_ok_and(|path| path == mark.cow),
    }
}

/// That `file` by itself is the state of its snapshot, and no mixture of that and the changes since,
/// of which a merge has left the others in their COW store.
pub(crate) fn check_not_merging(file: &Path) -> anyhow::Result<()> {
    let Ok(Some(mark)) = of(file) else { return Ok(()) };
    let cow = CowFile::read(&mark.cow).filter(|_| Changes::of(&mark) == Changes::Here);
    match cow {
        Some(CowFile { has_merged: true, used: 1.., .. }) => bail!(
            "a merge of the changes since its snapshot was begun, and the others are still in {}; \
             merge those",
            mark.cow.display()
        ),
        _ => Ok(()),
    }
}

/// Takes away what says that `file` belongs to others: first that its changes are kept elsewhere, as a
/// leg's label is needed for as long as it is to be one.
pub(crate) fn unmark(file: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let context = || format!("cannot unmark {}", file.display());
    check_not_merging(file).with_context(context)?;
    let forgotten = FileStore::forget_records(file).with_context(context)?;
    for (name, value) in &forgotten {
        writeln!(out, "removed {name}: {}", shown(value))?;
    }
    if forgotten.is_empty() {
        writeln!(out, "there was no mark")?;
    } else if is_leg(file) {
        // It had a mark, and that alone was taken.
        writeln!(out, "it is still a mirror's leg; to give up what is on it, unmark it once more")?;
    }
    Ok(())
}

/// Whether a file is one that has no extended attributes of users: a block device, or memory.
pub(crate) fn cannot_be_marked(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTSUP | Errno::PERM))
}

/// Whether a file has a leg's label.
fn is_leg(file: &Path) -> bool {
    let names = FileStore::open(file, Access::ReadOnly).ok().and_then(|it| it.attributes().ok());
    names.is_some_and(|names| names.iter().any(|name| name.starts_with("leg.")))
}

/// A value as text, or in hexadecimal digits.
fn shown(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') => printable(text).into_owned(),
        _ => value.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}
