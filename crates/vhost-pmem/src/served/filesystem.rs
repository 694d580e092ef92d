// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The filesystem: one file, whose pages are bios of a region.

use std::error::Error;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use pfn_blk::{BioError, NrPages, PAGE_SIZE, Pgoff, PgoffRange};
use tracing::warn;

use super::Served;
use super::layers::Layers;
use super::namespace;
use super::openings::{self, Openings};
use super::publication::Permissions;
use super::syncs::Syncs;
use super::unchanged;
use crate::throttle::Throttle;

/// The largest request.
const REQUEST_BYTES: u32 = 1 << 20;
/// How many requests of readahead and writeback the kernel may have under way.
const BACKGROUND: u16 = 64;
/// What the kernel knows of the file doesn't change behind its back.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A file of `size`, whose first pages are those of a region; the rest reads as zeroes and can't
/// be written.
pub(super) struct RegionFile {
    layers: Arc<Layers>,
    openings: Arc<Openings>,
    syncs: Arc<Syncs>,
    attributes: FileAttr,
    /// Held while a part of a page is written, which others may be writing parts of.
    partial: Mutex<()>,
    /// Limits what a guest can have logged.
    failures: Throttle,
}

/// What is done with a part of the file.
enum Part {
    /// Pages of the region.
    Region(PgoffRange),
    /// Nothing but zeroes.
    Tail,
}

impl RegionFile {
    pub(super) fn new(served: &Served, size: NrPages, permissions: Permissions) -> Self {
        let Served { layers, openings, syncs } = served.clone();
        let attributes = FileAttr {
            ino: INodeNo::ROOT,
            size: size.bytes(),
            blocks: size.bytes() / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: permissions.mode,
            nlink: 1,
            uid: permissions.user,
            gid: permissions.group,
            rdev: 0,
            blksize: REQUEST_BYTES,
            flags: 0,
        };
        Self {
            layers,
            openings,
            syncs,
            attributes,
            partial: Mutex::default(),
            failures: Throttle::new(),
        }
    }

    /// `pages` of the file, in the region and behind it.
    fn parts(&self, pages: PgoffRange) -> Vec<(Part, usize)> {
        let mut parts = Vec::new();
        let mut tail = Some(pages);
        if let Some(inside) = pages.intersection(self.layers.pages()) {
            parts.push((Part::Region(inside), bytes(inside)));
            tail = pages.behind(inside);
        }
        if let Some(tail) = tail {
            parts.push((Part::Tail, bytes(tail)));
        }
        parts
    }

    /// The pages that have `len` bytes from `offset` on, and where in them these are.
    fn pages(&self, offset: u64, len: usize) -> Result<(PgoffRange, Range<usize>), Unmoved> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.attributes.size);
        let end = end.ok_or(Unmoved::Outside)?.next_multiple_of(PAGE_SIZE);
        let start = offset - offset % PAGE_SIZE;
        let pages = Pgoff::try_from_bytes(start)
            .and_then(|start_page| {
                PgoffRange::try_new(start_page, NrPages::try_from_bytes(end - start)?)
            })
            .map_err(|_| Unmoved::Outside)?;
        let at = usize::try_from(offset - start).expect("less than a page");
        Ok((pages, at..at + len))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Unmoved> {
        if buffer.is_empty() {
            return Ok(());
        }
        let (pages, within) = self.pages(offset, buffer.len())?;
        if within.len() == bytes(pages) {
            return self.read_pages(pages, buffer);
        }
        let mut whole = vec![0; bytes(pages)];
        self.read_pages(pages, &mut whole)?;
        buffer.copy_from_slice(&whole[within]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Unmoved> {
        if data.is_empty() {
            return Ok(());
        }
        let (pages, within) = self.pages(offset, data.len())?;
        if within.len() == bytes(pages) {
            return self.write_pages(pages, data);
        }
        // By somebody who doesn't map the file. The kernel sees to it that the same pages aren't
        // written back meanwhile.
        let _partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whole = vec![0; bytes(pages)];
        self.read_pages(pages, &mut whole)?;
        whole[within].copy_from_slice(data);
        self.write_pages(pages, &whole)
    }

    fn read_pages(&self, pages: PgoffRange, buffer: &mut [u8]) -> Result<(), Unmoved> {
        let mut rest = buffer;
        for (part, len) in self.parts(pages) {
            let (front, behind) = rest.split_at_mut(len);
            if let Part::Region(pages) = part {
                self.layers.read(pages, front)?;
            }
            rest = behind;
        }
        Ok(())
    }

    fn write_pages(&self, pages: PgoffRange, data: &[u8]) -> Result<(), Unmoved> {
        let mut rest = data;
        for (part, len) in self.parts(pages) {
            let (front, behind) = rest.split_at(len);
            match part {
                Part::Region(pages) => unchanged::write(&self.layers, pages, front)?,
                Part::Tail if unchanged::is_tail(front) => {}
                Part::Tail => return Err(Unmoved::BeyondTheEnd),
            }
            rest = behind;
        }
        Ok(())
    }

    /// Logs why pages could not be moved, which the kernel will not tell.
    fn log(&self, what: &'static str, cause: &Unmoved) {
        if let Some(suppressed) = self.failures.admit() {
            let suppressed = NonZeroU64::new(suppressed);
            let cause: &(dyn Error + 'static) = cause;
            warn!(suppressed, cause, "cannot {what} pages of the served window");
        }
    }
}

/// The size of pages that are moved at once.
fn bytes(pages: PgoffRange) -> usize {
    usize::try_from(pages.nr_pages().bytes()).expect("no more than a request has")
}

/// Why pages were not moved.
#[derive(Debug, thiserror::Error)]
enum Unmoved {
    /// The region failed.
    #[error(transparent)]
    Region(#[from] BioError),
    /// The guest wrote beyond the region's end, to the zeroes that make its size a power of two.
    #[error("the guest wrote beyond the region's end")]
    BeyondTheEnd,
    /// The kernel asked for bytes that the file doesn't have.
    #[error("bytes outside the window")]
    Outside,
}

impl Unmoved {
    /// The number that says most nearly what went wrong.
    fn errno(&self) -> Errno {
        match self {
            Self::Region(BioError::Full { .. }) => Errno::ENOSPC,
            Self::Region(BioError::ReadOnly { .. }) => Errno::EROFS,
            Self::Region(BioError::Store { source, .. }) => {
                source.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
            }
            Self::Region(_) | Self::BeyondTheEnd => Errno::EIO,
            Self::Outside => Errno::EINVAL,
        }
    }
}

impl Filesystem for RegionFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel doesn't have it does without.
        let _ = config.set_max_write(REQUEST_BYTES);
        if let Err(most) = config.set_max_readahead(REQUEST_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND);
        // In a user namespace of ours the kernel fails requests of users that aren't in it. KVM's are
        // root's: it would ask, and ask again, and the guest would stall at its first page.
        let all_users = config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP);
        if all_users.is_err() && !namespace::is_first() {
            warn!(
                "guests under KVM will stall in a window that is served in a user namespace, before \
                 Linux 6.12; start this as root"
            );
        }
        Ok(())
    }

    fn getattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        reply.attr(&FOR_EVER, &self.attributes);
    }

    fn setattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times alone are the kernel's to keep; nothing else changes.
        if mode.is_some() || uid.is_some() || gid.is_some() || size.is_some() {
            return reply.error(Errno::EPERM);
        }
        reply.attr(&FOR_EVER, &self.attributes);
    }

    fn open(&self, request: &Request, _inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0 {
            return reply.error(Errno::EPERM);
        }
        let Some(handle) = self.openings.opened(request.pid()) else {
            // What is shown changes at this moment.
            return reply.error(Errno::EBUSY);
        };
        // The page cache is the guest's memory: an open must not empty it.
        reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.attributes.size.saturating_sub(offset);
        let len = u64::from(size).min(left);
        let mut buffer = vec![0; usize::try_from(len).expect("no more than a request has")];
        match Self::read(self, offset, &mut buffer) {
            Ok(()) => reply.data(&buffer),
            Err(cause) => {
                self.log("read", &cause);
                reply.error(cause.errno());
            }
        }
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match Self::write(self, offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("no more than a request has")),
            Err(cause) => {
                self.log("write", &cause);
                if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                    // No one waits for it. Remembered before the kernel can send an FSYNC.
                    self.syncs.writeback_failed(&cause);
                }
                reply.error(cause.errno());
            }
        }
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.openings.released();
        reply.ok();
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Of a file that is closed. Only fsync says anything about durability.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let synced = match openings::is_ours(handle) {
            true => self.syncs.sync_ours(),
            false => self.syncs.sync_for_others(),
        };
        match synced {
            Ok(()) => reply.ok(),
            // It was logged when it happened.
            Err(_) => reply.error(Errno::EIO),
        }
    }
}
