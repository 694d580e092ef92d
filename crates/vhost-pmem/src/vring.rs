// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue's vring, with fds that a frontend gave and may have meant ill by.
//!
//! Both the queue's thread and the request thread take the vring's lock. A kick that blocks while it
//! is read, or a call that blocks while it is written, would hold both up, and every frontend after
//! this one. The library's own vring reads and writes whatever it is given, so only eventfds get that
//! far, and those never block.
//!
//! A ring starts at its used index, whatever base the frontend names. cloud-hypervisor, when it
//! reconnects, names the available index, and the requests between the two would never be answered.
//! Requests are answered in order, and a flush may be repeated, so the used index is always right.

use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tracing::warn;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::throttle::Throttle;

/// The library's view of the guest's memory. Only the used index is read through it, where a ring
/// starts.
pub(crate) type LibraryMemory = GuestMemoryAtomic<GuestMemoryMmap>;
type State = VringState<LibraryMemory>;

/// Limits what frontends that come again and again can have logged.
static REFUSALS: LazyLock<Throttle> = LazyLock::new(Throttle::of_frontends);

/// The queue's vring.
#[derive(Clone)]
pub(crate) struct Vring {
    inner: VringMutex<LibraryMemory>,
    memory: LibraryMemory,
    /// Never held while `inner` is locked by the same thread, nor the other way round.
    fds: Arc<Mutex<Fds>>,
}

#[derive(Default)]
struct Fds {
    kick: Option<File>,
    call: Option<File>,
    /// The frontend gave what can't be used, and is to be dropped.
    refused: bool,
}

impl Vring {
    fn fds(&self) -> MutexGuard<'_, Fds> {
        self.fds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the driver that requests were answered. Where it can't be told, that is the frontend's
    /// loss.
    pub(crate) fn call(&self) {
        self.fds().call.iter().for_each(raise);
    }

    /// Wakes the queue's thread, as a kick of the driver's does.
    pub(crate) fn kick(&self) {
        self.fds().kick.iter().for_each(raise);
    }

    /// Sets the ring to start where the driver has seen the last answer. A ring without addresses,
    /// or outside memory, stays where it is: it can't be read from either.
    fn start_at_used(&self, queue: &mut Queue) {
        if let Ok(used) = queue.used_idx(&*self.memory.memory(), Ordering::Acquire) {
            queue.set_next_used(used.0);
            queue.set_next_avail(used.0);
        }
    }

    /// Whether the queue's thread listens to the kick.
    fn is_listening(&self) -> bool {
        let state = self.inner.get_ref();
        state.get_queue().ready() && state.is_enabled() && state.get_kick().is_some()
    }

    /// Has the library drop the frontend: its queue gets a kick that nobody can listen to, and once
    /// the library tries to it tells the frontend so, and hangs up.
    fn refuse(&self, why: &'static str) {
        {
            let mut fds = self.fds();
            fds.kick = None;
            if !std::mem::replace(&mut fds.refused, true) {
                if let Some(suppressed) = REFUSALS.admit() {
                    let suppressed = NonZeroU64::new(suppressed);
                    warn!(suppressed, "the frontend's queue is of no use: {why}");
                }
            }
        }
        let deaf = memfd_create("deaf", MemfdFlags::CLOEXEC).ok();
        self.inner.set_queue_ready(false);
        self.inner.set_kick(deaf.map(File::from));
    }
}

/// Raises an eventfd, without waiting for one that is full: that wakes its reader as it is.
fn raise(file: &File) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&now)) == Ok(1) {
        let _ = (&mut &*file).write_all(&1u64.to_ne_bytes());
    }
}

/// Whether `file` is an eventfd, or as good as one: nothing else is too short to be read at four bytes.
fn is_eventfd(file: &File) -> bool {
    read_now(file, &mut [0; 4]) == Err(Errno::INVAL)
}

/// Reads what is there, and doesn't wait, however the frontend has set up the fd.
pub(crate) fn read_now(file: &File, bytes: &mut [u8]) -> Result<usize, Errno> {
    preadv2(file, &mut [IoSliceMut::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT)
}

impl<'a> VringStateGuard<'a, LibraryMemory> for Vring {
    type G = MutexGuard<'a, State>;
}

impl<'a> VringStateMutGuard<'a, LibraryMemory> for Vring {
    type G = MutexGuard<'a, State>;
}

impl VringT<LibraryMemory> for Vring {
    fn new(memory: LibraryMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        let inner = VringMutex::new(memory.clone(), max_queue_size)?;
        Ok(Self { inner, memory, fds: Arc::default() })
    }

    fn set_kick(&self, file: Option<File>) {
        if self.fds().refused {
            return self.refuse("");
        }
        // The old one would be listened to still, and the new one not.
        if self.is_listening() {
            return self.refuse("its kick was changed while it ran");
        }
        let Some(file) = file else {
            self.fds().kick = None;
            return self.inner.set_kick(None);
        };
        match file.try_clone() {
            Ok(kick) if is_eventfd(&kick) => {
                self.fds().kick = Some(kick);
                self.inner.set_kick(Some(file));
            }
            _ => self.refuse("its kick is not an eventfd"),
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        if let Some(kick) = &self.fds().kick {
            // That somebody else has read it meanwhile is no reason not to look.
            let _ = read_now(kick, &mut [0; 8]);
        }
        Ok(self.inner.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        if file.as_ref().is_none_or(is_eventfd) {
            self.fds().call = file;
        } else {
            self.refuse("its call is not an eventfd");
        }
    }

    fn set_err(&self, _file: Option<File>) {
        // Nobody writes to it.
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.call();
        Ok(())
    }

    fn get_ref(&self) -> MutexGuard<'_, State> {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, State> {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), QueueError> {
        {
            // At once: the queue's thread must not meet the new ring with the old one's indices.
            let mut state = self.inner.get_mut();
            let queue = state.get_queue_mut();
            queue.try_set_desc_table_address(GuestAddress(table))?;
            queue.try_set_avail_ring_address(GuestAddress(available))?;
            queue.try_set_used_ring_address(GuestAddress(used))?;
            self.start_at_used(queue);
        }
        // A driver doesn't repeat a kick that came before the addresses.
        if self.is_listening() {
            self.kick();
        }
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, _base: u16) {
        // The ring starts at its used index.
    }

    fn set_queue_next_used(&self, _index: u16) {
        // It was read with the addresses, and answers may have been given since.
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.inner.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        let mut state = self.inner.get_mut();
        let queue = state.get_queue_mut();
        if ready {
            self.start_at_used(queue);
        }
        queue.set_ready(ready);
    }
}
