// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A further process of the same test executable.
//!
//! What serves a file that others map, and what maps a file that may be gone, can't be threads of
//! the test: the first must not wait for the second, and the second may be killed for it. Tests have
//! no executable but their own, so that is started again, for one "test" that is none: it is marked
//! `#[ignore]`, and does nothing unless it was started so.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

const MARK: &str = "VHOST_PMEM_STARTED_AGAIN";

/// Starts this test executable again, for the ignored test `name` alone, with a connection to it.
///
/// # Errors
///
/// When it can't be started.
pub fn start_again(name: &str) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(std::env::current_exe()?)
        .args([name, "--exact", "--ignored", "--nocapture"])
        .env(MARK, "")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start this executable again")?;
    Ok((child, ours))
}

/// In that process: the connection. Else `None`, as somebody runs the ignored tests, too.
///
/// # Panics
///
/// When it has no connection.
#[must_use]
pub fn started_again() -> Option<UnixStream> {
    std::env::var_os(MARK)?;
    let connection = std::io::stdin().as_fd().try_clone_to_owned();
    Some(UnixStream::from(connection.expect("a process has a standard input")))
}
