// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes on a vhost-user-blk device (virtio 1.3, 5.2): a WRITE of 4 KiB and, after its end, as the
//! device need not sync what is still being written, a FLUSH.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, ensure};
use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::calls::Calls;
use crate::changes::{Device, MOST};
use crate::driver::{AVAIL, DESC, Driver, NEXT, QUEUE_SIZE, RAM, RAM_SIZE, USED, WRITE};
use crate::image::PAGE;
use crate::storage_daemon::StorageDaemon;

/// Each slot has two pages here: the status first, the header at the end of the first page, then the
/// data, aligned as direct I/O wants it.
const SLOTS: u64 = RAM + 0x1_0000;
const SLOT_SIZE: u64 = 0x2000;
const HEADER_SIZE: u32 = 16;

/// A status that no device answers with.
const PENDING: u8 = 0xff;

pub(crate) struct Blk {
    daemon: StorageDaemon,
    _frontend: Frontend,
    memory: GuestMemoryMmap,
    driver: Driver,
    calls: Calls,
    /// How many answers were taken, as the ring counts.
    used: u16,
    /// What is under way in each slot.
    types: [u32; MOST],
    unpublished: bool,
}

impl Blk {
    pub(crate) fn connect(daemon: StorageDaemon) -> Result<Self> {
        let ram = File::from(rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC)?);
        ram.set_len(RAM_SIZE)?;
        let region = FileOffset::new(ram.try_clone()?, 0);
        let region = MmapRegion::from_file(region, usize::try_from(RAM_SIZE)?)?;
        let region = GuestRegionMmap::new(region, GuestAddress(RAM));
        let memory = GuestMemoryMmap::from_regions(region.into_iter().collect())?;
        let driver = Driver::new(memory.clone(), true);
        // Each slot has two descriptors of its own, as the device answers in any order.
        for slot in 0..MOST {
            let [status, header, _] = addresses(slot);
            let first = u16::try_from(2 * slot)?;
            for (at, address, len, flags, next) in
                [(first, header, HEADER_SIZE, NEXT, first + 1), (first + 1, status, 1, WRITE, 0)]
            {
                let at = DESC + 16 * u64::from(at);
                memory.write_obj(address, GuestAddress(at))?;
                memory.write_obj(len, GuestAddress(at + 8))?;
                memory.write_obj([flags, next], GuestAddress(at + 12))?;
            }
        }
        let mut frontend = Frontend::from_stream(UnixStream::connect(daemon.socket())?, 1);
        set_up(&mut frontend, &ram, &driver)?;
        let calls = Calls::new(&driver);
        Ok(Self {
            daemon,
            _frontend: frontend,
            memory,
            driver,
            calls,
            used: 0,
            types: [0; MOST],
            unpublished: false,
        })
    }

    /// Adds a request whose data, if it has some, is in its place.
    fn add(&mut self, slot: usize, request: u32, sector: u64, data: u32) -> Result<()> {
        let [status, header, _] = addresses(slot);
        self.memory.write_obj([request, 0], GuestAddress(header))?;
        self.memory.write_obj(sector, GuestAddress(header + 8))?;
        self.memory.write_obj(PENDING, GuestAddress(status))?;
        let head = u16::try_from(2 * slot)?;
        self.driver.write_u32(DESC + 16 * u64::from(head) + 8, HEADER_SIZE + data);
        self.driver.add_head(head);
        self.types[slot] = request;
        self.unpublished = true;
        Ok(())
    }
}

/// A slot's status, header and data.
fn addresses(slot: usize) -> [u64; 3] {
    let data = SLOTS + SLOT_SIZE * slot as u64 + PAGE as u64;
    [data - PAGE as u64, data - u64::from(HEADER_SIZE), data]
}

/// Negotiates, shares memory and starts the queue.
fn set_up(frontend: &mut Frontend, ram: &File, driver: &Driver) -> Result<()> {
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    let flush = 1 << VIRTIO_BLK_F_FLUSH;
    ensure!(offered & flush != 0, "the device has no cache, and no flush");
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let wanted = (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | flush | protocol;
    let replies = VhostUserProtocolFeatures::REPLY_ACK;
    let replies = frontend.get_protocol_features()? & replies;
    frontend.set_protocol_features(replies)?;
    if !replies.is_empty() {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    frontend.set_features(offered & wanted)?;
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: RAM,
        memory_size: RAM_SIZE,
        userspace_addr: RAM,
        mmap_offset: 0,
        mmap_handle: ram.as_raw_fd(),
    }])?;
    let addresses = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: DESC,
        used_ring_addr: USED,
        avail_ring_addr: AVAIL,
        log_addr: None,
    };
    frontend.set_vring_num(0, QUEUE_SIZE)?;
    frontend.set_vring_base(0, 0)?;
    frontend.set_vring_addr(0, &addresses)?;
    frontend.set_vring_call(0, &driver.call)?;
    frontend.set_vring_kick(0, &driver.kick)?;
    Ok(frontend.set_vring_enable(0, true)?)
}

impl Device for Blk {
    fn begin(&mut self, slot: usize, page: usize, bytes: &[u8; PAGE]) -> Result<()> {
        let [_, _, data] = addresses(slot);
        self.memory.write_slice(bytes, GuestAddress(data))?;
        let sector = (page * (PAGE / 512)) as u64;
        self.add(slot, VIRTIO_BLK_T_OUT, sector, u32::try_from(PAGE)?)
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.driver.publish();
        }
    }

    fn durable(&mut self) -> Result<Option<usize>> {
        while self.driver.answers() > 0 {
            let (head, _) = self.driver.answer();
            self.used = self.used.wrapping_add(1);
            let slot = usize::try_from(head / 2)?;
            let status: u8 = self.memory.read_obj(GuestAddress(addresses(slot)[0]))?;
            ensure!(status == 0, "the storage daemon answered {status}");
            if self.types[slot] == VIRTIO_BLK_T_FLUSH {
                return Ok(Some(slot));
            }
            self.add(slot, VIRTIO_BLK_T_FLUSH, 0, 0)?;
        }
        Ok(None)
    }

    fn wait(&mut self) -> Result<()> {
        // virtio 2.7.7.1: ask for a call at the next answer, then look again.
        self.driver.write_u32(AVAIL + 4 + 2 * u64::from(QUEUE_SIZE), self.used.into());
        fence(Ordering::SeqCst);
        self.calls.wait(&self.driver)
    }

    fn calls(&mut self) -> u64 {
        self.calls.count(&self.driver)
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}
