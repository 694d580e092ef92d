// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A FUSE filesystem that is one file: mounted nowhere, or over a file of the user's.
//!
//! `fsmount(2)` makes a mount that is attached to no directory: it has no path, so nobody finds it,
//! and it is gone when the last fd to it is, however the process ends. The root of the filesystem
//! is the file itself. To publish it, the mount is moved onto a file.
//!
//! A process that must not mount asks [`fusermount3`](super::helper), which mounts onto files only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use rustix::mount::{
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{ServeWindowError, helper, namespace};

/// Where mounts begin.
pub(super) const DEVICE: &str = "/dev/fuse";

/// A filesystem that was mounted.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Where requests come from.
    pub(super) device: OwnedFd,
    /// By which threads with our table of fds, and any if it was published, open the file.
    pub(super) path: PathBuf,
    /// What goes when the file was opened. The file lives on while it is open.
    pub(super) place: Place,
}

/// Where a mount is, until this is dropped.
#[derive(Debug)]
pub(super) enum Place {
    /// Nowhere; it lives as long as this fd.
    Nowhere { _root: OwnedFd },
    /// On a file that only we know.
    Hidden { _mount: helper::Mount, _file: tempfile::NamedTempFile },
    /// Where it was published, which is somebody else's to end.
    Published,
}

impl Mounted {
    /// Mounts one on the file at `publish`, or where nobody finds it.
    pub(super) fn new(publish: Option<&Path>) -> Result<Self, ServeWindowError> {
        let refused = match Self::with_own_right(publish) {
            Err(error) if error.is_refusal() => error,
            done => return done,
        };
        match Self::with_help(publish) {
            Err(ServeWindowError::NotAllowed) => Err(refused),
            done => done,
        }
    }

    fn with_own_right(publish: Option<&Path>) -> Result<Self, ServeWindowError> {
        let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| ServeWindowError::Device(errno.into()))?;
        let refused = |errno| match errno {
            Errno::PERM | Errno::ACCESS => ServeWindowError::NotAllowed,
            Errno::NODEV => ServeWindowError::NoFuse,
            errno => ServeWindowError::Mount(errno.into()),
        };
        let root = mount(&device).map_err(refused)?;
        let Some(path) = publish else {
            let thread = rustix::thread::gettid().as_raw_nonzero();
            let path = format!("/proc/self/task/{thread}/fd/{}", root.as_raw_fd()).into();
            return Ok(Self { device, path, place: Place::Nowhere { _root: root } });
        };
        move_mount(root.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(refused)?;
        Ok(Self { device, path: path.to_owned(), place: Place::Published })
    }

    fn with_help(publish: Option<&Path>) -> Result<Self, ServeWindowError> {
        if let Some(path) = publish {
            let device = helper::mount(path)?;
            return Ok(Self { device, path: path.to_owned(), place: Place::Published });
        }
        let file = tempfile::NamedTempFile::with_prefix("vhost-pmemd-")
            .map_err(ServeWindowError::Mount)?;
        let path = file.path().to_owned();
        let device = helper::mount(&path)?;
        let mount = helper::Mount(path.clone());
        Ok(Self { device, path, place: Place::Hidden { _mount: mount, _file: file } })
    }
}

fn mount(device: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let filesystem = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let filesystem = &filesystem;
    fsconfig_set_string(filesystem, "source", "vhost-pmemd")?;
    fsconfig_set_string(filesystem, "fd", device.as_raw_fd().to_string().as_str())?;
    // A regular file, in octal.
    fsconfig_set_string(filesystem, "rootmode", "100000")?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    fsconfig_set_string(filesystem, "user_id", user.as_raw().to_string().as_str())?;
    fsconfig_set_string(filesystem, "group_id", group.as_raw().to_string().as_str())?;
    // Who may open it is told by its owner and mode.
    fsconfig_set_flag(filesystem, "default_permissions")?;
    if namespace::is_first() {
        // Who was handed the file, or may open it, may use it, whoever that is. In a namespace of
        // our own this would be for those in it, in place of those of our user.
        fsconfig_set_flag(filesystem, "allow_other")?;
    }
    fsconfig_create(filesystem)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Takes what is mounted at `path` away; who has it open keeps it.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    use rustix::mount::{UnmountFlags, unmount};
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match unmount(path, flags) {
        Err(Errno::PERM) => helper::unmount(path),
        done => Ok(done?),
    }
}
