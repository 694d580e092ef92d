// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Child processes that go on with a copy of this one's memory and with its shared mappings.
#![allow(unsafe_code, reason = "fork is unsafe: of several threads, only the caller goes on")]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// A child process; dropping it kills it.
pub(crate) struct Child {
    pid: Pid,
    waited: bool,
}

impl Child {
    /// Runs `body` in a child, which ends with the status that it returns, or 101 if it panics.
    /// While this process has other threads, `body` must not allocate, print or lock: one of them
    /// may have been at it.
    pub(crate) fn run(body: impl FnOnce() -> u8) -> Result<Self> {
        // SAFETY: in the child there is one thread, this one. Everything it owns is there; and what
        // others had locked, which would never be unlocked, `body` leaves alone, as said above.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()).context("cannot fork"),
            0 => {
                let status = catch_unwind(AssertUnwindSafe(body)).map_or(101, i32::from);
                // SAFETY: it ends this process at once. Nothing of the parent's is run or flushed a
                // second time.
                unsafe { libc::_exit(status) }
            }
            pid => {
                let pid = Pid::from_raw(pid).context("fork returned no process")?;
                Ok(Self { pid, waited: false })
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<End> {
        self.collect()
    }

    /// Waits for its end for at most `patience`.
    pub(crate) fn wait_for(&mut self, patience: Duration) -> Result<Option<End>> {
        let fd = pidfd_open(self.pid, PidfdFlags::empty())?;
        let patience = Timespec::try_from(patience)?;
        let ended = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience))? > 0;
        if ended { self.collect().map(Some) } else { Ok(None) }
    }

    /// Kills it. It may yet take long to end, if it is amid a system call.
    pub(crate) fn kill(&self) {
        // This fails only if it has ended.
        let _ = kill_process(self.pid, Signal::KILL);
    }

    fn collect(&mut self) -> Result<End> {
        let waited = waitpid(Some(self.pid), WaitOptions::empty())?;
        let (_, status) = waited.context("the child has not ended")?;
        self.waited = true;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Ok(End::Exit(status)),
            (None, signal) => Ok(End::Signal(signal.unwrap_or_default())),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            self.kill();
            // One that can't end must not hold up the others.
            let _ = self.wait_for(Duration::from_secs(5));
        }
    }
}
