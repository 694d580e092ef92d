// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much a guest may store and not flush before the kernel slows it down.
//!
//! Of a FUSE mount no more than 1 % of what may be dirty on the host is, a few dozen MiB: the kernel
//! trusts no server to go on when memory is short. Where we may, we ask to be treated as a disk is,
//! as the files of a direct window are.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{major, minor, stat};
use rustix::process::configure_io_flusher_behavior;

/// Has this thread, and those that it starts, not wait for what others have dirtied, and not free
/// memory by I/O, which could be their own. As a loop device's are; it takes `CAP_SYS_RESOURCE`.
pub(super) fn become_flusher() -> io::Result<()> {
    Ok(configure_io_flusher_behavior(true)?)
}

/// Has as much of the mount of `file` be dirty as of a disk. It takes the host's root.
pub(super) fn lift(file: &Path) -> io::Result<()> {
    let device = stat(file)?.st_dev;
    let place = format!("/sys/class/bdi/{}:{}", major(device), minor(device));
    fs::write(format!("{place}/max_ratio"), "100")?;
    // Since Linux 6.2.
    fs::write(format!("{place}/strict_limit"), "0")
}
