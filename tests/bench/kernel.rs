// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is asked of the kernel and no crate offers as safe.
#![allow(unsafe_code, reason = "system calls")]

use std::io;

use vm_memory::VolatileSlice;

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
