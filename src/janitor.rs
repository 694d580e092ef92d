// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking back what was published, by a process that kept the right to.
//!
//! Who publishes a window mounts it where others see it, and gives up that right before a guest
//! comes. So a second process is left behind, which waits to be told that the window is to go, and
//! listens to nobody else. If the daemon dies without a word it ends, and leaves all as it is, as
//! the daemon itself would.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing::warn;
use vhost_pmem::Device;

use crate::service;

/// Leaves the withdrawal of what `device` has published, if anything, to a process of its own.
pub(crate) fn leave_to(device: &Device) -> io::Result<()> {
    let Some((path, made)) = device.published() else { return Ok(()) };
    let mut command = Command::new("/proc/self/exe");
    service::ENVIRONMENT.into_iter().for_each(|variable| _ = command.env_remove(variable));
    command.arg("--withdraw").arg(path);
    if made {
        command.arg("--withdraw-file");
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let pipes = (child.stdin.take(), child.stdout.take());
    let (Some(asking), Some(answer)) = pipes else {
        return Err(io::Error::other("the process has no pipes"));
    };
    device.leave_withdrawal_to(move || {
        if let Err(error) = ask(asking, answer) {
            warn!(%error, "what was published can't be withdrawn");
        }
    });
    Ok(())
}

/// Has it done, and waits until it is.
fn ask(mut asking: ChildStdin, mut answer: ChildStdout) -> io::Result<()> {
    asking.write_all(b"\n")?;
    // It says nothing, and hangs up when it is done.
    answer.read_to_end(&mut Vec::new()).map(drop)
}

/// Withdraws what is published at `path` when it is told to, on standard input.
pub(crate) fn run(path: &Path, made: bool) -> anyhow::Result<()> {
    // These are for the daemon, which says when; they come to all of a terminal's or a unit's.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let mut told = [0];
    match io::stdin().read_exact(&mut told) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        read => read?,
    }
    vhost_pmem::unpublish(path, made);
    Ok(())
}
