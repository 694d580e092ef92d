// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serving frontends, one after another.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use thiserror::Error;
use tracing::{error, info, warn};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon, VhostUserHandlerError};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::connection::{Connection, REVOKED};
use crate::device::Device;
use crate::request::Unanswerable;

/// Why no further frontend can be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The system has no thread or fd left for a connection.
    #[error("cannot set up a connection: {0}")]
    SetUp(String),
    /// The listening socket failed.
    #[error("cannot accept a frontend's connection: {0}")]
    Accept(String),
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
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let connection = Connection::new(Arc::clone(self))
            .map_err(|error| ServeError::SetUp(error.to_string()))?;
        let connection = Arc::new(connection);
        let mut daemon =
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&connection), memory)
                .map_err(|error| ServeError::SetUp(error.to_string()))?;
        for queue_thread in daemon.get_epoll_handlers() {
            queue_thread
                .register_listener(connection.revoked_event(), EventSet::IN, REVOKED)
                .map_err(|error| ServeError::SetUp(error.to_string()))?;
        }

        daemon
            .start(&mut Listener::from(listener))
            .map_err(|error| ServeError::Accept(error.to_string()))?;
        connection.set_hang_up(daemon.shutdown_handle());
        self.counters().frontend();
        self.frontend_came(connection.gpa());
        info!("frontend connected");
        let left = daemon.wait();
        connection.close();
        self.write_back();
        self.counters().set_mapped(0);
        self.health().accepted();
        self.health().reset();
        self.frontend_went();
        match left {
            Ok(()) | Err(DaemonError::HandleRequest(VhostUserError::Disconnected)) => {
                info!("frontend left");
            }
            Err(error) if is_ring_unshared(&error) => error!(
                hint = Unanswerable::Unshared.hint(),
                "frontend dropped: the guest keeps its queue in memory that the VMM doesn't share"
            ),
            Err(error) => warn!(%error, "frontend dropped: it broke the protocol"),
        }
        Ok(())
    }
}
