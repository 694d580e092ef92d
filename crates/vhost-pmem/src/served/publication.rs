// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Publishing: the file of a served window, shown at a path.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::mount;

/// Why a window can't be published.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Something that would be hidden.
    #[error("there is a file of that name, and it isn't empty")]
    NotEmpty,
    /// Something that isn't a file.
    #[error("there is something of that name, and it isn't a file")]
    NotAFile,
    /// Another window, most likely.
    #[error("something is mounted there already; end who serves it, or unmount it")]
    Mounted,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a window is published, until this is dropped: an empty file that it is mounted on, whose
/// owner and mode say who may open it.
pub(crate) struct Publication {
    path: PathBuf,
    /// It was we who made the file.
    made: bool,
    /// Who may open what is shown there.
    pub(super) permissions: Permissions,
    /// Ends it in our place.
    substitute: Option<Substitute>,
}

/// What ends a publication for a process that has given up the right to.
pub(crate) type Substitute = Box<dyn FnOnce() + Send>;

/// Who may open a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permissions {
    pub(super) mode: u16,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Permissions {
    /// For those who have an fd of the file, as no path leads there: a frontend, and ourselves, who
    /// may have become another user by then.
    pub(super) fn of_fds() -> Self {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { mode: 0o666, user: user.as_raw(), group: group.as_raw() }
    }
}

impl Publication {
    /// Makes a file at `path`, or takes an empty one. What a dead process has left mounted there is
    /// taken away.
    pub(crate) fn prepare(path: &Path) -> Result<Self, PublishError> {
        // A path that is good in every directory.
        let path = std::path::absolute(path)?;
        if is_dead(&path) {
            mount::unmount(&path)?;
            tracing::info!(path = %path.display(), "unmounted what a dead process left behind");
        }
        let mut options = OpenOptions::new();
        let (file, made) = match options.write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (inspect(&path)?, false),
            file => (file?, true),
        };
        let metadata = file.metadata()?;
        let mode = u16::try_from(metadata.mode() & 0o777).expect("nine bits");
        let permissions = Permissions { mode, user: metadata.uid(), group: metadata.gid() };
        Ok(Self { path, made, permissions, substitute: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path, and whether the file there is one that was made for this.
    pub(crate) fn place(&self) -> (PathBuf, bool) {
        (self.path.clone(), self.made)
    }

    /// Has `substitute` end it.
    pub(crate) fn leave_to(&mut self, substitute: Substitute) {
        self.substitute = Some(substitute);
    }
}

/// Opens the file at `path`, if it is one that a window may be mounted on.
fn inspect(path: &Path) -> Result<File, PublishError> {
    // Not one that waits to be opened, such as a pipe.
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(PublishError::NotAFile);
    }
    let file = File::open(path)?;
    if is_mounted(path) {
        return Err(PublishError::Mounted);
    }
    if file.metadata()?.len() != 0 {
        return Err(PublishError::NotEmpty);
    }
    Ok(file)
}

/// Whether something is mounted at `path`.
fn is_mounted(path: &Path) -> bool {
    let device = |path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    device(path) != device(path.parent().unwrap_or(Path::new("/")))
}

/// Whether a process that is gone has served what is at `path`.
fn is_dead(path: &Path) -> bool {
    // Not by a stat: the kernel may know the answer to that. And not waiting for a pipe's writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.is_err_and(|errno| errno == Errno::NOTCONN)
}

impl Drop for Publication {
    fn drop(&mut self) {
        match self.substitute.take() {
            Some(end) => end(),
            None => unpublish(&self.path, self.made),
        }
    }
}

/// Takes away what was published at `path`, and the file itself if it was made for that. What can't
/// be done is logged.
pub fn unpublish(path: &Path, made: bool) {
    let shown = path.display();
    if is_mounted(path) {
        if let Err(error) = mount::unmount(path) {
            tracing::warn!(path = %shown, %error, "cannot unmount what was published");
        }
    }
    if made {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %shown, %error, "cannot remove the file that was published");
        }
    }
}
