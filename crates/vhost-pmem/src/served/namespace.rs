// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The right to mount, for a process that doesn't have it.
//!
//! In a user namespace of its own a process may mount what harms nobody outside, FUSE among it. It
//! keeps its user and group, and its rights to files.
#![allow(unsafe_code, reason = "namespaces are the whole process's, tables of fds a thread's")]

use std::fs;
use std::io;

use rustix::fs::Access;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::mount;

/// Gives the process the right to mount its served windows, if it hasn't got it: moves it to a user
/// and a mount namespace of its own. It must have one thread only, and /dev/fuse not open yet.
pub fn allow_served_windows() -> io::Result<()> {
    if is_allowed()? {
        return Ok(());
    }
    // Without it there is nothing to mount; and in the namespace nobody can help.
    rustix::fs::access(mount::DEVICE, Access::READ_OK | Access::WRITE_OK)?;
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: fds are shared as before: that is for `FILES` alone, which isn't asked for.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
    // A group may be mapped by those only who can't rid themselves of one.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Whether the process may mount.
fn is_allowed() -> io::Result<bool> {
    Ok(rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Whether the user namespace is the first one, where other users' processes may be let in.
pub(super) fn is_first() -> bool {
    // The first one has all users, each as itself.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}
