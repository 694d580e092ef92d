// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mark of an origin: a file that must not be written, as its changes are kept in another.
//!
//! A snapshot that is taken while a file is served makes it an origin, and no table says so. Were it
//! served by itself the next time, and written, the changes since the snapshot would be lost. So it
//! is marked, by an extended attribute that names the COW store.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr, fsync};
use rustix::io::Errno;

const NAME: &str = "user.pfn-blk.changes";
/// The longest path there is.
const PATH_MAX: usize = 4096;

/// Marks `file` as an origin whose changes are in `cow`, durably. Not every filesystem can, and no
/// block device.
pub fn mark_origin(file: impl AsFd, cow: &Path) -> io::Result<()> {
    let cow = std::path::absolute(cow)?;
    fsetxattr(&file, NAME, cow.as_os_str().as_bytes(), XattrFlags::empty())?;
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
pub fn origin_mark(file: impl AsFd) -> io::Result<Option<PathBuf>> {
    let mut path = vec![0; PATH_MAX];
    match fgetxattr(file, NAME, &mut path) {
        Ok(len) => {
            path.truncate(len);
            Ok(Some(OsString::from_vec(path).into()))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
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
        if let Err(error) = mark_origin(&file, Path::new("/cow")) {
            eprintln!("skipped: {error}");
            return;
        }
        let refused = |result: Result<_, InvalidStore>| match result.map(drop) {
            Err(InvalidStore::Origin { cow }) => assert_eq!(cow, Path::new("/cow")),
            other => panic!("{other:?}"),
        };
        refused(FileStore::open(&path, Access::ReadWrite).map(drop));
        refused(FileStore::open_sized(&path, size).map(drop));
        FileStore::open(&path, Access::ReadOnly).unwrap();
        FileStore::open_origin(&path).unwrap();
        unmark_origin(&file).unwrap();
        FileStore::open(&path, Access::ReadWrite).unwrap();
    }
}
