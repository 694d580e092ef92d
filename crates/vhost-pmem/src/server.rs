// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serving frontends, one after another.

use std::fmt::Display;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;
use tracing::{error, info, warn};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon, VhostUserHandlerError};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::connection::{Connection, OTHER_WAITS, QUEUE_SIZE_MAX, REVOKED};
use crate::device::Device;
use crate::request::Unanswerable;

/// Why a frontend could not be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The system has no thread or fd left for a connection. There may be some later.
    #[error("cannot set up a connection: {0}")]
    SetUp(String),
    /// The listening socket failed.
    #[error("cannot accept a frontend's connection")]
    Accept(#[source] io::Error),
}

impl ServeError {
    /// Whether trying again later may help: the system was short of something.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::SetUp(_) => true,
            Self::Accept(error) => matches!(
                Errno::from_io_error(error),
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN)
            ),
        }
    }
}

/// Why a daemon can't be started on a socket.
fn start_error(error: DaemonError) -> ServeError {
    match error {
        DaemonError::CreateBackendListener(VhostUserError::SocketError(error)) => {
            ServeError::Accept(error)
        }
        // The frontend was accepted, and is gone with the error.
        error => ServeError::SetUp(error.to_string()),
    }
}

/// Whether a frontend has named a queue, a size of one, or a feature that the device doesn't have. The
/// library doesn't tell which.
fn is_too_much(error: &DaemonError) -> bool {
    matches!(error, DaemonError::HandleRequest(VhostUserError::InvalidParam))
}

/// Whether a frontend has set up a ring that is in none of the memory that it told of. QEMU does so
/// without a word where a backend of the guest's RAM has no `share=on`.
fn is_ring_unshared(error: &DaemonError) -> bool {
    let DaemonError::HandleRequest(VhostUserError::ReqHandlerError(error)) = error else {
        return false;
    };
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<VhostUserHandlerError>());
    matches!(cause, Some(VhostUserHandlerError::MissingMemoryMapping))
}

impl Device {
    /// Serves the next frontend that connects to `listener`, until it leaves. What it did wrong is
    /// logged, and no error: the next one may do better.
    pub fn serve_next(self: &Arc<Self>, listener: UnixListener) -> Result<(), ServeError> {
        // The library's errors display, and are no `std::error::Error`s.
        let set_up = |error: &dyn Display| ServeError::SetUp(error.to_string());
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let connection = Connection::new(Arc::clone(self)).map_err(|error| set_up(&error))?;
        let connection = Arc::new(connection);
        let mut daemon =
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&connection), memory)
                .map_err(|error| set_up(&error))?;
        let mut listener = Listener::from(listener);
        for queue_thread in daemon.get_epoll_handlers() {
            queue_thread
                .register_listener(connection.revoked_event(), EventSet::IN, REVOKED)
                .map_err(|error| set_up(&error))?;
        }
        daemon.start(&mut listener).map_err(start_error)?;
        connection.set_hang_up(daemon.shutdown_handle());
        self.counters().frontend();
        self.frontend_came(connection.gpa());
        let admitted = self.admit_frontend();
        if let Some(suppressed) = admitted {
            info!(suppressed = NonZeroU64::new(suppressed), "frontend connected");
        }
        // Once, as that is logged.
        let once = EventSet::IN | EventSet::ONE_SHOT;
        for queue_thread in daemon.get_epoll_handlers() {
            // Without, a further one waits in silence.
            let _ = queue_thread.register_listener(listener.as_raw_fd(), once, OTHER_WAITS);
        }
        let left = daemon.wait();
        connection.close();
        self.write_back();
        self.counters().set_mapped(0);
        self.health().accepted();
        self.health().reset();
        self.frontend_went();
        if admitted.is_some() {
            log_end(left);
        }
        Ok(())
    }
}

fn log_end(left: Result<(), DaemonError>) {
    match left {
        Ok(()) | Err(DaemonError::HandleRequest(VhostUserError::Disconnected)) => {
            info!("frontend left");
        }
        Err(error) if is_ring_unshared(&error) => error!(
            hint = Unanswerable::Unshared.hint(),
            "frontend dropped: the guest keeps its queue in memory that the VMM doesn't share"
        ),
        Err(error) if is_too_much(&error) => warn!(
            queues = 1,
            queue_size_max = QUEUE_SIZE_MAX,
            hint = "with QEMU, num_vqs=1",
            "frontend dropped: it asked for a queue, a queue size or a feature that the device does not have"
        ),
        Err(error) => warn!(%error, "frontend dropped: it broke the protocol"),
    }
}
