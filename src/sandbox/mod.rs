// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sandbox: what each thread may still do once the daemon has begun.
//!
//! Nearly all of it is a thread's own in Linux – user, capabilities, `no_new_privs`, Landlock,
//! seccomp, namespaces – and goes over to the threads that it starts. So each thread that is there
//! for one thing enters the sandbox itself, in its [`Role`], before it does anything else; those
//! that a library starts have it from who started them. A new kind of thread is a role, a [`Pass`]
//! that it is given, and [`Pass::enter`] at its beginning. The main thread waits for all passes, and
//! enters last: what it starts then can't become anything else.
//!
//! Nothing here knows of the rest of the daemon, so that tests can enter the very same sandbox.

mod landlock;
mod namespaces;
mod privileges;
mod seccomp;
mod trap;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tracing::{debug, error, warn};

use self::landlock::Paths;
pub(crate) use self::privileges::owned_by;
pub(crate) use self::seccomp::{Role, Violation};
use crate::user::User;

/// What the sandbox is to be like.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Whom to become.
    pub(crate) user: Option<User>,
    /// Neither Landlock nor namespaces, and capabilities are kept.
    pub(crate) open: bool,
    /// What becomes of a thread that makes a system call it has no use for; none isn't filtered.
    pub(crate) violation: Option<Violation>,
}

/// What a thread enters.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    options: Options,
    paths: Paths,
    /// The directories that files may be made in, as they were given.
    allowed: Vec<PathBuf>,
    /// How many threads have a pass and have not entered yet.
    outside: (Mutex<usize>, Condvar),
}

/// What a thread enters a sandbox with.
#[derive(Debug)]
pub(crate) struct Pass {
    sandbox: Arc<Sandbox>,
    role: Role,
    /// A file that the thread may open again.
    file: Option<OwnedFd>,
}

impl Pass {
    /// Lets the thread open `file` again, too.
    pub(crate) fn with_file(mut self, file: Option<OwnedFd>) -> Self {
        self.file = file;
        self
    }

    /// As [`Sandbox::enter`].
    pub(crate) fn enter(self) {
        self.sandbox.enter_with(self.role, self.file.as_ref());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let (count, changed) = &self.sandbox.outside;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}

impl Sandbox {
    /// One without files, for threads that need none.
    pub(crate) fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Lets threads that operate the device open, make and remove files in `directory`, and in
    /// those beneath it.
    pub(crate) fn allow(&mut self, directory: &Path) -> anyhow::Result<()> {
        self.paths.allow(directory)?;
        self.allowed.push(directory.to_owned());
        Ok(())
    }

    /// Whether files, rights and namespaces stay as they are.
    pub(crate) fn is_open(&self) -> bool {
        self.options.open
    }

    /// Whether a thread that has entered can't remove sockets, or unmount, any more.
    pub(crate) fn ends_tidying(&self) -> bool {
        let Options { user, open, violation } = &self.options;
        !open || user.is_some() || violation.is_some()
    }

    /// What to do about a file that can't be opened.
    pub(crate) fn advice(&self) -> String {
        if self.options.open {
            return String::new();
        }
        let allowed: Vec<_> = self.allowed.iter().map(|dir| dir.display().to_string()).collect();
        let allowed =
            if allowed.is_empty() { "no directory".to_owned() } else { allowed.join(", ") };
        format!("the sandbox allows files in {allowed}; start the daemon with --allow-dir DIR")
    }

    /// Lets a thread that is about to be started enter.
    pub(crate) fn pass(self: &Arc<Self>, role: Role) -> Pass {
        *self.outside.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Pass { sandbox: Arc::clone(self), role, file: None }
    }

    /// Waits until all who were given a pass have entered.
    pub(crate) fn wait_for_all(&self) {
        let (count, changed) = &self.outside;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        // Only a thread that panicked with the lock makes an error, and then it has counted.
        drop(changed.wait_while(count, |count| *count > 0));
    }

    /// Has the whole process be nobody's to look into, and this thread, with those that it starts,
    /// have a network and mounts of its own. For the main thread, when all is mounted and bound.
    pub(crate) fn leave_the_host(&self) {
        if self.options.open {
            return;
        }
        // In this order: who is hidden can't say who is who in a new user namespace.
        namespaces::separate();
        if let Err(error) = privileges::hide() {
            warn!(%error, "sandbox: others of our user may trace this process");
        }
    }

    /// Confines this thread, and all that it will start, to what `role` takes. It can't be undone;
    /// where it can't be done, the process ends.
    pub(crate) fn enter(&self, role: Role) {
        self.enter_with(role, None);
    }

    fn enter_with(&self, role: Role, file: Option<&OwnedFd>) {
        if let Err(error) = self.try_enter(role, file) {
            error!(?role, "cannot enter the sandbox: {error:#}");
            std::process::exit(1);
        }
        debug!(?role, "entered the sandbox");
    }

    fn try_enter(&self, role: Role, file: Option<&OwnedFd>) -> anyhow::Result<()> {
        if !self.options.open {
            privileges::drop_bounds()?;
        }
        if let Some(user) = self.options.user {
            privileges::become_user(user)?;
        }
        if !self.options.open {
            privileges::drop_capabilities()?;
            landlock::restrict(&self.paths, role.reach(), file)?;
        }
        match self.options.violation {
            Some(violation) => seccomp::filter(role, violation),
            None => Ok(()),
        }
    }
}
