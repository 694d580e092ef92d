// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request queue: batches out, answers in.

use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::request::Request;
use crate::spec::Status;
use crate::vring::Vring;

/// Whether the frontend has the queue run.
pub(crate) fn is_running(vring: &Vring) -> bool {
    let state = vring.get_ref();
    state.get_queue().ready() && state.is_enabled()
}

/// Takes the requests that are available now, at most a queue full: a guest that keeps adding
/// requests can't keep a batch from being fixed. None from a queue that is stopped.
pub(crate) fn take(vring: &Vring, memory: &GuestMemoryMmap) -> Result<Vec<Request>, QueueError> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    if !queue.ready() {
        return Ok(Vec::new());
    }
    queue.disable_notification(memory)?;
    let limit = queue.size();
    let available = queue.avail_idx(memory, Ordering::Acquire)?.0;
    let chains = queue.iter(memory)?;
    let batch: Vec<_> = chains.take(limit.into()).map(Request::parse).collect();
    if batch.is_empty() && queue.next_avail() != available {
        // The ring goes on where memory has ended. Whoever tried again would do so for ever.
        let ring = GuestAddress(queue.avail_ring());
        return Err(QueueError::GuestMemory(GuestMemoryError::InvalidGuestAddress(ring)));
    }
    Ok(batch)
}

/// Whether there are requests that were not taken. Of a queue that is stopped there are none.
pub(crate) fn has_requests(vring: &Vring, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
    let state = vring.get_ref();
    let queue = state.get_queue();
    if !queue.ready() {
        return Ok(false);
    }
    let available = queue.avail_idx(memory, Ordering::Acquire)?;
    Ok(available.0 != queue.next_avail())
}

/// Asks the driver to kick again. `true` if requests came meanwhile, for which it won't.
pub(crate) fn wait_for_kick(vring: &Vring, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    Ok(queue.ready() && queue.enable_notification(memory)?)
}

/// Answers a batch and notifies the driver once, if it wants to know.
pub(crate) fn complete(
    vring: &Vring,
    memory: &GuestMemoryMmap,
    batch: impl IntoIterator<Item = (Request, Status)>,
) -> Result<(), QueueError> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    let mut result = Ok(());
    for (request, status) in batch {
        let len = request.answer(memory, status);
        // A head that isn't in the table can't be returned; those behind it can.
        result = result.and(queue.add_used(memory, request.head(), len));
    }
    // In this order: the first one sees to it that the answers are there before the flag is read.
    let is_wanted = queue.needs_notification(memory)? && !wants_no_call(queue, memory);
    drop(state);
    if is_wanted {
        vring.call();
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
