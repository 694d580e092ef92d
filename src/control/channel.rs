// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a fleet reaches its members: over a pair of sockets for each, made before the member begins.
//! What goes over it is connections, one for each request.
//!
//! So a member has no socket that another process could connect to, and none of them needs the right
//! to connect.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// One end: the fleet's, which begins connections, or the member's, which accepts them.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

impl Channel {
    /// The fleet's end, which waits no longer than `patience` for a member that accepts none, and the
    /// member's.
    pub(crate) fn pair(patience: Duration) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_write_timeout(Some(patience))?;
        // The least: connections that a hung member doesn't accept take fds of the whole system.
        set_socket_send_buffer_size(&ours, 0)?;
        Ok((Self(ours), theirs.into()))
    }

    /// The member's end, which it was started with.
    pub(crate) fn new(end: OwnedFd) -> Self {
        Self(end.into())
    }

    /// Begins a connection.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let fds = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        sendmsg(&self.0, &[IoSlice::new(b"+")], &mut control, SendFlags::NOSIGNAL)?;
        Ok(ours)
    }

    /// Waits for a connection; none comes any more if the fleet is gone.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let received = recvmsg(&self.0, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let fds = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        // The system may have had no fd left for it.
        fds.map(|fd| Some(fd.into())).ok_or_else(|| io::Error::other("a connection was lost"))
    }
}
