// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The opening of the window's file that frontends map.
//!
//! A VMM may have the window mapped when its connection has ended. The kernel knows: an opening ends
//! when the last mapping through it does. But ours never ends while we hold it. So when it matters we
//! open the file again, for the frontends that come, and close what earlier ones were given: if that
//! opening doesn't end then, a VMM still has it.
//!
//! This is done by an operator's thread, once a sandbox is entered the only ones that may open
//! files; and not for each frontend, whose threads may not.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

/// The opening for frontends.
pub(super) struct Lending(Mutex<State>);

struct State {
    file: Arc<File>,
    /// Whether a frontend was given it.
    is_lent: bool,
}

/// Keeps frontends waiting for the file.
pub(super) struct Withheld<'a>(#[expect(dead_code, reason = "held")] MutexGuard<'a, State>);

impl Lending {
    pub(super) fn new(file: File) -> Self {
        Self(Mutex::new(State { file: Arc::new(file), is_lent: false }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, for a frontend to map.
    pub(super) fn lend(&self) -> Arc<File> {
        let mut state = self.state();
        state.is_lent = true;
        Arc::clone(&state.file)
    }

    /// Opens the file again if a frontend was given it, and closes the opening of before.
    pub(super) fn renew(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.is_lent {
            let path = format!("/proc/thread-self/fd/{}", state.file.as_raw_fd());
            let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            *state = State { file: Arc::new(file.into()), is_lent: false };
        }
        Ok(())
    }

    /// Gives the file to no frontend while what this returns lives; nothing if one was given it since
    /// it was opened.
    pub(super) fn withhold(&self) -> Option<Withheld<'_>> {
        let state = self.state();
        (!state.is_lent).then(|| Withheld(state))
    }
}
