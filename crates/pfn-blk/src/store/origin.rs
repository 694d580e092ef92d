// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mark of an origin: a file that must not be written, as its changes are kept in another.
//!
//! A snapshot that is taken while a file is served makes it an origin, and no table says so. Were it
//! served by itself the next time, and written, the changes since the snapshot would be lost. So it
//! is marked, by an extended attribute that names the COW store: `ID INODE PATH`. The id is in the
//! COW store's header also, so that another file at that path isn't taken for it; the inode is the
//! origin's, so that a copy which took the attribute along isn't taken for the origin.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr, fstat, fsync};
use rustix::io::Errno;

use super::id::Id;

const NAME: &str = "user.pfn-blk.changes";
/// The same as a note beside the file's pages.
pub(super) const NOTE: &str = "changes";
/// The longest path there is, and what stands before it.
const MARK_MAX: usize = 4096 + 64;

/// What an origin is marked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginMark {
    /// Where its changes are kept.
    pub cow: PathBuf,
    /// The id of that COW store. None in a mark of a version that had none.
    pub id: Option<Id>,
    /// Whether the mark was made for another file, of which this is a copy.
    pub is_copied: bool,
}

/// Marks `file` as an origin whose changes are in `cow`, a COW store with that id, durably. Not
/// every filesystem can, and no block device.
pub fn mark_origin(file: impl AsFd, id: Id, cow: &Path) -> io::Result<()> {
    let inode = fstat(&file)?.st_ino;
    let mut mark = format!("{id} {inode} ").into_bytes();
    mark.extend(std::path::absolute(cow)?.as_os_str().as_bytes());
    fsetxattr(&file, NAME, &mark, XattrFlags::empty())?;
    Ok(fsync(file)?)
}

/// Takes the mark away, durably.
pub fn unmark_origin(file: impl AsFd) -> io::Result<()> {
    match fremovexattr(&file, NAME) {
        Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(()) => Ok(fsync(file)?),
    }
}

/// Where the changes to `file` are, if it is marked as an origin.
pub fn origin_mark(file: impl AsFd) -> io::Result<Option<OriginMark>> {
    let mut mark = vec![0; MARK_MAX];
    match fgetxattr(&file, NAME, &mut mark) {
        Ok(len) => {
            mark.truncate(len);
            Ok(Some(parse(&mark, fstat(file)?.st_ino)))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A mark that was found on the file of that inode. One that isn't ours is a path of before.
fn parse(mark: &[u8], inode: u64) -> OriginMark {
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let fields = || {
        let mut fields = mark.splitn(3, |byte| *byte == b' ');
        let mut text = || str::from_utf8(fields.next()?).ok();
        let (id, of) = (Id::parse(text()?)?, text()?.parse::<u64>().ok()?);
        Some(OriginMark { cow: path(fields.next()?), id: Some(id), is_copied: of != inode })
    };
    fields().unwrap_or_else(|| OriginMark { cow: path(mark), id: None, is_copied: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, FileStore, InvalidStore, NrPages};

    #[test]
    fn marked_file_is_opened_read_only_until_the_mark_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let size = NrPages::try_new(4).unwrap();
        drop(FileStore::open_sized(&path, size).unwrap());
        let file = std::fs::File::open(&path).unwrap();
        unmark_origin(&file).unwrap();
        if let Err(error) = mark_origin(&file, Id::random().unwrap(), Path::new("/cow")) {
            eprintln!("skipped: {error}");
            return;
        }
        let refused = |result: Result<_, InvalidStore>| match result.map(drop) {
            Err(InvalidStore::Origin(mark)) => assert_eq!(mark.cow, Path::new("/cow")),
            other => panic!("{other:?}"),
        };
        refused(FileStore::open(&path, Access::ReadWrite).map(drop));
        refused(FileStore::open_sized(&path, size).map(drop));
        FileStore::open(&path, Access::ReadOnly).unwrap();
        FileStore::open_origin(&path).unwrap();
        unmark_origin(&file).unwrap();
        FileStore::open(&path, Access::ReadWrite).unwrap();
    }

    #[test]
    fn mark_is_read_as_it_was_written() {
        let id = Id::random().unwrap();
        let path = |text: &str| PathBuf::from(text);
        let mark = format!("{id} 12 /a path\n").into_bytes();
        let found = OriginMark { cow: path("/a path\n"), id: Some(id), is_copied: false };
        assert_eq!(parse(&mark, 12), found);
        assert_eq!(parse(&mark, 13), OriginMark { is_copied: true, ..found });
        // As they were, and as a stranger may have them.
        for old in ["/srv/vm cow 1", "", "0 1 /x", &format!("{id} /x y")] {
            let found = OriginMark { cow: path(old), id: None, is_copied: false };
            assert_eq!(parse(old.as_bytes(), 1), found);
        }
    }
}
