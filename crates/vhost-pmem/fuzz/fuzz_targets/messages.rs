// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any messages leave a device that serves the next frontend, in this process, so that what panics or
//! hangs is found.

#![no_main]
#![allow(dead_code, reason = "not all that the VMM of the tests can do is used")]

#[path = "../../../../tests/frontend/driver.rs"]
mod driver;
#[path = "../../../../tests/frontend/message_oracle.rs"]
mod message_oracle;
#[path = "../../../../tests/frontend/vmm.rs"]
mod vmm;

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use pfn_blk::{MemoryStore, NrPages, PfnSpace, Region};
use tempfile::TempDir;
use vhost_pmem::{Device, WindowChoice};

use crate::message_oracle::check;
use crate::vmm::{Abilities, Vmm};

struct Server {
    dir: TempDir,
    /// How many fds there are while nobody is connected.
    idle: usize,
}

/// How many fds this process has.
fn fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn start() -> Server {
    let store = MemoryStore::new("fuzzed", NrPages::try_from_bytes(1 << 20).unwrap()).unwrap();
    let pagemap = PfnSpace::new().add(Box::new(store)).unwrap();
    let region = Region::try_new(pagemap).unwrap();
    let device = Arc::new(Device::try_new(region, WindowChoice::Auto).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || while device.serve_next(listener.try_clone().unwrap()).is_ok() {});
    // What is made once.
    drop(Vmm::start(&socket, Abilities::default()));
    thread::sleep(Duration::from_millis(500));
    Server { dir, idle: fds() }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(start);
    check(&server.dir.path().join("socket"), fds, server.idle, data);
});
