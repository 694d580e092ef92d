// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file in memory.
#![allow(unsafe_code, reason = "mapped memory is reached by pointers")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU32};

use anyhow::Result;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, MsyncFlags, ProtFlags, madvise, mlock, mmap,
    mmap_anonymous, mprotect, mremap, msync, munlock, munmap,
};

use crate::sys::{Child, End};

/// The size of a page.
pub(crate) const PAGE: usize = 4096;
/// How much one entry of the page tables' second level maps.
pub(crate) const PMD: usize = 2 << 20;

/// What became of a child process that touched a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// It went on.
    Done,
    /// SIGBUS: there is no such part of the file, or no room for it.
    Bus,
    /// SIGSEGV: the mapping doesn't allow it.
    Segv,
    /// It ended otherwise.
    Other(End),
}

/// A part of a file in memory. Whatever others do to the file meanwhile, this process reaches it by
/// pointers only, and as bytes, of which every value is one.
///
/// An offset beyond the mapping's length is the case's own mistake, at which it panics. A load or
/// store beyond the file's end ends the process with SIGBUS.
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: it is memory of the whole process, which the last owner unmaps. What threads do to the same
// bytes at once, they do by `atomic` and `byte`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all of `file`, for reading and writing.
    pub(crate) fn all(file: &File) -> Result<Self> {
        Self::shared(file, 0, usize::try_from(file.metadata()?.len())?)
    }

    /// Maps `len` bytes from `offset`, which the file need not have, for reading and writing.
    pub(crate) fn shared(file: &File, offset: u64, len: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Self::with(file, offset, len, access, MapFlags::SHARED)?)
    }

    /// Maps the first `len` bytes; what is stored is this process's own.
    pub(crate) fn private(file: &File, len: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Self::with(file, 0, len, access, MapFlags::PRIVATE)?)
    }

    /// Maps the first `len` bytes, for reading.
    pub(crate) fn read_only(file: &File, len: usize) -> Result<Self> {
        Ok(Self::with(file, 0, len, ProtFlags::READ, MapFlags::SHARED)?)
    }

    /// Maps as told, at any address.
    pub(crate) fn with(
        file: &File,
        offset: u64,
        len: usize,
        access: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        // SAFETY: without MAP_FIXED the kernel chooses an address where nothing is.
        let start = unsafe { mmap(ptr::null_mut(), len, access, flags, file, offset) }?;
        Ok(Self { start: start.cast(), len })
    }

    /// Maps `len` bytes from `offset`, with `flags`, at an address of which 2 MiB pages can be made
    /// if the file's offset is aligned too.
    pub(crate) fn aligned(file: &File, offset: u64, len: usize, flags: MapFlags) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let pages = len.next_multiple_of(PAGE);
        // SAFETY: without MAP_FIXED the kernel chooses an address where nothing is.
        let room = unsafe {
            mmap_anonymous(ptr::null_mut(), pages + PMD, ProtFlags::empty(), MapFlags::PRIVATE)
        }?;
        let before = room.align_offset(PMD);
        let start = room.wrapping_byte_add(before);
        // SAFETY: the range is within the room just made, which nobody else knows of.
        unsafe { mmap(start, len, access, flags | MapFlags::FIXED, file, offset) }?;
        // SAFETY: these are what is left of the room, and in nobody's use.
        unsafe {
            if before > 0 {
                munmap(room, before)?;
            }
            if before < PMD {
                munmap(start.wrapping_byte_add(pages), PMD - before)?;
            }
        }
        Ok(Self { start: start.cast(), len })
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its address.
    pub(crate) fn address(&self) -> usize {
        self.start.addr()
    }

    /// Loads `len` bytes.
    pub(crate) fn load(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let from = self.reach(at, len);
        // SAFETY: `from` is valid for `len` bytes of this mapping, `bytes` for as many of its own.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Stores `bytes`.
    pub(crate) fn store(&self, at: usize, bytes: &[u8]) {
        let to = self.reach(at, bytes.len());
        // SAFETY: `to` is valid for as many bytes of this mapping, which no slice ever refers to.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// One byte, to be shared with other threads and processes.
    pub(crate) fn byte(&self, at: usize) -> &AtomicU8 {
        // SAFETY: it is within the mapping, which `self` keeps, and any byte is aligned.
        unsafe { AtomicU8::from_ptr(self.reach(at, 1)) }
    }

    /// Four bytes, to be shared with other threads and processes.
    pub(crate) fn atomic(&self, at: usize) -> &AtomicU32 {
        assert!(at % 4 == 0, "{at} isn't aligned");
        // SAFETY: they are within the mapping, which `self` keeps, and aligned as the mapping is.
        unsafe { AtomicU32::from_ptr(self.reach(at, 4).cast()) }
    }

    /// Lets `read` fill `len` bytes by a system call, such as one that reads a file.
    pub(crate) fn fill_by<T>(&self, at: usize, len: usize, read: impl FnOnce(&mut [u8]) -> T) -> T {
        // SAFETY: the bytes are within the mapping; they change under the slice only by what `read`
        // does itself, as a case has no other thread or reference at work on them then.
        read(unsafe { std::slice::from_raw_parts_mut(self.reach(at, len), len) })
    }

    /// Lets `write` take `len` bytes by a system call, such as one that writes a file.
    pub(crate) fn drain_by<T>(&self, at: usize, len: usize, write: impl FnOnce(&[u8]) -> T) -> T {
        // SAFETY: as in `fill_by`.
        write(unsafe { std::slice::from_raw_parts(self.reach(at, len), len) })
    }

    /// Has a child process load the byte at `at`.
    pub(crate) fn touch_by_load(&self, at: usize) -> Result<Touch> {
        let from = self.reach(at, 1);
        self.touch(move || {
            // SAFETY: it is within the mapping, which the child has as well.
            unsafe { from.read_volatile() };
        })
    }

    /// Has a child process store a byte at `at`.
    pub(crate) fn touch_by_store(&self, at: usize, byte: u8) -> Result<Touch> {
        let to = self.reach(at, 1);
        self.touch(move || {
            // SAFETY: as in `touch_by_load`.
            unsafe { to.write_volatile(byte) };
        })
    }

    fn touch(&self, access: impl FnOnce()) -> Result<Touch> {
        let child = Child::run(|| {
            access();
            0
        })?;
        Ok(match child.wait()? {
            End::Exit(0) => Touch::Done,
            End::Signal(libc::SIGBUS) => Touch::Bus,
            End::Signal(libc::SIGSEGV) => Touch::Segv,
            end => Touch::Other(end),
        })
    }

    /// `msync` of a range, which need not be one of whole pages or of this mapping.
    pub(crate) fn msync(&self, range: Range<usize>, flags: MsyncFlags) -> io::Result<()> {
        let start = self.start.wrapping_add(range.start);
        // SAFETY: msync changes no memory.
        Ok(unsafe { msync(start.cast(), range.len(), flags) }?)
    }

    /// Makes all of it durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.msync(0..self.len, MsyncFlags::SYNC)
    }

    /// `madvise` of a range.
    pub(crate) fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        let start = self.reach(range.start, range.len());
        // SAFETY: the range is of this mapping; all that advice can do to a shared one is to drop
        // pages that the next access brings back.
        Ok(unsafe { madvise(start.cast(), range.len(), advice) }?)
    }

    /// `mprotect` of a range.
    pub(crate) fn protect(&self, range: Range<usize>, access: MprotectFlags) -> io::Result<()> {
        let start = self.reach(range.start, range.len());
        // SAFETY: the range is of this mapping, and nothing refers to it.
        Ok(unsafe { mprotect(start.cast(), range.len(), access) }?)
    }

    /// Locks all of it in memory, and lets it go.
    pub(crate) fn lock_and_unlock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping, whose bytes stay.
        unsafe {
            mlock(self.start.cast(), self.len)?;
            Ok(munlock(self.start.cast(), self.len)?)
        }
    }

    /// Makes it `len` long, wherever there is room.
    pub(crate) fn resize(&mut self, len: usize) -> io::Result<()> {
        // SAFETY: the range is this mapping, which nothing refers to while it is borrowed
        // exclusively.
        let start = unsafe { mremap(self.start.cast(), self.len, len, MremapFlags::MAYMOVE) }?;
        (self.start, self.len) = (start.cast(), len);
        Ok(())
    }

    /// Makes two mappings of it, each of which can go without the other.
    pub(crate) fn split(self, at: usize) -> (Self, Self) {
        let second = Self { start: self.reach(at, self.len - at), len: self.len - at };
        let first = Self { start: self.start, len: at };
        std::mem::forget(self);
        (first, second)
    }

    /// Where `len` bytes at `at` are.
    fn reach(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "{at}+{len} isn't mapped");
        self.start.wrapping_add(at)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, which nothing refers to any more.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}
