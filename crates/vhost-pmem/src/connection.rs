// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A frontend's connection: vhost-user requests and queue events.
//!
//! Two threads meet here. The *request* thread runs the vhost-user callbacks, the *queue* thread
//! [`Connection::serve`]. The queue thread waits for the frontend while it maps, and the frontend
//! may have sent a request meanwhile and wait for its reply: so nothing that the queue thread
//! holds while it maps is ever taken by a callback.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::channel::Channel;
use crate::device::Device;
use crate::exit_event::ExitEvent;
use crate::gpa::GpaWindow;
use crate::guest_memory::GuestMemory;
use crate::mapping::{MapError, MapState, Mapping};
use crate::negotiation::{GPA_PROTOCOL_FEATURES, Negotiation, PROTOCOL_FEATURES, Refusal};
use crate::page_structs;
use crate::poll::Polling;
use crate::queue::{self, Batch};
use crate::request::Unanswerable;
use crate::vring::{LibraryMemory, Vring};

/// The most that virtio knows (2.7). crosvm offers it; Linux has at most one flush a device in flight
/// since 2026, older kernels as many as the queue holds.
pub(crate) const QUEUE_SIZE_MAX: usize = 32768;

/// How often to look for requests before others may run, which takes longer than a look.
const LOOKS: u32 = 32;

/// The queue thread's event for a store that is to go; the numbers below are the library's.
pub(crate) const REVOKED: u64 = 2;
/// Its event for a further frontend, which waits until this one has gone.
pub(crate) const OTHER_WAITS: u64 = 3;

pub(crate) struct Connection {
    device: Arc<Device>,
    memory: GuestMemory,
    negotiation: Mutex<Negotiation>,
    mapping: MapState,
    /// Where the VMM maps the window by itself, and whether it has.
    gpa: Option<Arc<GpaWindow>>,
    refused: Mutex<Option<Refusal>>,
    /// Whether a memory table came.
    has_told_ram: AtomicBool,
    exit: ExitEvent,
    closed: Arc<AtomicBool>,
    /// Present once the frontend is connected.
    hang_up: OnceLock<ShutdownHandle>,
    /// Present once the queue has been looked at.
    vring: OnceLock<Vring>,
    polling: Polling,
    /// What the queue thread sleeps on until its next turn; notified when there is no need to.
    turn: (Mutex<()>, Condvar),
}

impl Connection {
    pub(crate) fn new(device: Arc<Device>) -> io::Result<Self> {
        let gpa = device.gpa().map(|start| Arc::new(GpaWindow::new(start)));
        Ok(Self {
            polling: Polling::new(device.polling()),
            device,
            memory: GuestMemory::default(),
            negotiation: Mutex::new(Negotiation::new(gpa.is_some())),
            gpa,
            mapping: MapState::new()?,
            refused: Mutex::default(),
            has_told_ram: AtomicBool::new(false),
            exit: ExitEvent::new()?,
            closed: Arc::default(),
            hang_up: OnceLock::new(),
            vring: OnceLock::new(),
            turn: Default::default(),
        })
    }

    /// What to hang up with, should the frontend prove unbearable.
    pub(crate) fn set_hang_up(&self, handle: Option<ShutdownHandle>) {
        let Some(handle) = handle else { return };
        // There is one connection, so it is set once.
        let _ = self.hang_up.set(handle);
        if self.closed.load(Ordering::SeqCst) {
            // It has proved so already.
            self.hang_up.get().into_iter().for_each(ShutdownHandle::shutdown);
        }
    }

    /// The window that the VMM maps by itself.
    pub(crate) fn gpa(&self) -> Option<Arc<GpaWindow>> {
        self.gpa.clone()
    }

    /// Lets the queue thread go, also from a guest that keeps it busy.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// The event of [`REVOKED`].
    pub(crate) fn revoked_event(&self) -> RawFd {
        self.mapping.revoked_event()
    }

    /// A store is to go: takes its pages back from the guest.
    fn take_back(&self) {
        let kept = self.mapping.take_back();
        self.device.health().unmapped(Arc::new(MapError::TakenBack));
        self.device.counters().set_mapped(0);
        if kept.is_empty() {
            warn!("a store was disabled; its pages were taken from the guest, whose flushes fail");
        } else {
            warn!(?kept, "stores were disabled, and the frontend would not unmap their pages");
        }
    }

    /// The device was stopped: what is mapped is forgotten, and requests that were taken are
    /// answered before the frontend learns where we stopped.
    fn stop(&self) {
        self.mapping.forget();
        self.device.counters().set_mapped(0);
        self.wake();
        drop(self.device.quiesce());
        self.device.health().reset();
    }

    fn negotiation(&self) -> MutexGuard<'_, Negotiation> {
        self.negotiation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once a connection why its guest gets no pages.
    fn refuse(&self, refusal: Refusal) {
        self.device.health().refused(refusal);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.replace(refusal) != Some(refusal) {
            self.device.log_refusal(refusal);
        }
    }

    /// Has the pages mapped in `activation`. Whether they are.
    fn map(&self, activation: u64) -> bool {
        if self.gpa.is_some() {
            return true;
        }
        let mapper = self.negotiation().mapper();
        let frontend = match mapper {
            Ok(frontend) => frontend,
            Err(refusal) => {
                self.refuse(refusal);
                return false;
            }
        };
        let frontend =
            Channel { frontend, closed: Arc::clone(&self.closed), waiting: self.device.asked() };
        let (region, lend) = (self.device.region(), || self.device.lend());
        match self.mapping.ensure(activation, region, lend, &frontend) {
            Mapping::Kept => true,
            Mapping::Made(took) => {
                let counters = self.device.counters();
                self.device.health().accepted();
                counters.activation(true);
                counters.set_mapped(self.device.region().nr_pages().get());
                // Whoever stopped it, or closed the connection, may have done so before.
                if activation != self.mapping.activation() || self.closed.load(Ordering::SeqCst) {
                    counters.set_mapped(0);
                }
                self.device.log_activation(took);
                true
            }
            Mapping::Refused(error) => {
                if let Some(error) = error {
                    self.device.counters().activation(false);
                    self.device.warn_throttled(
                        "every flush of this guest fails until it resets the device: its pages are not mapped",
                        &error,
                    );
                    self.device.health().unmapped(Arc::new(error));
                    // It may have been stopped before.
                    if activation != self.mapping.activation() {
                        self.device.health().reset();
                    }
                }
                false
            }
        }
    }

    /// Warns of a guest with little RAM, by the first memory table: later ones have what is mapped too.
    fn look_at_ram(&self, memory: &GuestMemoryMmap) {
        if self.has_told_ram.swap(true, Ordering::SeqCst) {
            return;
        }
        let bytes = self.device.region().nr_pages().bytes();
        let window = if self.gpa.is_some() { bytes } else { 0 };
        if let Err(cramped) = page_structs::check(bytes, memory, window) {
            self.device.warn_throttled("the guest has little RAM for this device", &cramped);
        }
    }

    /// Whether the VMM has the window where it is to be, if it maps it by itself.
    fn is_placed(&self) -> bool {
        let Some(window) = &self.gpa else { return true };
        let (is_there, news) = window.look();
        news.into_iter().for_each(|news| self.device.log_placement(window.start(), news));
        is_there
    }

    /// Tells the device whether the queue stands still, as its first request can't be answered.
    fn set_waiting(&self, batch: &Batch) {
        let obstacle = batch.obstacle.filter(|_| batch.requests.is_empty());
        self.device.set_waiting(obstacle.map(|obstacle| (obstacle, batch.waiting)));
        // The connection may have been closed, and this been reset, before.
        if self.closed.load(Ordering::SeqCst) {
            self.device.set_waiting(None);
        }
    }

    /// Tells the device that nothing in the queue can be answered, unless it was stopped.
    fn set_unusable(&self, vring: &Vring) {
        // A stop clears this once it has waited for what is under way.
        let _answering = self.device.quiesce();
        if queue::is_running(vring) && !self.closed.load(Ordering::SeqCst) {
            self.device.health().set_waiting(Some((Unanswerable::Queue, 1)));
        }
    }

    /// The frontend has taken memory away that it had given us.
    fn drop_frontend(&self) {
        if self.closed.load(Ordering::SeqCst) {
            // Another event of its queue came before the connection was closed.
            return;
        }
        self.close();
        self.device.warn_throttled(
            "frontend dropped: it shrank the file that is its guest's memory",
            &io::Error::from(io::ErrorKind::UnexpectedEof),
        );
        if let Some(handle) = self.hang_up.get() {
            handle.shutdown();
        }
    }

    /// Answers what is in the queue, batch by batch, until it is empty or the next request can't
    /// be answered. That one is looked at again with the next kick, or memory table.
    fn serve(&self, vring: &Vring) -> Result<(), QueueError> {
        while !self.closed.load(Ordering::SeqCst) {
            if self.mapping.is_revoked() {
                self.take_back();
            }
            let activation = self.mapping.activation();
            // In this order: who stops it does that first, and then forgets the activation.
            if !queue::is_running(vring) {
                break;
            }
            let mapped = self.map(activation);
            if let Some(limit) = self.device.limit() {
                let wait = limit.wait();
                if !wait.is_zero() && queue::has_requests(vring, &self.memory.table())? {
                    self.device.counters().batch_limited();
                    self.sleep(wait, activation);
                }
            }
            let answering = self.device.quiesce();
            if activation != self.mapping.activation() {
                // Reset meanwhile: what is in the queue now may be of a guest that has nothing
                // mapped yet. A reset from here on waits until this batch is answered.
                continue;
            }
            let memory = self.memory.table();
            if memory.is_broken() {
                break;
            }
            let batch = queue::take(vring, &memory)?;
            self.set_waiting(&batch);
            if batch.requests.is_empty() {
                drop(answering);
                let is_empty = batch.obstacle.is_none();
                if is_empty && self.come_soon(vring)?
                    || queue::wait_for_kick(vring, &memory, &batch)?
                {
                    continue;
                }
                break;
            }
            if let Some(limit) = self.device.limit() {
                limit.take();
            }
            self.polling.came();
            // What a VMM maps by itself it may have taken away while we slept.
            let requests = batch.requests;
            let mapped = mapped && self.is_placed();
            let statuses = self.device.statuses(&requests, mapped);
            let memory = self.memory.table();
            let answered = queue::answer(&memory, &requests, &statuses);
            if memory.is_broken() {
                // A status may have gone nowhere.
                break;
            }
            // What can't be answered any more is met again as an obstacle.
            let answered = &requests[..answered];
            if !answered.is_empty() {
                self.device.counters().batch(answered, &statuses, mapped);
                queue::complete(vring, &memory, answered)?;
            }
            self.polling.answered();
        }
        Ok(())
    }

    /// Sleeps, unless the device is stopped or the connection ends.
    fn sleep(&self, time: Duration, activation: u64) {
        let (sleeping, woken) = &self.turn;
        let goes_on = |(): &mut ()| {
            !self.closed.load(Ordering::SeqCst) && activation == self.mapping.activation()
        };
        let guard = sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        // Only a thread that panicked with the lock makes an error, and there is nothing in it.
        drop(woken.wait_timeout_while(guard, time, goes_on));
    }

    /// Has a queue thread that sleeps look at what has changed.
    fn wake(&self) {
        let (sleeping, woken) = &self.turn;
        // One that has looked before the change is asleep by then.
        drop(sleeping.lock().unwrap_or_else(PoisonError::into_inner));
        woken.notify_all();
    }

    /// Looks for requests for a while, without being kicked. Whether there are some.
    fn come_soon(&self, vring: &Vring) -> Result<bool, QueueError> {
        let patience = self.polling.patience();
        let began = Instant::now();
        let is_wanted = || self.closed.load(Ordering::SeqCst) || self.mapping.is_revoked();
        while began.elapsed() < patience && !is_wanted() {
            let memory = self.memory.table();
            for _ in 0..LOOKS {
                if queue::has_requests(vring, &memory)? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            // Whoever is to run on this processor may be the one who is to bring the request.
            std::thread::yield_now();
        }
        Ok(false)
    }
}

impl VhostUserBackend for Connection {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        self.negotiation().features()
    }

    fn acked_features(&self, features: u64) {
        let mut negotiation = self.negotiation();
        negotiation.set_guest_features(features);
        if !negotiation.is_driver_up() {
            return;
        }
        let refusal = negotiation.refusal();
        drop(negotiation);
        refusal.map_or_else(|| self.device.health().accepted(), |refusal| self.refuse(refusal));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        if self.gpa.is_some() { GPA_PROTOCOL_FEATURES } else { PROTOCOL_FEATURES }
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The vring has it, and nothing else here depends on it.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let refusal = self.negotiation().refusal();
        refusal.into_iter().for_each(|refusal| self.refuse(refusal));
        let bytes = self.device.config().read(offset as usize, size as usize);
        // The library answers with an error where the length isn't what was asked for.
        bytes.unwrap_or_default()
    }

    fn update_memory(&self, memory: LibraryMemory) -> io::Result<()> {
        let memory = memory.memory();
        self.device.cover_own_file(&memory)?;
        if let Some(window) = &self.gpa {
            window.update(self.device.region(), &memory);
        }
        self.look_at_ram(&memory);
        self.memory.replace((*memory).clone())?;
        // Requests that can't be answered may lie in what is shared now.
        self.vring.get().into_iter().for_each(Vring::kick);
        Ok(())
    }

    fn set_backend_req_fd(&self, frontend: Backend) {
        self.negotiation().set_frontend(frontend);
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[self.device.region().nr_pages().bytes()]))
    }

    fn reset_device(&self) {
        self.stop();
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        self.stop();
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.hand_out()
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if u64::from(event) == OTHER_WAITS {
            self.device.log_other_waits();
            return Ok(());
        }
        if u64::from(event) == REVOKED {
            // It may be done already, while the queue was served.
            if self.mapping.is_revoked() {
                self.take_back();
            }
            return Ok(());
        }
        for vring in vrings {
            self.vring.get_or_init(|| vring.clone());
            // An error would end the queue thread, and a guest must not be able to do that.
            if let Err(error) = self.serve(vring) {
                self.device.counters().queue_error();
                self.device.warn_throttled("queue unusable", &error);
                self.set_unusable(vring);
            }
        }
        if self.memory.table().is_broken() {
            self.drop_frontend();
        }
        Ok(())
    }
}
