// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks as files of a FUSE filesystem: a directory of files whose sizes don't change.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::disk::{Disk, SECTOR};
use super::power::Power;

/// The largest request.
const REQUEST_BYTES: u32 = 1 << 20;
/// What the kernel knows of a file doesn't change.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

pub(super) struct Disks {
    pub(super) power: Arc<Power>,
    pub(super) names: Vec<OsString>,
}

impl Disks {
    /// The number of the disk that is this inode; the root is none.
    fn number(&self, inode: INodeNo) -> Option<usize> {
        let number = usize::try_from(inode.0.checked_sub(INodeNo::ROOT.0 + 1)?).ok()?;
        (number < self.names.len()).then_some(number)
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH;
        let (kind, perm, size) = match self.number(inode) {
            Some(number) => (FileType::RegularFile, 0o600, self.power.read(number, Disk::size)),
            None => (FileType::Directory, 0o700, 0),
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
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_i32)
}

impl Filesystem for Disks {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel doesn't have it does without.
        let _ = config.set_max_write(REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.names.iter().position(|one| one == name) {
            Some(number) => {
                let inode = INodeNo(INodeNo::ROOT.0 + 1 + number as u64);
                reply.entry(&FOR_EVER, &self.attributes(inode), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
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
        if size.is_some() {
            return reply.error(Errno::EPERM);
        }
        // Times, which nobody asks for.
        reply.attr(&FOR_EVER, &self.attributes(inode));
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
        let Some(number) = self.number(inode) else { return reply.ok() };
        match self.power.operate(number, Disk::sync) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }
}
