// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network and mounts of a thread's own.
//!
//! They come last, when what is published is mounted and sockets are bound: those stay where they
//! are. Landlock and seccomp keep a thread from both already; this is for kernels that have no
//! Landlock, and for what a filter may have overlooked.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;
use tracing::debug;

/// Leaves the host's network, and its mounts. Neither is necessary; who has no right to takes it in a
/// user namespace of its own, where those are to be had and this is the only thread.
pub(super) fn separate() {
    let mut own = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    if std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| name.as_bytes().starts_with(b"@")) {
        // Who waits there to hear of us has no file, and is in the host's network.
        own.remove(UnshareFlags::NEWNET);
    }
    let left = match unshare(own) {
        Err(Errno::PERM) => unshare_with_user(own),
        done => done.map_err(Into::into),
    };
    let left = left.and_then(|()| {
        // What the host unmounts is not to stay mounted here, and nothing here is to show there.
        let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        Ok(mount_change("/", propagation)?)
    });
    if let Err(error) = left {
        debug!(%error, "sandbox: network and mounts are the host's");
    }
}

/// The same in a new user namespace, which has our user and group alone.
fn unshare_with_user(flags: UnshareFlags) -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(flags | UnshareFlags::NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

#[allow(unsafe_code, reason = "namespaces are nothing that Rust knows of")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: fds are shared as before: that is for `FILES` alone, which isn't asked for.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
