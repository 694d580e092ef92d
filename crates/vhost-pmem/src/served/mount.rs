// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A FUSE filesystem that is one file, and mounted nowhere.
//!
//! `fsmount(2)` makes a mount that is attached to no directory: it has no path, so nobody finds it,
//! and it is gone when the last fd to it is, however the process ends. The root of the filesystem
//! is the file itself.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};

use super::{ServeWindowError, namespace};

const DEVICE: &str = "/dev/fuse";

/// A filesystem that was mounted.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Where requests come from.
    pub(super) device: OwnedFd,
    /// The mount, whose root is the file. It goes when this is closed; the file lives on while it is
    /// open.
    pub(super) root: OwnedFd,
}

impl Mounted {
    /// Makes one.
    pub(super) fn new() -> Result<Self, ServeWindowError> {
        let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| ServeWindowError::Device(errno.into()))?;
        let root = mount(&device).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS => ServeWindowError::NotAllowed,
            Errno::NODEV => ServeWindowError::NoFuse,
            errno => ServeWindowError::Mount(errno.into()),
        })?;
        Ok(Self { device, root })
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
    if namespace::is_first() {
        // Who was handed the file may use it, whoever that is: there is no path to find it by. In a
        // namespace of our own this would be for those in it, in place of those of our user.
        fsconfig_set_flag(filesystem, "allow_other")?;
    }
    fsconfig_create(filesystem)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
