// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bringing a store into the page cache, page by page.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;

use rustix::fs::{Advice, fadvise};

use super::Store;

/// How much is read at once.
const CHUNK: usize = 1 << 20;

/// Reads all of a store into the page cache, so that who touches a page first doesn't wait for the
/// disk, and so that each page is one of its own there. What is read, or written, in a row is
/// cached in folios of up to 2 MiB, by ext4 since Linux 6.16 and XFS since 5.18; a store through a
/// mapping makes all of one dirty, and the next sync writes it all. What is there in larger folios is dropped
/// first, unless somebody has it mapped.
///
/// A store that is larger than the memory that is left takes long to read, to no end.
pub fn prefetch(store: &dyn Store) -> io::Result<()> {
    if !store.is_persistent() {
        // It is in memory.
        return Ok(());
    }
    // What is dirty would not be dropped.
    store.persist()?;
    // An open file of our own: others are not to read page by page.
    let mut file = File::open(format!("/proc/thread-self/fd/{}", store.fd().as_raw_fd()))?;
    fadvise(&file, 0, None::<NonZeroU64>, Advice::DontNeed)?;
    fadvise(&file, 0, None::<NonZeroU64>, Advice::Random)?;
    let mut buffer = vec![0; CHUNK];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}
