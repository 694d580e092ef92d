// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request queue: batches out, answers in.
//!
//! Requests are answered in order, and none is returned without a status. Where one can't be
//! answered the queue stands still: neither it nor any after it is consumed, so that the next look
//! begins with it. `next_avail` is `next_used` at all times but while the ring is read.

use std::sync::atomic::Ordering;

use vhost_user_backend::VringT;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::request::{Request, Unanswerable};
use crate::spec::Status;
use crate::vring::Vring;

/// Whether the frontend has the queue run.
pub(crate) fn is_running(vring: &Vring) -> bool {
    let state = vring.get_ref();
    is_ready(state.get_queue()) && state.is_enabled()
}

/// Whether the queue is started, and where it is known. Linux puts no ring at address 0.
fn is_ready(queue: &Queue) -> bool {
    queue.ready() && queue.avail_ring() != 0
}

/// What was found in the queue.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// What is to be answered, in order.
    pub(crate) requests: Vec<Request>,
    /// Why the next request after these can't be answered, if it can't.
    pub(crate) obstacle: Option<Unanswerable>,
    /// How many requests wait for that.
    pub(crate) waiting: u16,
    /// The available index that it is known up to.
    seen: u16,
}

/// Reads the requests that are available now, at most a queue full: a guest that keeps adding
/// requests can't keep a batch from being fixed. None from a queue that is stopped.
pub(crate) fn take(vring: &Vring, memory: &GuestMemoryMmap) -> Result<Batch, QueueError> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    if !is_ready(queue) {
        return Ok(Batch::default());
    }
    queue.disable_notification(memory)?;
    let (table, size) = (GuestAddress(queue.desc_table()), queue.size());
    let first = queue.next_avail();
    let seen = queue.avail_idx(memory, Ordering::Acquire)?.0;
    let mut batch = Batch { seen, ..Batch::default() };
    for chain in queue.iter(memory)?.take(size.into()) {
        match Request::parse(memory, table, size, chain.head_index()) {
            Ok(request) => batch.requests.push(request),
            Err(obstacle) => {
                batch.obstacle = Some(obstacle);
                break;
            }
        }
    }
    // Consumed when they are answered.
    queue.set_next_avail(first);
    let taken = u16::try_from(batch.requests.len()).unwrap_or(size);
    let left = seen.wrapping_sub(first).saturating_sub(taken);
    if left > 0 && taken < size {
        // Without an obstacle the ring itself goes on where memory has ended.
        batch.obstacle.get_or_insert(Unanswerable::Unshared);
        batch.waiting = left;
    }
    Ok(batch)
}

/// Whether there are requests that were not answered. Of a queue that is stopped there are none.
pub(crate) fn has_requests(vring: &Vring, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
    let state = vring.get_ref();
    let queue = state.get_queue();
    if !is_ready(queue) {
        return Ok(false);
    }
    let available = queue.avail_idx(memory, Ordering::Acquire)?;
    Ok(available.0 != queue.next_avail())
}

/// Asks the driver to kick when it adds to what was `seen`. `true` if it has done so already, for
/// which it won't.
pub(crate) fn wait_for_kick(
    vring: &Vring,
    memory: &GuestMemoryMmap,
    seen: &Batch,
) -> Result<bool, QueueError> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    if !is_ready(queue) {
        return Ok(false);
    }
    // The library asks for a kick for what comes after `next_avail`.
    let first = queue.next_avail();
    queue.set_next_avail(seen.seen);
    let has_more = queue.enable_notification(memory);
    queue.set_next_avail(first);
    has_more
}

/// Writes the statuses of a batch, in order, up to the first one that can't be written. How many
/// were.
pub(crate) fn answer(memory: &GuestMemoryMmap, requests: &[Request], statuses: &[Status]) -> usize {
    let answers = requests.iter().zip(statuses);
    answers.take_while(|(request, status)| request.answer(memory, **status).is_ok()).count()
}

/// Returns what was answered and notifies the driver once, if it wants to know.
pub(crate) fn complete(
    vring: &Vring,
    memory: &GuestMemoryMmap,
    answered: &[Request],
) -> Result<(), QueueError> {
    let mut state = vring.get_mut();
    let queue = state.get_queue_mut();
    let result = answered.iter().try_for_each(|request| {
        let next = queue.next_used();
        let added = queue.add_used(memory, request.head(), Status::LEN);
        if added.is_err() {
            // It may have been counted before its index could not be written.
            queue.set_next_used(next);
        }
        added
    });
    queue.set_next_avail(queue.next_used());
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
