// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `fusermount3`, the program that mounts FUSE filesystems for those who must not.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::stat;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::{ServeWindowError, mount};

const PROGRAM: &str = "fusermount3";

/// Has a filesystem mounted on the file at `path`, for those to whom the file's mode gives it.
/// Returns where its requests come from.
pub(super) fn mount(path: &Path) -> Result<OwnedFd, ServeWindowError> {
    let shared = stat(path).map_err(|errno| ServeWindowError::Mount(errno.into()))?.st_mode & 0o077;
    // The helper tells the kernel what kind of file the root is.
    let mut options = "fsname=vhost-pmemd,noatime,default_permissions".to_owned();
    if shared != 0 {
        options.push_str(",allow_other");
    }
    let run = || -> io::Result<Result<OwnedFd, String>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The program has it by its number.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let helper = Command::new(PROGRAM)
            .args(["-o", &options, "--"])
            .arg(path)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        drop(theirs);
        let device = receive(&ours)?;
        let output = helper.wait_with_output()?;
        let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(device.filter(|_| output.status.success()).ok_or_else(said))
    };
    match run() {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(said)) => Err(ServeWindowError::Helper(said)),
        Err(error) => match error.kind() {
            // There is none, or none that we may run.
            ErrorKind::NotFound | ErrorKind::PermissionDenied => Err(ServeWindowError::NotAllowed),
            _ => Err(ServeWindowError::Mount(error)),
        },
    }
}

/// The fd that comes through `socket`; none if that is closed before.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fds)
}

/// Has what is mounted at `path` taken away.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    let status = Command::new(PROGRAM).args(["-u", "-q", "-z", "--"]).arg(path).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{PROGRAM}: {status}"))) }
}

/// A mount that is taken away when this is dropped.
#[derive(Debug)]
pub(super) struct Mount(pub(super) PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = mount::unmount(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot unmount a served window");
        }
    }
}
