// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opening files and block devices: locked, and never blocking.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::file::InvalidStore;
use super::{Access, generation, origin_mark};

pub(super) fn flags(access: Access) -> OFlags {
    let flags = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    flags | OFlags::CLOEXEC
}

/// Opens a file that is open a second time.
pub(super) fn reopen(file: &File, flags: OFlags) -> Result<File, InvalidStore> {
    let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(Errno::BUSY) => Err(InvalidStore::Busy),
        Err(errno) => {
            let action = "open it a second time, through /proc";
            Err(InvalidStore::Io { action, source: errno.into() })
        }
    }
}

pub(super) fn open(path: &Path, access: Access, create: bool) -> Result<File, InvalidStore> {
    // Without NONBLOCK a FIFO would block here indefinitely.
    let mut flags = flags(access) | OFlags::NONBLOCK;
    if create {
        flags |= OFlags::CREATE | OFlags::EXCL;
    }
    let file =
        rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
            Errno::NOENT if !create => InvalidStore::Missing,
            Errno::ISDIR => InvalidStore::Directory,
            _ => InvalidStore::Io { action: "open it", source: errno.into() },
        })?;
    let mut file = File::from(file);
    let kind = file.metadata().map_err(InvalidStore::io("inspect it"))?.file_type();
    if kind.is_dir() {
        return Err(InvalidStore::Directory);
    }
    if kind.is_block_device() {
        if access == Access::ReadWrite {
            file = reopen(&file, self::flags(access) | OFlags::EXCL)?;
        }
    } else if !kind.is_file() {
        let is_dax = kind.is_char_device() && is_device_dax(&file, Path::new("/sys"));
        return Err(if is_dax { InvalidStore::DeviceDax } else { InvalidStore::NoPages });
    }
    let operation = match access {
        Access::ReadOnly => FlockOperation::NonBlockingLockShared,
        Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(InvalidStore::Locked(access)),
        Err(errno) => Err(InvalidStore::Io { action: "lock it", source: errno.into() }),
    }
}

/// Checks that a file that is to be written is no one's origin, and makes COW stores that were kept
/// over it stale.
pub(super) fn check_writable(file: &File) -> Result<(), InvalidStore> {
    match origin_mark(file).map_err(InvalidStore::io("read its extended attributes"))? {
        Some(mark) => Err(InvalidStore::Origin(mark)),
        None => generation::move_on(file).map_err(InvalidStore::io("move its generation on")),
    }
}

/// Whether a character device belongs to device DAX, as sysfs tells.
fn is_device_dax(file: &File, sysfs: &Path) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let subsystem = sysfs.join(format!("dev/char/{major}:{minor}/subsystem"));
    std::fs::read_link(subsystem).is_ok_and(|path| path.file_name() == Some("dax".as_ref()))
}

/// A new file's name is as much in need of a sync as its size.
pub(super) fn sync_parent(path: &Path) -> Result<(), InvalidStore> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(InvalidStore::io("sync its directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_dax_is_told_by_its_subsystem() {
        // Any character device, and a sysfs that says what it is.
        let sysfs = tempfile::tempdir().unwrap();
        let device = File::open("/dev/null").unwrap();
        assert!(!is_device_dax(&device, sysfs.path()));
        let entry = sysfs.path().join("dev/char/1:3");
        std::fs::create_dir_all(&entry).unwrap();
        std::os::unix::fs::symlink("../../../bus/dax", entry.join("subsystem")).unwrap();
        assert!(is_device_dax(&device, sysfs.path()));
        assert!(!is_device_dax(&File::open("/dev/zero").unwrap(), sysfs.path()));
    }
}
