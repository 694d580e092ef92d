// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Our own file among the guest's memory.
//!
//! A frontend tells us of all of the guest's memory, and so of the pages that it has mapped from our
//! file; the vhost-user library maps them here too. A process that ends writes back what it has
//! mapped of a FUSE file, and waits, which for us would be for ever: the workers may be those that
//! end last. So zeroes are put in the place of those pages. Nobody misses them: there are no
//! requests in persistent memory, unless a guest means harm.
#![allow(unsafe_code, reason = "a mapping that the library made is replaced")]

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Maps zeroes over all that `memory` has of the file `own`.
pub(crate) fn cover(memory: &GuestMemoryMmap, own: BorrowedFd<'_>) -> io::Result<()> {
    let own = File::from(own.try_clone_to_owned()?).metadata()?;
    for region in memory.iter() {
        let Some(file) = region.file_offset() else { continue };
        let file = file.file().metadata()?;
        if (file.dev(), file.ino()) != (own.dev(), own.ino()) {
            continue;
        }
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is all of a mapping that `region` owns, made by the library and
        // unmapped when it is dropped, whatever is mapped there then. It is reached as volatile
        // memory only, by offsets within it, and stays readable and writable throughout: mmap puts
        // the new pages in the place of the old in one step.
        let mapped = unsafe { libc::mmap(region.as_ptr().cast(), len, access, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        debug_assert!(ptr::eq(mapped.cast(), region.as_ptr()));
    }
    Ok(())
}
