// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request queue: batches out, answers in.

use std::sync::atomic::Ordering;

use vhost_user_backend::{VringMutex, VringT};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::request::Request;
use crate::spec::Status;

/// Guest memory as the frontend last described it.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
/// The queue's vring.
pub(crate) type Vring = VringMutex<Memory>;

/// Whether the frontend has the queue run.
pub(crate) fn is_running(vring: &Vring) -> bool {
    let state = vring.get_ref();
    state.get_queue().ready() && state.is_enabled()
}

/// Takes the requests that are available now, at most a queue full: a guest that keeps adding
/// requests can't keep a batch from being fixed. None from a queue that is stopped.
pub(crate) fn take(vring: &Vring, memory: &Memory) -> Result<Vec<Request>, QueueError> {
    let mut state = vring.get_mut();
    if !state.get_queue().ready() {
        return Ok(Vec::new());
    }
    state.disable_notification()?;
    let queue = state.get_queue_mut();
    let limit = queue.size();
    let chains = queue.iter(memory.memory())?;
    Ok(chains.take(limit.into()).map(Request::parse).collect())
}

/// Whether there are requests that were not taken. Of a queue that is stopped there are none.
pub(crate) fn has_requests(vring: &Vring, memory: &Memory) -> Result<bool, QueueError> {
    let state = vring.get_ref();
    let queue = state.get_queue();
    if !queue.ready() {
        return Ok(false);
    }
    let available = queue.avail_idx(&*memory.memory(), Ordering::Acquire)?;
    Ok(available.0 != queue.next_avail())
}

/// Asks the driver to kick again. `true` if requests came meanwhile, for which it won't.
pub(crate) fn wait_for_kick(vring: &Vring) -> Result<bool, QueueError> {
    let mut state = vring.get_mut();
    Ok(state.get_queue().ready() && state.enable_notification()?)
}

/// Answers a batch and notifies the driver once, if it wants to know.
pub(crate) fn complete(
    vring: &Vring,
    memory: &Memory,
    batch: impl IntoIterator<Item = (Request, Status)>,
) -> Result<(), QueueError> {
    let memory = memory.memory();
    let mut state = vring.get_mut();
    let mut result = Ok(());
    for (request, status) in batch {
        let len = request.answer(&*memory, status);
        // A head that isn't in the table can't be returned; those behind it can.
        result = result.and(state.add_used(request.head(), len));
    }
    // In this order: the first one sees to it that the answers are there before the flag is read.
    if state.needs_notification()? && !wants_no_call(state.get_queue(), &memory) {
        // A call eventfd that can't be written is the frontend's loss.
        let _ = state.signal_used_queue();
    }
    result
}

/// Whether a driver without EVENT_IDX looks for answers by itself: virtio 2.7.7.2, which virtio-queue
/// 0.18 leaves to us.
fn wants_no_call(queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    let flags = || memory.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
    !queue.event_idx_enabled()
        && flags()
            .is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
}
