// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connecting, negotiating, and connecting again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::server::Server;
use crate::vmm::{Abilities, SHMEM_REGION, Vmm};

const SIZE: u64 = 1 << 20;

#[test]
fn handshake_presents_one_shared_memory_region_of_the_regions_size() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::connect(&server.socket(), Abilities::default());
    assert_ne!(vmm.features & (1 << VIRTIO_F_VERSION_1), 0);
    assert_ne!(vmm.features & SHMEM_REGION, 0);
    let config = vmm.frontend.get_shmem_config().unwrap();
    assert_eq!((config.nregions, config.memory_sizes[0]), (1, SIZE));
    assert_eq!(config.memory_sizes[1..], [0; 255]);
}

#[test]
fn virtio_5_19_4_config_is_zero_with_shmem_region() {
    let server = Server::files(&[SIZE]);
    let mut vmm = Vmm::connect(&server.socket(), Abilities::default());
    assert_eq!(vmm.config(0, 16).unwrap(), [0; 16]);
    assert_eq!(vmm.config(8, 8).unwrap(), [0; 8]);
}

#[test]
fn config_out_of_bounds_is_an_error_and_no_more() {
    const SET_FEATURES: u32 = 2;
    const SET_PROTOCOL_FEATURES: u32 = 16;
    const GET_CONFIG: u32 = 24;
    let server = Server::files(&[SIZE]);
    // By hand, as the library's frontend waits for ever for the payload that an error hasn't got.
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let mut send = |request: u32, body: &[u8]| {
        let len = u32::try_from(body.len()).unwrap();
        let header = [request, 1, len].map(u32::to_le_bytes).concat();
        stream.write_all(&[&header, body].concat()).unwrap();
    };
    send(SET_FEATURES, &(1u64 << 30).to_le_bytes());
    send(SET_PROTOCOL_FEATURES, &Protocol::CONFIG.bits().to_le_bytes());
    for (offset, len) in [(0u32, 17u32), (16, 1), (255, 1)] {
        let body = [offset, len, 0].map(u32::to_le_bytes).concat();
        send(GET_CONFIG, &[body, vec![0; len as usize]].concat());
    }
    for offset in [0u32, 16, 255] {
        let mut reply = [0; 24];
        stream.read_exact(&mut reply).unwrap();
        let expected = [GET_CONFIG, 1 | 4, 12, offset, 0, 0].map(u32::to_le_bytes).concat();
        assert_eq!(reply.as_slice(), expected, "a reply of no bytes");
    }
    drop(stream);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn frontend_without_shmem_gets_no_region_and_no_success() {
    let server = Server::files(&[SIZE]);
    let abilities = Abilities { shmem: false, ..Abilities::default() };
    let mut vmm = Vmm::start(&server.socket(), abilities);
    assert_eq!(vmm.features & SHMEM_REGION, 0);
    assert_eq!(vmm.config(0, 16).unwrap(), [0; 16]);
    assert_eq!(vmm.driver.flush(), -1);
    assert_eq!(*vmm.mapper.requests.lock().unwrap(), 0);
}

#[test]
fn guest_without_shmem_region_gets_no_mapping_and_no_success() {
    let server = Server::files(&[SIZE]);
    let abilities = Abilities { shmem_region: false, ..Abilities::default() };
    let mut vmm = Vmm::start(&server.socket(), abilities);
    assert_eq!(vmm.driver.flush(), -1);
    assert_eq!(*vmm.mapper.requests.lock().unwrap(), 0);
}

#[test]
fn second_connection_after_the_first_works_alike() {
    let server = Server::files(&[SIZE]);
    for round in 1..=3 {
        let mut vmm = Vmm::start(&server.socket(), Abilities::default());
        assert_eq!(vmm.driver.flush(), 0);
        vmm.store(0, &[round]);
        assert_eq!(vmm.driver.flush(), 0);
        assert_eq!(server.file(0)[0], round);
    }
}

#[test]
fn frontend_that_breaks_the_protocol_is_dropped_and_the_next_served() {
    let server = Server::files(&[SIZE]);
    let vmm = Vmm::connect(&server.socket(), Abilities::default());
    // A feature that was not offered.
    vmm.frontend.set_features(1 << 63).unwrap_err();
    vmm.frontend.get_features().unwrap_err();
    drop(vmm);
    let mut vmm = Vmm::start(&server.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
}
