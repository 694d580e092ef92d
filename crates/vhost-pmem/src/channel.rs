// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking a frontend to map and unmap, for no longer than it is connected.
//!
//! The frontend answers on a socket of its own, which it may keep open, and silent, after it has hung
//! up. The library waits there without end, and can't be told to stop. So each request is made by a
//! thread of its own, which is left behind where the connection ends first. Such threads end when
//! the frontend closes its socket; there may be but few of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

/// So many requests may be left behind by the frontends of a device.
const LEFT_BEHIND_MAX: usize = 16;
/// How soon the end of a connection is noticed.
const TICK: Duration = Duration::from_millis(20);

/// A frontend that can be asked.
#[derive(Clone)]
pub(crate) struct Channel {
    pub(crate) frontend: Backend,
    /// Set when the connection ends.
    pub(crate) closed: Arc<AtomicBool>,
    /// How many requests of the device wait for an answer.
    pub(crate) waiting: Arc<AtomicUsize>,
}

impl Channel {
    /// Has pages of `file` mapped.
    pub(crate) fn map(&self, request: VhostUserMMap, file: BorrowedFd<'_>) -> io::Result<()> {
        let file: OwnedFd = file.try_clone_to_owned()?;
        self.ask(move |frontend| frontend.shmem_map(&request, &file.as_raw_fd()))
    }

    /// Has pages unmapped.
    pub(crate) fn unmap(&self, request: VhostUserMMap) -> io::Result<()> {
        self.ask(move |frontend| frontend.shmem_unmap(&request))
    }

    fn ask(
        &self,
        request: impl FnOnce(&Backend) -> io::Result<u64> + Send + 'static,
    ) -> io::Result<()> {
        let waits = Waits::new(&self.waiting);
        if self.waiting.load(Ordering::SeqCst) > LEFT_BEHIND_MAX {
            return Err(io::Error::other(
                "earlier frontends hung up without answering, and keep their sockets open",
            ));
        }
        let frontend = self.frontend.clone();
        let (answer, answered) = channel();
        thread::Builder::new().name("map".to_owned()).spawn(move || {
            let result = request(&frontend);
            drop((frontend, waits));
            // Whoever asked may have gone.
            let _ = answer.send(result);
        })?;
        loop {
            match answered.recv_timeout(TICK) {
                Ok(result) => return result.map(drop),
                Err(RecvTimeoutError::Timeout) if !self.closed.load(Ordering::SeqCst) => {}
                Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }
}

/// A request that waits for its answer.
struct Waits(Arc<AtomicUsize>);

impl Waits {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A frontend that has hung up, and the socket it keeps.
    fn left(waiting: &Arc<AtomicUsize>) -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let frontend = Backend::from_stream(ours);
        frontend.set_reply_ack_flag(true);
        frontend.set_shmem_flag(true);
        let closed = Arc::new(AtomicBool::new(true));
        (Channel { frontend, closed, waiting: Arc::clone(waiting) }, theirs)
    }

    #[test]
    fn requests_are_left_behind_up_to_a_bound_and_end_with_their_sockets() {
        let waiting = Arc::default();
        let request = VhostUserMMap::default();
        let mut sockets = Vec::new();
        for _ in 0..LEFT_BEHIND_MAX {
            let (channel, socket) = left(&waiting);
            let error = channel.unmap(request).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            sockets.push(socket);
        }
        let (channel, _socket) = left(&waiting);
        assert_eq!(channel.unmap(request).unwrap_err().kind(), io::ErrorKind::Other);
        drop(sockets);
        while waiting.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
    }
}
