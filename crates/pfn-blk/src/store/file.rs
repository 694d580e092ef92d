// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file or block device as a store.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use rustix::fs::{AtFlags, FileType, FsWord, Statx, StatxFlags};
use rustix::io::Errno;
use thiserror::Error;
use tracing::warn;

use super::opening::{check_writable, flags, open, reopen, sync_parent};
use super::{Access, OriginMark, Store, attribute, records, write_out};
use crate::page::{InvalidPages, NrPages, PAGE_SIZE, Pgoff};

/// Why a file can't be a store. Displays without the file's name, which the caller knows.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InvalidStore {
    /// There is no such file.
    #[error("no such file")]
    Missing,
    /// A directory.
    #[error("a directory, not a file")]
    Directory,
    /// A character device of device DAX. It has no sync: nothing could make durable what a guest
    /// stores there.
    #[error(
        "device DAX, which can't be synced; make the namespace fsdax, and use its block device, \
         or a file on it"
    )]
    DeviceDax,
    /// Something that has no pages.
    #[error("neither a regular file nor a block device")]
    NoPages,
    /// A block device that was asked to be another size.
    #[error("a block device, which can't be made another size")]
    FixedSize,
    /// A block device that is mounted, or that something else has opened exclusively.
    #[error("busy: mounted, or in use by another device or process")]
    Busy,
    /// A size that isn't whole pages.
    #[error("unusable size")]
    Size(#[source] InvalidPages),
    /// Larger than it was asked to be; shrinking would lose data.
    #[error("{is} bytes long, more than the {asked} bytes asked for; a file is never shrunk")]
    TooLong {
        /// The file's size in bytes.
        is: u64,
        /// The size asked for in bytes.
        asked: u64,
    },
    /// Something is in it already, and a new file was asked for.
    #[error("it holds {0} bytes already; name a new file")]
    NotNew(u64),
    /// Another process, or another store of this one, holds the file's lock.
    #[error(
        "locked: another process serves it{}",
        match .0 { Access::ReadWrite => "", Access::ReadOnly => " read-write" }
    )]
    Locked(Access),
    /// Marked as the origin of a snapshot, and to be written.
    #[error("a snapshot was taken of it, and its changes since are in {}", .0.cow.display())]
    Origin(OriginMark),
    /// Open already, for another use.
    #[error(
        "used both to be written and as a snapshot's origin, which must not change; \
         use a copy for one of them"
    )]
    BothWays,
    /// The system refused.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl InvalidStore {
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// What [`FileStore::open_sized`] and [`FileStore::open_new`] had to do to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizing {
    /// It was made, sparse.
    Created,
    /// It was grown sparsely from this many bytes.
    Grown(u64),
    /// It had the size already.
    Kept,
}

/// A regular file on any filesystem, or a block device.
///
/// A block device that is to be written is opened exclusively, so that nobody mounts it meanwhile.
/// The file is locked with `flock(2)` for as long as the store lives: exclusively where it is
/// opened read-write, shared where read-only. Its size is read once. One that is to be written must
/// be whole pages, as a partial last page could be written but would not be kept; read-only, what
/// is missing of it reads as zeroes, as it does through a mapping.
#[derive(Debug)]
pub struct FileStore {
    name: String,
    /// Locked, and synced.
    file: File,
    /// The same file, opened a second time, for others to map. Through `file` they could give up
    /// the lock, or take note of a failed sync in our place: both belong to the open file.
    mapped: File,
    bytes: u64,
    nr_pages: NrPages,
    access: Access,
    is_persistent: bool,
    alignment: NrPages,
    /// Some filesystems count no names.
    had_name: bool,
    warned_of_removal: AtomicBool,
}

impl FileStore {
    /// Opens an existing file.
    pub fn open(path: &Path, access: Access) -> Result<Self, InvalidStore> {
        let file = open(path, access, false)?;
        if access == Access::ReadWrite {
            check_writable(&file)?;
        }
        Self::of_its_size(path, file, access)
    }

    /// Opens an existing file for reading and writing, also if it is marked as an origin: to merge
    /// its changes, or to put them over it. COW stores that are kept over it stay good.
    pub fn open_origin(path: &Path) -> Result<Self, InvalidStore> {
        Self::of_its_size(path, open(path, Access::ReadWrite, false)?, Access::ReadWrite)
    }

    /// Takes away what this library has written down about a file besides its content: of an origin,
    /// the mark that it is one, and no more. Of others all, so that what was a mirror's leg is a file of
    /// its own. Returns the names and values.
    pub fn forget_records(path: &Path) -> Result<Vec<(String, Vec<u8>)>, InvalidStore> {
        let file = open(path, Access::ReadWrite, false)?;
        records::forget(&file).map_err(InvalidStore::io("take away what it says of itself"))
    }

    fn of_its_size(path: &Path, mut file: File, access: Access) -> Result<Self, InvalidStore> {
        // Metadata has no size for a block device.
        let bytes = file.seek(SeekFrom::End(0)).map_err(InvalidStore::io("read its size"))?;
        Self::try_new(path, file, bytes, access)
    }

    /// Opens a file for reading and writing and gives it `size`: it is created where there is
    /// none, and grown where it is shorter. New pages take no space until they are written.
    pub fn open_sized(path: &Path, size: NrPages) -> Result<(Self, Sizing), InvalidStore> {
        let asked = size.bytes();
        Self::resize(path, size, |is| match is > asked {
            true => Err(InvalidStore::TooLong { is, asked }),
            false => Ok(()),
        })
    }

    /// As [`open_sized`](Self::open_sized), but a file that has anything in it is refused, and left
    /// as it is.
    pub fn open_new(path: &Path, size: NrPages) -> Result<(Self, Sizing), InvalidStore> {
        Self::resize(path, size, |is| match is {
            0 => Ok(()),
            bytes => Err(InvalidStore::NotNew(bytes)),
        })
    }

    /// Opens a file, creates it where there is none, and gives it `size` if `check` lets one of
    /// its length be grown.
    fn resize(
        path: &Path,
        size: NrPages,
        check: impl FnOnce(u64) -> Result<(), InvalidStore>,
    ) -> Result<(Self, Sizing), InvalidStore> {
        let (file, existed) = match open(path, Access::ReadWrite, false) {
            Err(InvalidStore::Missing) => (open(path, Access::ReadWrite, true)?, false),
            opened => (opened?, true),
        };
        check_writable(&file)?;
        let metadata = file.metadata().map_err(InvalidStore::io("read its size"))?;
        if metadata.file_type().is_block_device() {
            return Err(InvalidStore::FixedSize);
        }
        let is = metadata.len();
        check(is)?;
        let asked = size.bytes();
        if is < asked {
            file.set_len(asked).map_err(InvalidStore::io("grow it"))?;
            file.sync_all().map_err(InvalidStore::io("sync its new size"))?;
        }
        if !existed {
            sync_parent(path)?;
        }
        let sizing = match (existed, is < asked) {
            (false, _) => Sizing::Created,
            (true, true) => Sizing::Grown(is),
            (true, false) => Sizing::Kept,
        };
        Ok((Self::try_new(path, file, asked, Access::ReadWrite)?, sizing))
    }

    fn try_new(path: &Path, file: File, bytes: u64, access: Access) -> Result<Self, InvalidStore> {
        let whole = match access {
            Access::ReadOnly => bytes.next_multiple_of(PAGE_SIZE),
            Access::ReadWrite => bytes,
        };
        let nr_pages = NrPages::try_from_bytes(whole).map_err(InvalidStore::Size)?;
        let name = path.display().to_string();
        let mapped = reopen(&file, flags(access))?;
        let (is_persistent, alignment) = filesystem(&file)?;
        let had_name = file.metadata().map_err(InvalidStore::io("inspect it"))?.nlink() > 0;
        Ok(Self {
            name,
            file,
            mapped,
            bytes,
            nr_pages,
            access,
            is_persistent,
            alignment,
            had_name,
            warned_of_removal: AtomicBool::new(false),
        })
    }
}

impl FileStore {
    /// Whether it is a file that had a name, and has none any more.
    fn is_nameless(&self, stat: &Statx) -> bool {
        is_file(stat) && self.had_name && stat.stx_nlink == 0
    }

    /// That nobody has cut off its end. Warns if it was removed, once.
    fn check_whole(&self) -> io::Result<()> {
        // No more than that: on ext4 and XFS, since Linux 6.13, a store behind a look at the file's
        // times must write new ones, and the next sync takes 40 µs more.
        let wanted = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::NLINK;
        let stat = rustix::fs::statx(&self.file, "", AtFlags::EMPTY_PATH, wanted)?;
        if self.is_nameless(&stat) && !self.warned_of_removal.swap(true, Ordering::Relaxed) {
            warn!(
                store = self.name,
                "the file was removed while it is served; what is written to it is lost when the \
                 daemon ends: copy the device in the guest"
            );
        }
        if is_file(&stat) && stat.stx_size < self.bytes {
            let lost = "the file was cut off; what was behind its end is lost";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, lost));
        }
        Ok(())
    }
}

impl Store for FileStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn nr_pages(&self) -> NrPages {
        self.nr_pages
    }

    fn access(&self) -> Access {
        self.access
    }

    fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    fn is_removed(&self) -> bool {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let wanted = StatxFlags::TYPE | StatxFlags::NLINK;
        let stat = rustix::fs::statx(&self.file, "", flags, wanted);
        stat.is_ok_and(|stat| self.is_nameless(&stat))
    }

    fn alignment(&self) -> NrPages {
        self.alignment
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.mapped.as_fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        let there = self.bytes.saturating_sub(at.bytes());
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        let (front, tail) = buffer.split_at_mut(there);
        tail.fill(0);
        self.file.read_exact_at(front, at.bytes())
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        // It would grow the file again, and what was cut off would be zeroes.
        self.check_whole()?;
        self.file.write_all_at(buffer, at.bytes())?;
        write_out::begin(&self.file, at.bytes(), buffer.len());
        Ok(())
    }

    fn persist(&self) -> io::Result<()> {
        self.check_whole()?;
        // fdatasync(2) writes the pages dirtied through any mapping of the file, by any process,
        // and with them the metadata that is needed to find them again.
        match self.file.sync_data() {
            // A filesystem that can't be written, such as squashfs, has nothing to sync.
            Err(error) if self.access == Access::ReadOnly && has_no_sync(&error) => Ok(()),
            done => done,
        }
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        attribute::get(&self.file, name)
    }

    fn set_attribute(&self, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        attribute::set(&self.file, name, value)
    }

    fn attributes(&self) -> io::Result<Vec<String>> {
        attribute::names(&self.file)
    }

    fn identity(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if !metadata.is_file() {
            // What a device node is says nothing about the device.
            return Ok(0);
        }
        // The first files of two new filesystems have one number, and are not made at one time.
        let created = metadata.created().ok();
        let since = created.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        let created = since.as_secs() << 32 | u64::from(since.subsec_nanos());
        Ok((metadata.ino().rotate_left(32) ^ created).max(1))
    }
}

fn is_file(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
}

/// Whether a sync failed because the file has none.
fn has_no_sync(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::ROFS))
}

/// Whether a file outlives the machine's power, and the alignment of its mappings; from the magic
/// numbers in the kernel's `uapi/linux/magic.h`. A block device's is that of devtmpfs, which says
/// nothing about the device.
fn filesystem(file: &File) -> Result<(bool, NrPages), InvalidStore> {
    const TMPFS: FsWord = 0x0102_1994;
    const RAMFS: FsWord = 0x8584_58f6;
    const HUGETLBFS: FsWord = 0x9584_58f6;
    let is_file = file.metadata().map_err(InvalidStore::io("inspect it"))?.is_file();
    let action = "inspect its filesystem";
    let stat = rustix::fs::fstatfs(file)
        .map_err(|errno| InvalidStore::Io { action, source: errno.into() })?;
    let huge_page = u64::try_from(stat.f_bsize).ok().map(NrPages::try_from_bytes);
    Ok(match (stat.f_type, huge_page) {
        (HUGETLBFS, Some(Ok(huge_page))) => (false, huge_page),
        (TMPFS | RAMFS, _) if is_file => (false, NrPages::ONE),
        _ => (true, NrPages::ONE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: u64) -> NrPages {
        NrPages::try_new(count).unwrap()
    }

    #[test]
    fn open_missing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = FileStore::open(&dir.path().join("none"), Access::ReadWrite).unwrap_err();
        assert!(matches!(error, InvalidStore::Missing));
    }

    #[test]
    fn open_directory_is_refused_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = FileStore::open(dir.path(), access).unwrap_err();
            assert!(matches!(error, InvalidStore::Directory), "{error:?}");
        }
    }

    #[test]
    fn open_device_is_refused() {
        let error = FileStore::open(Path::new("/dev/null"), Access::ReadWrite).unwrap_err();
        assert!(matches!(error, InvalidStore::NoPages), "{error:?}");
    }

    #[test]
    fn open_fifo_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let error = FileStore::open(&path, Access::ReadOnly).unwrap_err();
        assert!(matches!(error, InvalidStore::NoPages), "{error:?}");
    }

    #[test]
    fn file_in_memory_is_not_persistent() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (store, _) = FileStore::open_sized(&dir.path().join("file"), pages(1)).unwrap();
        assert!(!store.is_persistent());
        assert_eq!(store.alignment(), pages(1));
    }

    #[test]
    fn open_partial_page_reads_zeroes_behind_it_and_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; 5000]).unwrap();
        let refused = FileStore::open(&path, Access::ReadWrite).unwrap_err();
        assert!(matches!(refused, InvalidStore::Size(_)), "{refused:?}");
        let store = FileStore::open(&path, Access::ReadOnly).unwrap();
        assert_eq!(store.nr_pages(), pages(2));
        let mut bytes = [1; 8192];
        store.read(Pgoff::ZERO, &mut bytes).unwrap();
        assert!(bytes[..5000] == [7; 5000] && bytes[5000..] == [0; 3192]);
        // What was there and is gone is an error, not zeroes.
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        store.read(Pgoff::ZERO, &mut bytes).unwrap_err();
    }

    #[test]
    fn file_that_was_cut_off_fails_and_does_not_grow_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (store, _) = FileStore::open_sized(&path, pages(4)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        store.read(Pgoff::try_new(2).unwrap(), &mut [0; 4096]).unwrap_err();
        store.write(Pgoff::try_new(3).unwrap(), &[7; 4096]).unwrap_err();
        store.persist().unwrap_err();
        assert_eq!(file.metadata().unwrap().len(), 4096);
        file.set_len(4 * 4096).unwrap();
        store.write(Pgoff::try_new(3).unwrap(), &[7; 4096]).unwrap();
        store.persist().unwrap();
    }

    #[test]
    fn file_that_was_removed_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (store, _) = FileStore::open_sized(&path, pages(1)).unwrap();
        std::fs::hard_link(&path, dir.path().join("other")).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!store.is_removed(), "there is another name");
        std::fs::remove_file(dir.path().join("other")).unwrap();
        assert!(store.is_removed());
        store.persist().unwrap();
    }

    #[test]
    fn open_sized_creates_grows_and_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(FileStore::open_sized(&path, pages(2)).unwrap().1, Sizing::Created);
        assert_eq!(FileStore::open_sized(&path, pages(2)).unwrap().1, Sizing::Kept);
        let (store, sizing) = FileStore::open_sized(&path, pages(5)).unwrap();
        assert_eq!(sizing, Sizing::Grown(8192));
        assert_eq!(store.nr_pages(), pages(5));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 5 * 4096);
    }

    #[test]
    fn open_new_takes_no_file_that_has_something_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(FileStore::open_new(&path, pages(2)).unwrap().1, Sizing::Created);
        // Longer, shorter, and just as long.
        for len in [4096, 8192, 12288] {
            std::fs::write(&path, vec![0; len]).unwrap();
            let error = FileStore::open_new(&path, pages(2)).unwrap_err();
            assert!(matches!(error, InvalidStore::NotNew(bytes) if bytes == len as u64));
            assert_eq!(std::fs::metadata(&path).unwrap().len(), len as u64);
        }
        std::fs::write(&path, []).unwrap();
        assert_eq!(FileStore::open_new(&path, pages(2)).unwrap().1, Sizing::Grown(0));
    }

    #[test]
    fn open_sized_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let error = FileStore::open_sized(&path, pages(1)).unwrap_err();
        assert!(matches!(error, InvalidStore::TooLong { is: 8192, asked: 4096 }));
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 8192]);
    }

    #[test]
    fn lock_excludes_writers_and_lets_readers_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let writer = FileStore::open(&path, Access::ReadWrite).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = FileStore::open(&path, access).unwrap_err();
            assert!(matches!(error, InvalidStore::Locked(_)), "{error:?}");
        }
        drop(writer);
        let _first = FileStore::open(&path, Access::ReadOnly).unwrap();
        FileStore::open(&path, Access::ReadOnly).unwrap();
        FileStore::open(&path, Access::ReadWrite).unwrap_err();
    }

    #[test]
    fn lock_survives_whatever_is_done_to_the_mapped_fd() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (store, _) = FileStore::open_sized(&path, pages(1)).unwrap();
        rustix::fs::flock(store.fd(), rustix::fs::FlockOperation::Unlock).unwrap();
        let error = FileStore::open(&path, Access::ReadWrite).unwrap_err();
        assert!(matches!(error, InvalidStore::Locked(_)), "{error:?}");
    }
}
