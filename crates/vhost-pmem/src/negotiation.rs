// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a frontend and its guest can do.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vhost::vhost_user::message::{
    VhostUserMMap, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Backend, Error as VhostUserError, VhostUserFrontendReqHandler};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::spec::VIRTIO_PMEM_F_SHMEM_REGION;

/// The protocol features we offer. Not CONFIGURE_MEM_SLOTS: with it QEMU 11.1 crashes when the
/// guest reboots. Not STATUS: the vhost-user library hangs up on SET_STATUS.
pub(crate) const PROTOCOL_FEATURES: Protocol = Protocol::CONFIG
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::BACKEND_SEND_FD)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::SHMEM);

/// Those that we offer where the VMM maps the window by itself, and has nothing to be asked for.
pub(crate) const GPA_PROTOCOL_FEATURES: Protocol = Protocol::CONFIG.union(Protocol::REPLY_ACK);

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const FEATURES: u64 = VERSION_1
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Why a guest gets no pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the frontend can't map our pages: it didn't negotiate the vhost-user protocol feature \
         SHMEM; use QEMU 11.1 or later (vhost-user-test-device-pci) or a crosvm that has \
         --vhost-user type=pmem"
    )]
    FrontendLacksShmem,
    #[error(
        "the guest's virtio-pmem driver doesn't know VIRTIO_PMEM_F_SHMEM_REGION, so it can't find \
         the pages and fails its probe; use a guest kernel of Linux 6.8 or later"
    )]
    GuestLacksShmemRegion,
}

/// What was said on a connection so far.
#[derive(Default)]
pub(crate) struct Negotiation {
    /// Present once the frontend has negotiated SHMEM.
    frontend: Option<Backend>,
    asked: bool,
    guest_features: u64,
    /// Whether the VMM maps the window by itself: then the feature is never offered, and nobody
    /// refused.
    is_gpa: bool,
}

impl Negotiation {
    /// With nobody, about a window that the VMM maps by itself, or asks us for.
    pub(crate) fn new(is_gpa: bool) -> Self {
        Self { is_gpa, ..Self::default() }
    }

    /// The features to offer. VIRTIO_PMEM_F_SHMEM_REGION comes with SHMEM only – but whoever asks
    /// for the first time hasn't been able to say whether it has SHMEM. QEMU asks again once it
    /// has; crosvm never does.
    pub(crate) fn features(&mut self) -> u64 {
        let first = !std::mem::replace(&mut self.asked, true);
        match !self.is_gpa && (first || self.frontend.is_some()) {
            true => FEATURES | VIRTIO_PMEM_F_SHMEM_REGION,
            false => FEATURES,
        }
    }

    pub(crate) fn set_guest_features(&mut self, features: u64) {
        self.guest_features = features;
    }

    pub(crate) fn set_frontend(&mut self, frontend: Backend) {
        self.frontend = has_shmem(&frontend).then_some(frontend);
    }

    /// Whether the driver has accepted its features, as it does before it uses the device.
    pub(crate) fn is_driver_up(&self) -> bool {
        self.guest_features & VERSION_1 != 0
    }

    /// The frontend to have the pages mapped by.
    pub(crate) fn mapper(&self) -> Result<Backend, Refusal> {
        let frontend = self.frontend.clone().ok_or(Refusal::FrontendLacksShmem)?;
        match self.guest_features & VIRTIO_PMEM_F_SHMEM_REGION {
            0 => Err(Refusal::GuestLacksShmemRegion),
            _ => Ok(frontend),
        }
    }

    /// What makes it impossible that the guest gets pages, as far as is known.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.is_gpa {
            true => None,
            false if self.is_driver_up() => self.mapper().err(),
            false => self.frontend.is_none().then_some(Refusal::FrontendLacksShmem),
        }
    }
}

/// Whether SHMEM was negotiated. The library knows, and doesn't tell; but with it, and only with
/// it, a map request gets as far as `sendmsg`, which refuses the bad fd before a byte is sent.
fn has_shmem(frontend: &Backend) -> bool {
    struct BadFd;
    impl AsRawFd for BadFd {
        fn as_raw_fd(&self) -> RawFd {
            -1
        }
    }
    let refused = frontend.shmem_map(&VhostUserMMap::default(), &BadFd).err();
    let cause = refused.as_ref().and_then(io::Error::get_ref);
    cause.is_some_and(<dyn Error + Send + Sync>::is::<VhostUserError>)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn frontend(shmem: bool) -> (Backend, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let backend = Backend::from_stream(ours);
        backend.set_reply_ack_flag(true);
        backend.set_shmem_flag(shmem);
        (backend, theirs)
    }

    #[test]
    fn shmem_bit_as_specified_is_22() {
        // vhost before 0.17 had it at 21, which is another feature.
        assert_eq!(Protocol::SHMEM.bits(), 1 << 22);
    }

    #[test]
    fn shmem_probe_tells_and_sends_nothing() {
        for shmem in [true, false] {
            let (backend, mut theirs) = frontend(shmem);
            assert_eq!(has_shmem(&backend), shmem);
            theirs.set_nonblocking(true).unwrap();
            let error = theirs.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn shmem_region_is_offered_once_unasked_then_with_shmem_only() {
        let mut negotiation = Negotiation::default();
        assert_ne!(negotiation.features() & VIRTIO_PMEM_F_SHMEM_REGION, 0);
        assert_eq!(negotiation.features() & VIRTIO_PMEM_F_SHMEM_REGION, 0);
        negotiation.set_frontend(frontend(false).0);
        assert_eq!(negotiation.features() & VIRTIO_PMEM_F_SHMEM_REGION, 0);
        negotiation.set_frontend(frontend(true).0);
        assert_ne!(negotiation.features() & VIRTIO_PMEM_F_SHMEM_REGION, 0);
    }

    #[test]
    fn mapper_without_either_side_names_what_lacks() {
        let mut negotiation = Negotiation::default();
        assert_eq!(negotiation.mapper().err(), Some(Refusal::FrontendLacksShmem));
        negotiation.set_frontend(frontend(true).0);
        negotiation.set_guest_features(VERSION_1);
        assert_eq!(negotiation.mapper().err(), Some(Refusal::GuestLacksShmemRegion));
        negotiation.set_guest_features(VERSION_1 | VIRTIO_PMEM_F_SHMEM_REGION);
        assert!(negotiation.mapper().is_ok());
    }
}
