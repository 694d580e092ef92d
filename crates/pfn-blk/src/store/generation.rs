// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The generation of a file that others rely on: a random number in an extended attribute, another
//! one after each time that the file may have been written.
//!
//! A file gets one when a COW store is first kept over it. From then on whatever opens it for writing
//! through this library moves it on, before it writes. What is written by other programs shows in
//! the time of the last modification.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, XattrFlags, fgetxattr, fsetxattr, fstat, fsync};
use rustix::io::Errno;

use super::id::Id;

const NAME: &str = "user.pfn-blk.generation";

/// What is known of a file's content without reading it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    /// None where the file can't have one.
    pub(crate) generation: Option<Id>,
    /// When it was last written. None where that isn't kept.
    pub(crate) modified: Option<SystemTime>,
}

impl Content {
    /// Looks at a file, after it has made what it looks at durable; nothing of what isn't a regular
    /// file, or has no name. A file without a generation gets one if it `may_begin`.
    pub(crate) fn of(file: impl AsFd, may_begin: bool) -> io::Result<Option<Self>> {
        let stat = fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || stat.st_nlink == 0 {
            return Ok(None);
        }
        let generation = match generation(&file)? {
            None if may_begin => begin(&file)?,
            known => known,
        };
        // fdatasync(2) leaves times in memory.
        sync(&file)?;
        // Stores don't change it any more, but it may be older than the sync.
        let stat = fstat(&file)?;
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let since = Duration::new(seconds, nanoseconds);
        // A filesystem that keeps no times tells of the epoch.
        let modified = (!since.is_zero()).then(|| SystemTime::UNIX_EPOCH + since);
        Ok(Some(Self { generation, modified }))
    }
}

fn generation(file: impl AsFd) -> io::Result<Option<Id>> {
    let mut bytes = [0; 16];
    match fgetxattr(file, NAME, &mut bytes) {
        Ok(16) => Ok(Id::from_bytes(bytes)),
        // What isn't ours says nothing.
        Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a file its first generation, unless another process does so now, or it can't have one.
fn begin(file: impl AsFd) -> io::Result<Option<Id>> {
    let first = Id::random()?;
    match fsetxattr(&file, NAME, &first.to_bytes(), XattrFlags::CREATE) {
        Ok(()) => Ok(Some(first)),
        Err(Errno::EXIST) => generation(file),
        Err(Errno::NOSPC | Errno::DQUOT) => Ok(None),
        Err(errno) if cannot_have(errno) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes `next` the generation of a file that has one, durably.
pub(crate) fn move_on_to(file: impl AsFd, next: Id) -> io::Result<()> {
    match fsetxattr(&file, NAME, &next.to_bytes(), XattrFlags::REPLACE) {
        Ok(()) => sync(file),
        Err(Errno::NODATA) => Ok(()),
        Err(errno) if cannot_have(errno) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Moves the generation of a file on that has one, durably: it is about to be written.
pub(crate) fn move_on(file: impl AsFd) -> io::Result<()> {
    move_on_to(file, Id::random()?)
}

/// Whether files of this kind have no attributes, or not by us.
fn cannot_have(errno: Errno) -> bool {
    matches!(errno, Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::ROFS)
}

fn sync(file: impl AsFd) -> io::Result<()> {
    match fsync(file) {
        // A filesystem that can't be written has nothing to sync.
        Ok(()) | Err(Errno::INVAL | Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_begins_once_and_moves_on_where_it_has_begun() {
        let file = tempfile::NamedTempFile::new().unwrap();
        move_on(&file).unwrap();
        assert_eq!(Content::of(&file, false).unwrap().unwrap().generation, None);
        let Some(first) = Content::of(&file, true).unwrap().unwrap().generation else {
            eprintln!("skipped: no extended attributes here");
            return;
        };
        assert_eq!(Content::of(&file, true).unwrap().unwrap().generation, Some(first));
        move_on(&file).unwrap();
        let second = Content::of(&file, false).unwrap().unwrap().generation.unwrap();
        assert_ne!(first, second);
        move_on_to(&file, first).unwrap();
        assert_eq!(Content::of(&file, false).unwrap().unwrap().generation, Some(first));
    }

    #[test]
    fn content_of_what_has_no_name_is_not_known() {
        assert!(Content::of(tempfile::tempfile().unwrap(), true).unwrap().is_none());
    }
}
