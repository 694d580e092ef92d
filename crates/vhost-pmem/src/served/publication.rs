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
    /// A user who could then open the window, and change who else may.
    #[error(
        "the file there belongs to user {0}, who could open the window; let it be root's or the \
         daemon's, or remove it, and one is made"
    )]
    Foreign(u32),
    /// Another path leads to it, so that somebody else may have put it there.
    #[error("the file there has other names; remove it, and one is made")]
    Linked,
    /// Another window, most likely.
    #[error("something is mounted there already; end who serves it, or unmount it")]
    Mounted,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where to publish a window.
#[derive(Debug, Clone, Copy)]
pub struct Publish<'a> {
    /// The path: of nothing yet, or of an empty file whose owner and mode say who may open the
    /// window.
    pub path: &'a Path,
    /// A user who may own that file, as root and the user of this process may.
    pub owner: Option<u32>,
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
    pub(crate) fn prepare(Publish { path, owner }: Publish<'_>) -> Result<Self, PublishError> {
        // A path that is good in every directory.
        let path = std::path::absolute(path)?;
        if is_dead(&path) {
            mount::unmount(&path)?;
            tracing::info!(path = %path.display(), "unmounted what a dead process left behind");
        }
        let mut options = OpenOptions::new();
        let (file, made) = match options.write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (inspect(&path, owner)?, false)
            }
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

/// Opens the file at `path`, if it is one that a window may be mounted on, which may be `owner`'s.
fn inspect(path: &Path, owner: Option<u32>) -> Result<File, PublishError> {
    // Not one that waits to be opened, such as a pipe.
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(PublishError::NotAFile);
    }
    if is_mounted(path) {
        return Err(PublishError::Mounted);
    }
    // Nor one that was put there since.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(PublishError::NotAFile);
    }
    if metadata.len() != 0 {
        return Err(PublishError::NotEmpty);
    }
    // In a directory that others write, such as /tmp, they may have made it first.
    let ours = [Some(0), Some(rustix::process::geteuid().as_raw()), owner];
    if !ours.contains(&Some(metadata.uid())) {
        return Err(PublishError::Foreign(metadata.uid()));
    }
    if metadata.nlink() != 1 {
        return Err(PublishError::Linked);
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
