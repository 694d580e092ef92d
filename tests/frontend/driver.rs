// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side of the queue, as Linux plays it.

use std::io::ErrorKind;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::patience;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub(crate) const QUEUE_SIZE: u16 = 128;
pub(crate) const RAM: u64 = 0x10_0000;
pub(crate) const RAM_SIZE: u64 = 0x10_0000;
pub(crate) const DESC: u64 = RAM;
pub(crate) const AVAIL: u64 = RAM + 0x1000;
pub(crate) const USED: u64 = RAM + 0x2000;
/// Where requests and responses may lie.
pub(crate) const BUFFERS: u64 = RAM + 0x4000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// How long a device may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A descriptor: address, length, flags, and the next one counted from the chain's first.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// A virtqueue's driver.
pub(crate) struct Driver {
    memory: GuestMemoryMmap,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    event_idx: bool,
    /// The next free descriptor; used ones are reused in turn.
    free: u16,
    avail: u16,
    used: u16,
}

impl Driver {
    pub(crate) fn new(memory: GuestMemoryMmap, event_idx: bool) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let (kick, call) = (eventfd(), eventfd());
        let mut driver = Self { memory, kick, call, event_idx, free: 0, avail: 0, used: 0 };
        driver.restart();
        driver
    }

    /// Sets its queue up again, empty.
    pub(crate) fn restart(&mut self) {
        (self.free, self.avail, self.used) = (0, 0, 0);
        for ring in [AVAIL, USED] {
            self.memory.write_slice(&[0; 0x1000], GuestAddress(ring)).unwrap();
        }
    }

    fn read(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn write(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read_u32(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub(crate) fn write_u32(&self, address: u64, value: u32) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Writes a descriptor where it may belong to an indirect table.
    pub(crate) fn write_descriptor(&self, at: u64, (address, len, flags, next): Descriptor) {
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.write_u32(at + 8, len);
        self.write(at + 12, flags);
        self.write(at + 14, next);
    }

    /// The available index: how many requests there were.
    pub(crate) fn available(&self) -> u16 {
        self.avail
    }

    /// Takes a kick back that no device has seen.
    pub(crate) fn forget_kick(&self) {
        let _ = self.kick.read();
    }

    /// Adds a chain without telling the device, and returns its head.
    pub(crate) fn add(&mut self, chain: &[Descriptor]) -> u16 {
        let head = self.free;
        for (index, &(address, len, flags, next)) in (0..).zip(chain) {
            let at = DESC + 16 * u64::from((head + index) % QUEUE_SIZE);
            let next = if next < QUEUE_SIZE { (head + next) % QUEUE_SIZE } else { next };
            self.write_descriptor(at, (address, len, flags, next));
        }
        self.free = (head + u16::try_from(chain.len()).unwrap()) % QUEUE_SIZE;
        self.add_head(head);
        head
    }

    /// Makes a chain available by its head alone.
    pub(crate) fn add_head(&mut self, head: u16) {
        self.write(AVAIL + 4 + 2 * u64::from(self.avail % QUEUE_SIZE), head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Publishes what was added, and kicks if the device wants that.
    pub(crate) fn publish(&mut self) {
        let old = self.read(AVAIL + 2);
        fence(Ordering::Release);
        self.write(AVAIL + 2, self.avail);
        // virtio 2.7.13.4.1: write idx, then read what suppresses the notification.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let avail_event = self.read(USED + 4 + 8 * u64::from(QUEUE_SIZE));
            let passed = self.avail.wrapping_sub(avail_event).wrapping_sub(1);
            passed < self.avail.wrapping_sub(old)
        } else {
            self.read(USED) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Claims an available index that the driver never wrote.
    pub(crate) fn publish_bogus_index(&mut self, index: u16) {
        self.write(AVAIL + 2, index);
        self.kick.write(1).unwrap();
    }

    /// Tells the device whether to call.
    pub(crate) fn want_calls(&self, wanted: bool) {
        self.write(AVAIL, u16::from(!wanted));
    }

    /// How many answers there are that weren't taken.
    pub(crate) fn answers(&self) -> u16 {
        self.read(USED + 2).wrapping_sub(self.used)
    }

    /// The next answer, as head and length, after waiting for the device's call.
    pub(crate) fn answer(&mut self) -> (u32, u32) {
        let deadline = Instant::now() + patience(PATIENCE);
        while self.answers() == 0 {
            if self.event_idx {
                self.write(AVAIL + 4 + 2 * u64::from(QUEUE_SIZE), self.used);
                fence(Ordering::SeqCst);
                if self.answers() != 0 {
                    break;
                }
            }
            // Only the call counts: an answer that is not announced would hang a guest.
            // At first without sleep: whoever reacts at once meets the device before it waits.
            let began = Instant::now();
            while self.call.read().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                assert!(Instant::now() < deadline, "the device did not call");
                if began.elapsed() > Duration::from_millis(1) {
                    thread::sleep(Duration::from_micros(200));
                }
            }
        }
        fence(Ordering::Acquire);
        let element = USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
        self.used = self.used.wrapping_add(1);
        let id = self.memory.read_obj(GuestAddress(element)).unwrap();
        (id, self.memory.read_obj(GuestAddress(element + 4)).unwrap())
    }

    /// Adds a flush whose response is the `slot`th.
    pub(crate) fn add_flush(&mut self, slot: u64) -> u16 {
        let [request, response] = Self::slot(slot);
        self.memory.write_obj(0u32, GuestAddress(request)).unwrap();
        self.memory.write_obj(0x5555_5555u32, GuestAddress(response)).unwrap();
        self.add(&[(request, 4, NEXT, 1), (response, 4, WRITE, 0)])
    }

    /// The status in the `slot`th response.
    pub(crate) fn status(&self, slot: u64) -> i32 {
        self.memory.read_obj(GuestAddress(Self::slot(slot)[1])).unwrap()
    }

    fn slot(slot: u64) -> [u64; 2] {
        [BUFFERS + 16 * slot, BUFFERS + 16 * slot + 8]
    }

    /// One flush, sent and waited for. Its status.
    pub(crate) fn flush(&mut self) -> i32 {
        let head = self.add_flush(0);
        self.publish();
        assert_eq!(self.answer(), (head.into(), 4));
        self.status(0)
    }
}
