// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ioctls of filesystems, numbered as in the kernel's `include/uapi/linux/{fs,fiemap}.h` and
//! `fs/xfs/libxfs/xfs_fs.h`.
#![allow(unsafe_code, reason = "an ioctl's argument is what its number says")]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
const FS_IOC_FIEMAP: u64 = 0xc020_660b;
const FS_IOC_GOINGDOWN: u64 = 0x8004_587d;
const FICLONE: u64 = 0x4004_9409;
const FICLONERANGE: u64 = 0x4020_940d;
const FIDEDUPERANGE: u64 = 0xc018_9436;
const FIFREEZE: u64 = 0xc004_5877;
const FITHAW: u64 = 0xc004_5878;

/// Calls an ioctl that takes a pointer to a `T`, which it may change.
fn with<T: Copy>(file: &File, number: u64, argument: &mut T) -> io::Result<()> {
    let argument: *mut T = argument;
    // SAFETY: the callers give each number with the structure that it is made of, which has only
    // integers, and room for all that the kernel answers.
    match unsafe { libc::ioctl(file.as_raw_fd(), number, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Stops all changes to the filesystem that `file` is of.
pub(crate) fn freeze(file: &File) -> io::Result<()> {
    with(file, FIFREEZE, &mut 0)
}

/// Ends [`freeze`].
pub(crate) fn thaw(file: &File) -> io::Result<()> {
    with(file, FITHAW, &mut 0)
}

/// What becomes of the log when a filesystem is shut down.
#[derive(Clone, Copy)]
pub(crate) enum GoDown {
    /// It is written.
    LogFlush = 1,
    /// It is left as it is.
    NoLogFlush = 2,
}

/// Shuts down the filesystem that `file` is of, as after an error: `XFS_IOC_GOINGDOWN`, which is
/// `EXT4_IOC_SHUTDOWN` too.
pub(crate) fn go_down(file: &File, how: GoDown) -> io::Result<()> {
    with(file, FS_IOC_GOINGDOWN, &mut (how as u32))
}

/// `struct fsxattr`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct FileFlags {
    /// `FS_XFLAG_*`.
    pub(crate) xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

impl FileFlags {
    /// `FS_XFLAG_DAX`.
    pub(crate) const DAX: u32 = 0x8000;
}

/// The flags of `file`.
pub(crate) fn file_flags(file: &File) -> io::Result<FileFlags> {
    let mut flags = FileFlags::default();
    with(file, FS_IOC_FSGETXATTR, &mut flags)?;
    Ok(flags)
}

/// Sets the flags of `file`.
pub(crate) fn set_file_flags(file: &File, mut flags: FileFlags) -> io::Result<()> {
    with(file, FS_IOC_FSSETXATTR, &mut flags)
}

/// `struct file_clone_range`.
#[derive(Clone, Copy)]
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// Makes all of `to` share the blocks of `from`.
pub(crate) fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: this one takes a number, not a pointer: an fd, which is open as `from` is borrowed.
    match unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes a part of `to` share blocks of `from`: offset there, length, offset here.
pub(crate) fn clone_range(from: &File, part: (u64, u64, u64), to: &File) -> io::Result<()> {
    let (src_offset, src_length, dest_offset) = part;
    let src_fd = from.as_raw_fd().into();
    with(to, FICLONERANGE, &mut CloneRange { src_fd, src_offset, src_length, dest_offset })
}

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Dedupe {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved3: u32,
}

/// Makes the first `len` bytes of `to` share the blocks of `from` if they are equal, and says whether
/// they are.
pub(crate) fn dedupe(from: &File, len: u64, to: &File) -> io::Result<bool> {
    const DIFFERS: i32 = 1;
    let mut dedupe = Dedupe {
        src_length: len,
        dest_count: 1,
        dest_fd: to.as_raw_fd().into(),
        ..Dedupe::default()
    };
    with(from, FIDEDUPERANGE, &mut dedupe)?;
    match dedupe.status {
        DIFFERS => Ok(false),
        0 if dedupe.bytes_deduped == len => Ok(true),
        0 => Err(io::Error::other(format!("only {} bytes were deduped", dedupe.bytes_deduped))),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// `struct fiemap_extent`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Extent {
    /// Where it begins in the file.
    pub(crate) logical: u64,
    /// Where it begins on the device.
    pub(crate) physical: u64,
    /// How long it is.
    pub(crate) length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

impl Extent {
    /// Whether it is allocated, but reads as zeroes.
    pub(crate) fn is_unwritten(&self) -> bool {
        const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
        self.flags & FIEMAP_EXTENT_UNWRITTEN != 0
    }

    /// Whether other files have it too.
    pub(crate) fn is_shared(&self) -> bool {
        const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
        self.flags & FIEMAP_EXTENT_SHARED != 0
    }
}

const EXTENTS: usize = 64;

/// `struct fiemap` and room for extents.
#[derive(Clone, Copy)]
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// The first extents of `file`, 64 at most, after what is dirty is written.
pub(crate) fn extents(file: &File) -> io::Result<Vec<Extent>> {
    const FIEMAP_FLAG_SYNC: u32 = 1;
    const { assert!(size_of::<Extent>() == 56 && size_of::<Dedupe>() == 56) };
    let mut map = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: 64,
        reserved: 0,
        extents: [Extent::default(); EXTENTS],
    };
    with(file, FS_IOC_FIEMAP, &mut map)?;
    Ok(map.extents.into_iter().take(map.mapped_extents as usize).collect())
}
