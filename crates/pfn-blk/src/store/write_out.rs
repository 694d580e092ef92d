// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writing to the disk what will be synced, before anyone waits for it.
#![allow(unsafe_code, reason = "sync_file_range is in no crate that offers it as safe")]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Pages that are worth a request to the disk of their own.
const WORTH: usize = 256 << 10;

/// Has the kernel begin to write `len` bytes of `file`, from `offset` on, to the disk, if these are
/// many. Nothing is durable by that, and what fails is told by the next sync.
pub(super) fn begin(file: &File, offset: u64, len: usize) {
    let (Ok(start), Ok(bytes)) = (offset.try_into(), len.try_into()) else { return };
    if len < WORTH {
        return;
    }
    // SAFETY: it takes numbers only, and no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, bytes, libc::SYNC_FILE_RANGE_WRITE) };
}
