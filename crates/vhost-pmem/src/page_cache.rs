// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much of a file is in the page cache, and how much of that is still to be written: cachestat(2),
//! of Linux 6.5.

#![allow(unsafe_code, reason = "no crate has this system call yet")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

/// The call's number, which is the same on all architectures; libc 0.2 doesn't have it.
const SYS_CACHESTAT: libc::c_long = 451;

/// A file's pages in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedPages {
    /// All of them.
    pub cached: u64,
    /// Those that were changed and not written yet.
    pub dirty: u64,
    /// Those that are being written.
    pub writeback: u64,
}

/// `struct cachestat_range`.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat`, whose last two are of pages that were evicted.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: [u64; 2],
}

/// How much of a file is looked at before the time is: 5 ms, where the kernel caches each page by itself.
const PIECE: u64 = 256 << 20;

/// Counts the pages of the first `len` bytes of `file` in the page cache, if that can be done until
/// `until`: the kernel looks at each of them, or at each piece that it caches as one.
///
/// # Errors
///
/// A kernel without the call, a file whose pages aren't cached that way, or no more time.
pub fn cached_pages(file: BorrowedFd<'_>, len: u64, until: Instant) -> io::Result<CachedPages> {
    let mut all = CachedPages { cached: 0, dirty: 0, writeback: 0 };
    let mut offset = 0;
    while offset < len {
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let piece = Range { offset, len: PIECE.min(len - offset) };
        let stat = cachestat(file, &piece)?;
        all.cached += stat.cached;
        all.dirty += stat.dirty;
        all.writeback += stat.writeback;
        offset += piece.len;
    }
    Ok(all)
}

fn cachestat(file: BorrowedFd<'_>, range: &Range) -> io::Result<Stat> {
    let mut stat = Stat::default();
    // SAFETY: the call reads a `cachestat_range` and writes a `cachestat`; both pointers are to such,
    // in the layout of the kernel's linux/mman.h, and live until it returns. The fd is open for as
    // long as it is borrowed, and no flags are defined.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const *range, &raw mut stat, 0)
    };
    if result == 0 { Ok(stat) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    /// Pages of a file in `target`, where there is a disk: memory is never dirty.
    #[test]
    fn pages_written_are_cached_and_dirty_and_synced_ones_are_not_dirty() {
        let program = std::env::current_exe().unwrap();
        let mut file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        file.write_all(&[1; 5 * 4096]).unwrap();
        // In two pieces, the second one with nothing in it.
        let len = PIECE + 4096;
        file.set_len(len).unwrap();
        let now = Instant::now();
        let count = || match cached_pages(file.as_fd(), len, now + Duration::from_secs(60)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                eprintln!("skipped: {error}");
                None
            }
            counted => Some(counted.unwrap()),
        };
        let Some(written) = count() else { return };
        assert_eq!((written.cached, written.dirty + written.writeback), (5, 5));
        file.sync_all().unwrap();
        assert_eq!(count(), Some(CachedPages { cached: 5, dirty: 0, writeback: 0 }));
        let late = cached_pages(file.as_fd(), len, now).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
