// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks as the files of a directory on FUSE.
//!
//! A file that is made is there at once, empty. One that is removed may be there again after a power
//! cut.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::disk::{Disk, SECTOR};
use super::power::Power;

/// The largest request.
const REQUEST_BYTES: u32 = 1 << 20;
/// What the kernel knows of a file doesn't change.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

pub(super) struct Disks {
    power: Arc<Power>,
    media: PathBuf,
    lying: Vec<String>,
    numbers: Numbers,
}

/// The number of the disk of a name.
pub(super) type Numbers = Arc<Mutex<BTreeMap<OsString, usize>>>;

impl Disks {
    /// Those of the files in the directory `media`, which are numbered in this order.
    pub(super) fn new(
        power: Arc<Power>,
        media: PathBuf,
        lying: Vec<String>,
        names: Vec<OsString>,
    ) -> Self {
        let numbers = Arc::new(Mutex::new(names.into_iter().zip(0..).collect()));
        Self { power, media, lying, numbers }
    }

    /// The names, which change.
    pub(super) fn shared_numbers(&self) -> Numbers {
        Arc::clone(&self.numbers)
    }

    fn numbers(&self) -> MutexGuard<'_, BTreeMap<OsString, usize>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode of a disk, as that of its medium: what is noted of that is true when the medium is
    /// used without us.
    fn inode(&self, number: usize) -> INodeNo {
        INodeNo(self.power.read(number, Disk::inode))
    }

    /// The number of the disk that is this inode; the root is none.
    fn number(&self, inode: INodeNo) -> Option<usize> {
        self.power.find(|disk| disk.inode() == inode.0)
    }

    fn create(&self, name: &OsStr) -> io::Result<INodeNo> {
        let path = self.media.join(name);
        let number = self.power.add(|| {
            // It may have been removed, and be there still; or be in use by who had it open.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => File::create_new(&path)?,
            };
            Disk::open(&path, self.lying.iter().any(|lying| name == &**lying))
        })?;
        self.numbers().insert(name.to_owned(), number);
        Ok(self.inode(number))
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        if self.numbers().remove(name).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.power.perhaps(|| fs::remove_file(self.media.join(name)))
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let of = |disk: &Disk| (FileType::RegularFile, 0o600, disk.size(), disk.modified());
        let (kind, perm, size, time) = match self.number(inode) {
            Some(number) => self.power.read(number, of),
            None => (FileType::Directory, 0o700, 0, SystemTime::UNIX_EPOCH),
        };
        FileAttr {
            ino: inode,
            size,
            blocks: size / SECTOR as u64,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::NotFound => Errno::ENOENT,
        _ => error.raw_os_error().map_or(Errno::EINVAL, Errno::from_i32),
    }
}

fn reply_empty(done: io::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Bytes, or how many there are if there is room for none.
fn reply_bytes(bytes: &[u8], room: u32, reply: ReplyXattr) {
    match room {
        0 => reply.size(u32::try_from(bytes.len()).expect("a few")),
        room if bytes.len() > room as usize => reply.error(Errno::ERANGE),
        _ => reply.data(bytes),
    }
}

impl Filesystem for Disks {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel doesn't have it does without.
        let _ = config.set_max_write(REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = self.numbers().get(name).copied();
        match number {
            Some(number) => {
                reply.entry(&FOR_EVER, &self.attributes(self.inode(number)), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match Self::create(self, name) {
            Ok(inode) => {
                let (attributes, handle) = (self.attributes(inode), FileHandle(0));
                let keep = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&FOR_EVER, &attributes, Generation(0), handle, keep);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.remove(name), reply);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attributes(inode));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = match (self.number(inode), size) {
            (Some(number), Some(size)) => self.power.operate(number, |disk| disk.set_len(size)),
            // Times, which nobody asks for.
            _ => Ok(()),
        };
        match done {
            Ok(()) => reply.attr(&FOR_EVER, &self.attributes(inode)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // As with a file on a disk: what one has mapped is there still when another one opens it.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        let mut buffer = Vec::new();
        let read = self.power.read(number, |disk| {
            let len = disk.size().saturating_sub(offset).min(size.into());
            buffer.resize(usize::try_from(len).expect("no more than a request has"), 0);
            disk.read(offset, &mut buffer)
        });
        match read {
            Ok(()) => reply.data(&buffer),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        match self.power.operate(number, |disk| disk.write(offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("no more than a request has")),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Of a file that is closed: nothing to do with durability.
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        reply_empty(self.power.sync(number), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn setxattr(
        &self,
        _: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        let set = self.power.operate(number, |disk| disk.set_attribute(name, Some(value)));
        reply_empty(set, reply);
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        match self.power.read(number, |disk| disk.attribute(name)) {
            Ok(Some(value)) => reply_bytes(&value, size, reply),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        match self.power.read(number, Disk::attributes) {
            Ok(names) => reply_bytes(&names, size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn removexattr(&self, _: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some(number) = self.number(inode) else { return reply.error(Errno::EISDIR) };
        let attribute = self.power.read(number, |disk| disk.attribute(name));
        match attribute {
            Ok(Some(_)) => {
                let removed = self.power.operate(number, |disk| disk.set_attribute(name, None));
                reply_empty(removed, reply);
            }
            Ok(None) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(errno(&error)),
        }
    }
}
