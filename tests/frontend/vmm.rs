// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM: connects, negotiates, shares memory, maps what the device wants mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMMap,
    VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileMemory,
    VolatileSlice,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::driver::{AVAIL, DESC, Driver, QUEUE_SIZE, RAM, RAM_SIZE, USED};

/// Where the VMM would have guest RAM in its own address space.
pub(crate) const USER_RAM: u64 = 0x7000_0000_0000;
/// Where a PCI BAR would show the shared memory region to the guest.
const BAR: u64 = 0x40_0000_0000;

/// What a memory table may have without VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS.
const MEMORY_REGIONS_MAX: usize = 8;

pub(crate) const SHMEM_REGION: u64 = 1;

/// What the VMM and its guest know.
#[derive(Clone, Copy)]
pub(crate) struct Abilities {
    pub(crate) shmem: bool,
    pub(crate) shmem_region: bool,
    pub(crate) event_idx: bool,
}

impl Default for Abilities {
    fn default() -> Self {
        Self { shmem: true, shmem_region: true, event_idx: true }
    }
}

/// How the VMM answers map requests.
#[derive(Default)]
pub(crate) struct Mapper {
    pub(crate) refuse: AtomicBool,
    pub(crate) refuse_unmap: AtomicBool,
    /// As QEMU: tell the backend of each mapping in a memory table, and wait until it has it,
    /// before the map request is answered.
    pub(crate) frontend: Mutex<Option<Frontend>>,
    pub(crate) delay: Mutex<Duration>,
    pub(crate) maps: Mutex<Vec<Mapped>>,
    pub(crate) requests: Mutex<u64>,
    ram: Mutex<Option<File>>,
    /// A part of RAM that is not shared.
    unshared: Mutex<Option<Range<u64>>>,
}

/// A piece of the shared memory region.
pub(crate) struct Mapped {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) file: File,
    file_offset: u64,
    pub(crate) region: MmapRegion,
}

impl VhostUserFrontendReqHandler for Mapper {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> io::Result<u64> {
        *self.requests.lock().unwrap() += 1;
        thread::sleep(*self.delay.lock().unwrap());
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (offset, len) = (request.shm_offset, request.len);
        let end = offset + len;
        if self
            .maps
            .lock()
            .unwrap()
            .iter()
            .any(|have| have.offset < end && offset < have.offset + have.len)
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        assert_eq!((request.shmid, { request.flags }), (0, 1), "region 0, writable");
        let file = File::from(duplicate(fd));
        let at = FileOffset::new(file.try_clone()?, request.fd_offset);
        let region =
            MmapRegion::from_file(at, usize::try_from(len).unwrap()).map_err(io::Error::other)?;
        let file_offset = request.fd_offset;
        self.maps.lock().unwrap().push(Mapped { offset, len, file, file_offset, region });
        if let Some(frontend) = &*self.frontend.lock().unwrap() {
            self.share_memory(frontend);
        }
        Ok(0)
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> io::Result<u64> {
        if self.refuse_unmap.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut maps = self.maps.lock().unwrap();
        let before = maps.len();
        maps.retain(|have| (have.offset, have.len) != (request.shm_offset, request.len));
        if maps.len() == before { Err(io::ErrorKind::NotFound.into()) } else { Ok(0) }
    }
}

impl Mapper {
    /// Sends the memory table: RAM, and what is mapped.
    fn share_memory(&self, frontend: &Frontend) {
        let ram = self.ram.lock().unwrap();
        let ram = ram.as_ref().unwrap();
        let end = RAM + RAM_SIZE;
        let unshared = self.unshared.lock().unwrap().clone().unwrap_or(end..end);
        let shared = [RAM..unshared.start, unshared.end..end];
        let shared = shared.into_iter().filter(|part| !part.is_empty());
        let mut table: Vec<_> = shared
            .map(|part| VhostUserMemoryRegionInfo {
                guest_phys_addr: part.start,
                memory_size: part.end - part.start,
                userspace_addr: part.start - RAM + USER_RAM,
                mmap_offset: part.start - RAM,
                mmap_handle: ram.as_raw_fd(),
            })
            .collect();
        let maps = self.maps.lock().unwrap();
        table.extend(maps.iter().map(|map| VhostUserMemoryRegionInfo {
            guest_phys_addr: BAR + map.offset,
            memory_size: map.len,
            userspace_addr: BAR + map.offset,
            mmap_offset: map.file_offset,
            mmap_handle: map.file.as_raw_fd(),
        }));
        // QEMU has no more either for a device that doesn't say that it takes them, and maps on.
        if table.len() <= MEMORY_REGIONS_MAX {
            frontend.set_mem_table(&table).unwrap();
        }
    }
}

/// A guest's RAM, and the file that it is.
pub(crate) fn ram() -> (File, GuestMemoryMmap) {
    let file = File::from(rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(RAM_SIZE).unwrap();
    let at = FileOffset::new(file.try_clone().unwrap(), 0);
    let region = MmapRegion::from_file(at, usize::try_from(RAM_SIZE).unwrap()).unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(RAM)).unwrap();
    (file, GuestMemoryMmap::from_regions(vec![region]).unwrap())
}

#[allow(unsafe_code, reason = "the library lends its fd as a number")]
pub(crate) fn duplicate(fd: &dyn AsRawFd) -> OwnedFd {
    // SAFETY: the fd must stay open while it is borrowed; the library owns it during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    fd.try_clone_to_owned().unwrap()
}

/// Answers map requests in a thread of its own, until it is dropped.
struct MapThread {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl MapThread {
    fn spawn(mut handler: FrontendReqHandler<Mapper>) -> Self {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let stopped = stop.try_clone().unwrap();
        let thread = thread::spawn(move || {
            let fds = [duplicate(&stopped), duplicate(&handler)];
            // A tick would disturb what is measured with many VMMs.
            while stopped.read().is_err() {
                let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
                poll(&mut fds, None).unwrap();
                let request = fds[1].revents();
                // A refusal comes back here as an error, too.
                if !request.is_empty()
                    && handler.handle_request().is_err()
                    && request.contains(PollFlags::HUP)
                {
                    break;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for MapThread {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || thread::panicking(), "the VMM's map thread panicked");
    }
}

/// A VMM with one guest.
pub(crate) struct Vmm {
    pub(crate) frontend: Frontend,
    pub(crate) driver: Driver,
    pub(crate) mapper: Arc<Mapper>,
    pub(crate) features: u64,
    memory: GuestMemoryMmap,
    pub(crate) abilities: Abilities,
    _map_thread: MapThread,
}

impl Vmm {
    /// Connects and negotiates; the guest's driver hasn't started yet.
    pub(crate) fn connect(socket: &Path, abilities: Abilities) -> Self {
        Self::over(UnixStream::connect(socket).unwrap(), abilities)
    }

    /// Negotiates on a connection.
    pub(crate) fn over(stream: UnixStream, abilities: Abilities) -> Self {
        let mut frontend = Frontend::from_stream(stream, 1);
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        // As QEMU does it: protocol features first, then ask for the features again.
        frontend.set_features(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()).unwrap();
        let mut protocol = frontend.get_protocol_features().unwrap();
        protocol.set(Protocol::SHMEM, abilities.shmem);
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);

        let mapper = Arc::new(Mapper::default());
        let mut handler = FrontendReqHandler::new(Arc::clone(&mapper)).unwrap();
        handler.set_reply_ack_flag(true);
        frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
        let features = frontend.get_features().unwrap();

        let (ram, memory) = ram();
        *mapper.ram.lock().unwrap() = Some(ram);
        *mapper.frontend.lock().unwrap() = Some(frontend.clone());
        let driver = Driver::new(memory.clone(), abilities.event_idx);
        let _map_thread = MapThread::spawn(handler);
        Self { frontend, driver, mapper, features, memory, abilities, _map_thread }
    }

    /// Connects, and starts the driver.
    pub(crate) fn start(socket: &Path, abilities: Abilities) -> Self {
        let mut vmm = Self::connect(socket, abilities);
        vmm.activate();
        vmm
    }

    /// The features the driver accepts.
    pub(crate) fn driver_features(&self) -> u64 {
        let mut wanted = 1 << VIRTIO_F_VERSION_1;
        if self.abilities.event_idx {
            wanted |= 1 << VIRTIO_RING_F_EVENT_IDX;
        }
        if self.abilities.shmem_region {
            wanted |= SHMEM_REGION;
        }
        self.features & (wanted | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    /// The driver sets itself up, with an empty queue.
    pub(crate) fn activate(&mut self) {
        self.prepare();
        self.start_queue(0);
    }

    /// The driver sets itself up, and has no queue yet.
    pub(crate) fn prepare(&mut self) {
        self.driver = Driver::new(self.memory.clone(), self.abilities.event_idx);
        self.frontend.set_features(self.driver_features()).unwrap();
        self.share_memory();
    }

    pub(crate) fn share_memory(&self) {
        self.mapper.share_memory(&self.frontend);
    }

    /// Shares all of RAM but this, as a VMM does where a memory backend has no `share=on`.
    pub(crate) fn share_all_but(&self, unshared: Range<u64>) {
        *self.mapper.unshared.lock().unwrap() = Some(unshared);
        self.share_memory();
    }

    /// Shares all of RAM.
    pub(crate) fn share_all(&self) {
        *self.mapper.unshared.lock().unwrap() = None;
        self.share_memory();
    }

    /// Starts the queue at an available index.
    pub(crate) fn start_queue(&mut self, base: u16) {
        let kick = self.driver.kick.try_clone().unwrap();
        self.try_start_queue(base, AVAIL, &kick).unwrap();
    }

    /// Starts the queue at an available index of a ring, with a kick of another's making.
    pub(crate) fn try_start_queue(
        &mut self,
        base: u16,
        available: u64,
        kick: &EventFd,
    ) -> Result<(), vhost::Error> {
        let user = |gpa: u64| gpa - RAM + USER_RAM;
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user(DESC),
            used_ring_addr: user(USED),
            avail_ring_addr: user(available),
            log_addr: None,
        };
        self.frontend.set_vring_num(0, QUEUE_SIZE)?;
        self.frontend.set_vring_base(0, base)?;
        self.frontend.set_vring_addr(0, &addresses)?;
        self.frontend.set_vring_kick(0, kick)?;
        self.frontend.set_vring_call(0, &self.driver.call)?;
        self.frontend.set_vring_enable(0, true)
    }

    /// Takes the memory away that was shared.
    pub(crate) fn shrink_memory(&self) {
        self.shrink_memory_to(0);
    }

    /// Takes the end of it away.
    pub(crate) fn shrink_memory_to(&self, len: u64) {
        self.mapper.ram.lock().unwrap().as_ref().unwrap().set_len(len).unwrap();
    }

    /// Stops the queue, and returns where.
    pub(crate) fn stop_queue(&mut self) -> u32 {
        self.frontend.set_vring_enable(0, false).unwrap();
        self.frontend.get_vring_base(0).unwrap()
    }

    /// Resets the device as QEMU does: the mappings are gone.
    pub(crate) fn reset(&mut self) {
        self.stop_queue();
        self.mapper.maps.lock().unwrap().clear();
    }

    /// The configuration space.
    pub(crate) fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, vhost::Error> {
        let buffer = vec![0xaa; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(offset, len, flags, &buffer).map(|(_, bytes)| bytes)
    }

    /// Stores `bytes` at `offset` of the device, as the guest would: through the mapping.
    pub(crate) fn store(&self, offset: u64, bytes: &[u8]) {
        self.at(offset, bytes.len(), |slice| slice.copy_from(bytes));
    }

    /// Loads `bytes` from `offset` of the device, as the guest would.
    pub(crate) fn load(&self, offset: u64, bytes: &mut [u8]) {
        self.at(offset, bytes.len(), |slice| {
            slice.copy_to(bytes);
        });
    }

    fn at(&self, offset: u64, len: usize, act: impl FnOnce(VolatileSlice<'_>)) {
        let maps = self.mapper.maps.lock().unwrap();
        let map = maps
            .iter()
            .find(|map| map.offset <= offset && offset < map.offset + map.len)
            .expect("the guest's access goes nowhere");
        let at = usize::try_from(offset - map.offset).unwrap();
        act(map.region.as_volatile_slice().subslice(at, len).unwrap());
    }
}
