// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connected socket where a listening one is needed.
//!
//! vhost-user-backend accepts its connections itself. For a frontend that is connected already, as
//! QEMU's conventions have it for `--fd`, messages and their fds are carried to a listening socket
//! that nobody else can reach. Only vhost-user requests pass here: neither loads and stores nor
//! flushes do.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tracing::warn;

use crate::sandbox::{Options, Pass, Role, Sandbox};

/// More than any vhost-user message carries: a memory table has up to 8, of the kernel's 253.
const FDS_MAX: usize = 32;

/// A message is a header of three 32-bit numbers, the last of which is the body's length.
const HEADER_LEN: usize = 12;
const BODY_LEN_MAX: usize = 4096;

/// A listening socket with one connection to accept: `frontend`.
pub(crate) fn listen(frontend: UnixStream, sandbox: Options) -> io::Result<UnixListener> {
    // There are no files yet, and it needs none.
    let sandbox = Arc::new(Sandbox::new(sandbox));
    let private = tempfile::tempdir()?;
    let path = private.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let backend = UnixStream::connect(&path)?;
    spawn("relay-in", frontend.try_clone()?, backend.try_clone()?, sandbox.pass(Role::Relay))?;
    spawn("relay-out", backend, frontend, sandbox.pass(Role::Relay))?;
    sandbox.wait_for_all();
    Ok(listener)
}

fn spawn(name: &str, from: UnixStream, to: UnixStream, pass: Pass) -> io::Result<()> {
    let relay = move || {
        pass.enter();
        if let Err(error) = pump(&from, &to) {
            warn!(%error, "the inherited socket failed");
        }
        // Where one side has ended, so has the other; it may know already.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    };
    thread::Builder::new().name(name.to_owned()).spawn(relay).map(drop)
}

/// Carries messages from one side to the other until the first hangs up.
///
/// One by one: bytes read together would get the fds of the last message in front of the first.
fn pump(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    loop {
        let mut fds = Vec::new();
        let mut message = vec![0; HEADER_LEN];
        match receive(from, &mut message, &mut fds) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            received => received?,
        }
        let size = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        let size = usize::try_from(size).map_err(io::Error::other)?;
        if size > BODY_LEN_MAX {
            return Err(io::Error::other("a vhost-user message is too long"));
        }
        message.resize(HEADER_LEN + size, 0);
        receive(from, &mut message[HEADER_LEN..], &mut fds)?;
        send(to, &message, &fds)?;
    }
}

/// Fills `bytes`, and adds the fds that come with them to `fds`.
fn receive(from: &UnixStream, mut bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(bytes)];
        let received = recvmsg(from, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        bytes = &mut bytes[received.bytes..];
    }
    Ok(())
}

fn send(to: &UnixStream, mut bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut fds = borrowed.as_slice();
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many file descriptors in a message"));
        }
        let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        bytes = &bytes[sent..];
        // They went with the first byte.
        fds = &[];
    }
    Ok(())
}
