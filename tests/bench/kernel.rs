// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is asked of the kernel and no crate offers as safe.
#![allow(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// The same on all architectures; since Linux 6.5.
const CACHESTAT: libc::c_long = 451;

/// How many pages of a file are in the page cache: cachestat(2).
pub(crate) fn cached(file: &File) -> io::Result<usize> {
    /// All of the file, in a `struct cachestat_range`: offset and length.
    const ALL: [u64; 2] = [0, 0];
    // A `struct cachestat`: in the cache, dirty, being written, evicted, evicted recently.
    let mut found = [0u64; 5];
    // SAFETY: the kernel reads the one and writes the other, each as large as its struct, and both
    // are there during the call.
    let result =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), ALL.as_ptr(), found.as_mut_ptr(), 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(found[0]).map_err(io::Error::other)
}

/// Tells the kernel that a mapping is read here and there: it then reads one page at a time.
pub(crate) fn expect_random(memory: &VolatileSlice<'_>) -> io::Result<()> {
    advise(memory, libc::MADV_RANDOM)
}

/// Has the kernel take a mapping's pages back, those that it can.
pub(crate) fn page_out(memory: &VolatileSlice<'_>) -> io::Result<()> {
    advise(memory, libc::MADV_PAGEOUT)
}

fn advise(memory: &VolatileSlice<'_>, advice: libc::c_int) -> io::Result<()> {
    let start = memory.ptr_guard_mut();
    // SAFETY: the range is all of a shared mapping of a file, which outlives the borrow. Neither
    // advice changes what is found there.
    let result = unsafe { libc::madvise(start.as_ptr().cast(), memory.len(), advice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
