// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A window in guest memory, and a VMM that asks in cloud-hypervisor's order: it has no shared memory
//! regions, hides the device's own feature bits, and reads the configuration before it tells of its
//! memory.

mod pieces;
mod restart;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use guest_harness::Daemon;
use tempfile::TempDir;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::driver::{AVAIL, DESC, Driver, QUEUE_SIZE, RAM, RAM_SIZE, USED};
use crate::vmm::ram;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const START: u64 = 0x2000_0000;
pub(crate) const SIZE: u64 = 4 << 20;
/// Where the VMM would have guest memory in its own address space.
const USER: u64 = 0x7000_0000_0000;

/// Features that a VMM masks, as they are the device's own.
const DEVICES_OWN: u64 = (1 << 24) - 1;

/// A daemon with a file, and what a VMM needs.
struct Served {
    dir: TempDir,
    daemon: Daemon,
}

impl Served {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(more: &[&str]) -> Self {
        Self::again(tempfile::tempdir().unwrap(), more)
    }

    /// A daemon with the file of another, which is gone.
    fn again(dir: TempDir, more: &[&str]) -> Self {
        let [file, control] = ["pmem.img", "control"].map(|name| dir.path().join(name));
        let args = ["--window", "gpa=0x20000000", "--size", "4M"].iter().chain(more);
        let args = args.map(Into::into);
        let paths = ["--file".into(), file.into(), "--control".into(), control.into_os_string()];
        Self { daemon: Daemon::start(DAEMON, args.chain(paths)).unwrap(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> File {
        open(&self.path("pmem.img"))
    }
}

pub(crate) fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A part of the guest's memory.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    start: u64,
    size: u64,
    file: &'a File,
    offset: u64,
}

/// Where the window is to be, whole.
pub(crate) fn window(file: &File) -> Memory<'_> {
    Memory { start: START, size: SIZE, file, offset: 0 }
}

/// A VMM that maps by itself, and its guest.
pub(crate) struct Vmm {
    frontend: Frontend,
    driver: Driver,
    ram: File,
    config: Vec<u8>,
}

impl Vmm {
    /// As cloud-hypervisor does it, until the guest's driver comes.
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        let (ram, memory) = ram();
        Self::negotiate(daemon, ram, Driver::new(memory, false))
    }

    /// A driver's VMM, which may have been connected to another daemon before.
    fn negotiate(daemon: &Daemon, ram: File, driver: Driver) -> Self {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        let mut frontend = Frontend::from_stream(stream, 1);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let wanted = (1 << VIRTIO_F_VERSION_1) | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let acked = features & wanted & !DEVICES_OWN;
        frontend.set_features(acked).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let known = Protocol::CONFIG | Protocol::REPLY_ACK | Protocol::MQ;
        frontend.set_protocol_features(protocol & known).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let buffer = [0xaa; 16];
        let (_, config) =
            frontend.get_config(0, 16, VhostUserConfigFlags::WRITABLE, &buffer).unwrap();
        frontend.set_features(acked).unwrap();
        Self { frontend, driver, ram, config }
    }

    /// Tells of RAM and `memory`.
    pub(crate) fn share(&self, memory: &[Memory<'_>]) {
        let ram = Memory { start: RAM, size: RAM_SIZE, file: &self.ram, offset: 0 };
        let all: Vec<_> = [&ram].into_iter().chain(memory).collect();
        let table: Vec<_> = all
            .iter()
            .map(|part| VhostUserMemoryRegionInfo {
                guest_phys_addr: part.start,
                memory_size: part.size,
                userspace_addr: USER + part.start,
                mmap_offset: part.offset,
                mmap_handle: part.file.as_raw_fd(),
            })
            .collect();
        self.frontend.set_mem_table(&table).unwrap();
    }

    /// The guest's driver comes.
    fn activate(&mut self) {
        self.frontend.set_vring_num(0, QUEUE_SIZE).unwrap();
        self.set_addresses();
        self.frontend.set_vring_base(0, 0).unwrap();
        self.frontend.set_vring_call(0, &self.driver.call).unwrap();
        self.frontend.set_vring_kick(0, &self.driver.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    fn set_addresses(&self) {
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: USER + DESC,
            used_ring_addr: USER + USED,
            avail_ring_addr: USER + AVAIL,
            log_addr: None,
        };
        self.frontend.set_vring_addr(0, &addresses).unwrap();
    }

    /// With `memory` from the start.
    fn start(daemon: &Daemon, memory: &[Memory<'_>]) -> Self {
        let mut vmm = Self::connect(daemon);
        vmm.share(memory);
        vmm.activate();
        vmm
    }
}

#[test]
fn window_that_the_vmm_maps_is_flushed() {
    let served = Served::start();
    let mut vmm = Vmm::connect(&served.daemon);
    assert_eq!(vmm.config, [START.to_le_bytes(), SIZE.to_le_bytes()].concat());
    let file = served.file();
    vmm.share(&[window(&file)]);
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);
    served.daemon.wait_for_log("the guest has the window as its memory at 0x20000000").unwrap();

    // Another VMM is asked again, and one region may be several.
    drop(vmm);
    let half = SIZE / 2;
    let halves =
        [0, half].map(|offset| Memory { start: START + offset, size: half, file: &file, offset });
    assert_eq!(Vmm::start(&served.daemon, &halves).driver.flush(), 0);
}

#[test]
fn window_that_goes_while_a_flush_waits_for_its_turn_fails_it() {
    let served = Served::with(&["--max-syncs", "1"]);
    let file = served.file();
    let mut vmm = Vmm::start(&served.daemon, &[window(&file)]);
    assert_eq!(vmm.driver.flush(), 0);
    vmm.driver.add_flush(0);
    vmm.driver.publish();
    vmm.share(&[]);
    while vmm.driver.answers() == 0 {
        std::thread::yield_now();
    }
    vmm.driver.answer();
    assert_eq!(vmm.driver.status(0), -1);
}

/// Memory that a VMM gave, and what is said of it.
fn refused(memory: impl FnOnce(&Served) -> Vec<(File, u64, u64, u64)>, expected: &str) {
    let served = Served::start();
    let parts = memory(&served);
    let parts: Vec<_> = parts
        .iter()
        .map(|(file, start, size, offset)| Memory {
            start: *start,
            size: *size,
            file,
            offset: *offset,
        })
        .collect();
    mended(&served.daemon, &parts, expected, &[window(&served.file())]);
}

/// What is said of memory that is `wrong`, until it is `right`.
#[track_caller]
fn mended(daemon: &Daemon, wrong: &[Memory<'_>], expected: &str, right: &[Memory<'_>]) {
    let mut vmm = Vmm::start(daemon, wrong);
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), -1, "{expected}");
    }
    let log = daemon.wait_for_log("every flush fails").unwrap();
    assert!(log.contains(expected), "{expected:?} is missing in:\n{log}");
    assert_eq!(daemon.log().matches("every flush fails").count(), 1);
    // Mended while the guest runs.
    vmm.share(right);
    assert_eq!(vmm.driver.flush(), 0);
    // And taken away again.
    vmm.share(&[]);
    assert_eq!(vmm.driver.flush(), -1);
}

#[test]
fn no_memory_there_is_refused() {
    refused(|_| Vec::new(), "the guest has no memory at 0x20000000");
}

#[test]
fn memory_that_ends_too_early_is_refused() {
    let short = |served: &Served| vec![(served.file(), START, SIZE / 2, 0)];
    refused(short, "the guest has no memory at 0x20200000");
}

#[test]
fn memory_elsewhere_is_refused() {
    let high = |served: &Served| vec![(served.file(), START + SIZE, SIZE, 0)];
    refused(high, "the guest has no memory at 0x20000000");
}

#[test]
fn memory_of_another_file_is_refused() {
    let other = |served: &Served| {
        let other = open(&served.path("other.img"));
        other.set_len(SIZE).unwrap();
        vec![(other, START, SIZE, 0)]
    };
    refused(other, "pmem.img, which is inode ");
}

#[test]
fn memory_from_the_middle_of_the_file_is_refused() {
    let shifted = |served: &Served| {
        let half = SIZE / 2;
        vec![(served.file(), START, half, half), (served.file(), START + half, half, 0)]
    };
    refused(shifted, "from byte 2097152 on, and not from 0;");
}

#[test]
fn window_that_linux_could_not_use_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem.img");
    let cases = [
        (["gpa=0x20100000", "4M"], "both to be multiples of 2 MiB"),
        (["gpa=0x20000000", "1M"], "both to be multiples of 2 MiB"),
        (["gpa=0xffffffffffe00000", "4M"], "don't fit behind 0xffffffffffe00000"),
        (["gpa=here", "4M"], "a window is auto, direct, served, or gpa=ADDR"),
    ];
    for ([window, size], expected) in cases {
        let args = ["--window", window, "--size", size, "--file"].map(Into::into);
        let args = args.into_iter().chain([file.clone().into_os_string()]);
        let error = format!("{:#}", Daemon::start(DAEMON, args).err().unwrap());
        assert!(error.contains(expected), "{window}: {error}");
        let _ = std::fs::remove_file(&file);
    }
}

#[test]
fn published_window_is_the_vmms_memory() {
    let dir = tempfile::tempdir().unwrap();
    let [base, overlay, shown] = ["base.img", "a.cow", "shown"].map(|name| dir.path().join(name));
    File::create(&base).unwrap().set_len(3 * SIZE).unwrap();
    let args = [
        "--window".into(),
        "gpa=0x20000000".into(),
        "--file".into(),
        base.clone().into_os_string(),
        "--overlay".into(),
        overlay.into_os_string(),
        "--publish".into(),
        shown.clone().into_os_string(),
    ];
    let Some(daemon) = Daemon::start_served(DAEMON, args).unwrap() else { return };
    let file = File::options().read(true).write(true).open(&shown).unwrap();
    // Three times a power of two: nothing is added to its end.
    assert_eq!(file.metadata().unwrap().len(), 3 * SIZE);
    let mut vmm = Vmm::connect(&daemon);
    let parts = [Memory { start: START, size: 3 * SIZE, file: &file, offset: 0 }];
    vmm.share(&parts);
    vmm.activate();
    assert_eq!(vmm.driver.flush(), 0);

    // The base itself is not what the guest is to have.
    let base = open(&base);
    vmm.share(&[Memory { start: START, size: 3 * SIZE, file: &base, offset: 0 }]);
    assert_eq!(vmm.driver.flush(), -1);
    drop(file);
}
