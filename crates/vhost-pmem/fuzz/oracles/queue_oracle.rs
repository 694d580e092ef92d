// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second, plain reading of the request queue, to hold the first one against: virtio 1.3, sections
//! 2.7 and 5.19.

use std::fs::File;
use std::io::Read;

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use crate::queue;
use crate::request::Unanswerable;
use crate::spec::{RequestType, Status};
use crate::vring::Vring;

/// Memory is two pieces with a hole between them, and none behind the second.
const PIECES: [(u64, usize); 2] = [(0x1000, 0x1000), (0x3000, 0x800)];
const END: usize = 0x4000;
const DESC: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Any bytes, taken for what a driver has made of its memory: the device finds the same requests as
/// the model, answers them as the model does, stops where the model does, and changes no other
/// byte.
pub(crate) fn check(data: &[u8]) {
    let [setup, first, data @ ..] = data else { return };
    let size = 4 << (setup & 3);
    let event_idx = setup & 4 != 0;
    // Now and then memory ends in the midst of a ring.
    let avail = if setup & 8 == 0 { 0x1400 } else { 0x37f8 };
    let used = if setup & 16 == 0 { 0x1600 } else { 0x37f4 };
    let flushed = if setup & 32 == 0 { 0 } else { -1i32 };

    let pieces = PIECES.map(|(start, len)| (GuestAddress(start), len));
    let memory = GuestMemoryMmap::<()>::from_ranges(&pieces).unwrap();
    let (front, behind) = data.split_at(data.len().min(PIECES[0].1));
    memory.write_slice(front, pieces[0].0).unwrap();
    memory.write_slice(&behind[..behind.len().min(PIECES[1].1)], pieces[1].0).unwrap();

    // Where the driver has seen the last answer; the frontend's base says otherwise.
    let next = u16::from(*first);
    memory.write_slice(&next.to_le_bytes(), GuestAddress(used + 2)).unwrap();
    let bytes_now = bytes(&memory);
    let mut model = Model { bytes: bytes_now, size, event_idx, avail, used, next, num_added: 0 };
    let vring = Vring::new(GuestMemoryAtomic::new(memory.clone()), 1 << 15).unwrap();
    vring.set_queue_size(size);
    vring.set_queue_info(DESC, avail, used).unwrap();
    vring.set_queue_next_avail(next.wrapping_add(1));
    vring.set_queue_event_idx(event_idx);
    vring.set_queue_ready(true);
    let call = File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    vring.set_call(Some(call.try_clone().unwrap()));

    // An answer may be written over the ring, and make more requests.
    for _ in 0..4 {
        let batch = queue::take(&vring, &memory).ok();
        let expected = model.take();
        assert_eq!(bytes(&memory), model.bytes, "after taking {batch:?}");
        assert_eq!(batch.is_some(), expected.is_some(), "{batch:?}, not {expected:?}");
        let (Some(batch), Some(expected)) = (batch, expected) else { return };
        let requests = &batch.requests;
        let found: Vec<_> = requests.iter().map(|one| (one.head(), one.kind().ok())).collect();
        let wanted: Vec<_> = expected.requests.iter().map(|one| (one.head, one.kind())).collect();
        assert_eq!(found, wanted);
        assert_eq!((batch.obstacle, batch.waiting), (expected.obstacle, expected.waiting));
        if requests.is_empty() {
            let asked = queue::wait_for_kick(&vring, &memory, &batch).ok();
            assert_eq!(asked, model.wait_for_kick(expected.available));
            assert_eq!(bytes(&memory), model.bytes, "after waiting for a kick");
            return;
        }
        let status = |kind| match kind {
            Ok(RequestType::Flush) if flushed == 0 => Status::Success,
            _ => Status::Failure,
        };
        let statuses: Vec<_> = requests.iter().map(|request| status(request.kind())).collect();
        assert_eq!(queue::answer(&memory, requests, &statuses), requests.len());
        let is_good = queue::complete(&vring, &memory, requests).is_ok();
        let (expected_good, called) = model.complete(&expected.requests, flushed);
        assert_eq!(bytes(&memory), model.bytes, "after answering {expected:?}");
        assert_eq!((is_good, (&call).read(&mut [0; 8]).is_ok()), (expected_good, called));
        if !is_good {
            return;
        }
    }
}

/// Memory byte by byte; `None` where there is none.
type Memory = Vec<Option<u8>>;

fn bytes(memory: &GuestMemoryMmap) -> Memory {
    let mut all = vec![None; END];
    for (start, len) in PIECES {
        let mut piece = vec![0; len];
        memory.read_slice(&mut piece, GuestAddress(start)).unwrap();
        for (at, byte) in (start..).zip(piece) {
            all[usize::try_from(at).unwrap()] = Some(byte);
        }
    }
    all
}

/// The descriptors of a chain, each as address, length, and whether it is writable; and whether the
/// chain has an end.
type Chain = (Vec<(u64, u32, bool)>, bool);

/// A request as the model reads it.
#[derive(Debug)]
struct Expected {
    head: u16,
    /// Its type; none if it is malformed.
    number: Option<u32>,
    /// Where the status goes: there is memory.
    status: [u64; 4],
}

impl Expected {
    fn kind(&self) -> Option<RequestType> {
        self.number.map(|number| RequestType::from_le_bytes(number.to_le_bytes()))
    }
}

/// What the model finds in the queue.
#[derive(Debug, Default)]
struct Found {
    requests: Vec<Expected>,
    /// What the first of those that wait waits for, and how many there are.
    obstacle: Option<Unanswerable>,
    waiting: u16,
    available: u16,
}

struct Model {
    bytes: Memory,
    size: u16,
    event_idx: bool,
    avail: u64,
    used: u64,
    /// The first request that was not answered.
    next: u16,
    /// Answers since the driver was last considered for a call.
    num_added: u16,
}

impl Model {
    fn byte(&self, at: u64) -> Option<u8> {
        *self.bytes.get(usize::try_from(at).ok()?)?
    }

    fn read<const LEN: usize>(&self, at: u64) -> Option<[u8; LEN]> {
        let mut bytes = [0; LEN];
        for (offset, byte) in (0..).zip(&mut bytes) {
            *byte = self.byte(at.checked_add(offset)?)?;
        }
        Some(bytes)
    }

    fn read_u16(&self, at: u64) -> Option<u16> {
        self.read(at).map(u16::from_le_bytes)
    }

    /// All of it, or none.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Option<()> {
        let places = at..at + bytes.len() as u64;
        if places.clone().any(|at| self.byte(at).is_none()) {
            return None;
        }
        for (at, byte) in places.zip(bytes) {
            self.bytes[usize::try_from(at).unwrap()] = Some(*byte);
        }
        Some(())
    }

    /// What is in the queue (2.7.6); none if it is of no use.
    fn take(&mut self) -> Option<Found> {
        if !self.event_idx {
            // VIRTQ_USED_F_NO_NOTIFY
            self.write(self.used, &[1, 0])?;
        }
        let available = self.read_u16(self.avail + 2)?;
        let all = available.wrapping_sub(self.next);
        if all > self.size {
            return None;
        }
        let mut found = Found { available, ..Found::default() };
        for index in 0..all {
            let slot = u64::from(self.next.wrapping_add(index) % self.size);
            let head = self.read_u16(self.avail + 4 + 2 * slot).ok_or(Unanswerable::Unshared);
            match head.and_then(|head| self.request(head)) {
                Ok(request) => found.requests.push(request),
                Err(obstacle) => {
                    (found.obstacle, found.waiting) = (Some(obstacle), all - index);
                    break;
                }
            }
        }
        Some(found)
    }

    fn request(&self, head: u16) -> Result<Expected, Unanswerable> {
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        let (mut seen_writable, mut in_order) = (false, true);
        let (descriptors, is_whole) = self.chain(head)?;
        for (address, len, is_write) in descriptors {
            seen_writable |= is_write;
            in_order &= is_write || !seen_writable;
            let places = if is_write { &mut writable } else { &mut readable };
            // The first four count. Past the last address there is no memory.
            let place = |offset: u32| address.saturating_add(offset.into());
            places.extend((0..len.min(4)).map(place));
        }
        let is_memory = |places: &[u64]| places.iter().all(|at| self.byte(*at).is_some());
        let status: [u64; 4] = writable.get(..4).ok_or(Unanswerable::NoRoom)?.try_into().unwrap();
        if !is_memory(&status) {
            return Err(Unanswerable::Unshared);
        }
        let number = readable.get(..4).filter(|places| is_whole && in_order && is_memory(places));
        let number = number.map(|places| {
            let byte = |index: usize| self.byte(places[index]).unwrap();
            u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
        });
        Ok(Expected { head, number, status })
    }

    /// Reads a chain (2.7.5). Where a descriptor isn't in memory, nothing is known of it.
    fn chain(&self, head: u16) -> Result<Chain, Unanswerable> {
        let mut descriptors = Vec::new();
        let (mut table, mut count, mut index) = (DESC, self.size, head);
        let mut left = count;
        let mut is_indirect = false;
        let mut total = 0u32;
        loop {
            if index >= count || left == 0 {
                return Ok((descriptors, false));
            }
            let place = table.checked_add(16 * u64::from(index));
            let bytes = place.and_then(|place| self.read::<16>(place));
            let bytes = bytes.ok_or(Unanswerable::Unshared)?;
            let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            let next = u16::from_le_bytes([bytes[14], bytes[15]]);
            if flags & INDIRECT != 0 {
                // One level, of whole descriptors (2.7.5.3).
                let Some(indirect) = u16::try_from(len / 16).ok().filter(|_| len % 16 == 0) else {
                    return Ok((descriptors, false));
                };
                if is_indirect {
                    return Ok((descriptors, false));
                }
                (table, count, index, left, is_indirect) = (address, indirect, 0, indirect, true);
                continue;
            }
            let Some(sum) = total.checked_add(len) else {
                return Ok((descriptors, false));
            };
            total = sum;
            descriptors.push((address, len, flags & WRITE != 0));
            if flags & NEXT == 0 {
                return Ok((descriptors, true));
            }
            index = next;
            left -= 1;
        }
    }

    /// Answers, and tells whether all could be returned, and whether the driver was called (2.7.7).
    fn complete(&mut self, requests: &[Expected], flushed: i32) -> (bool, bool) {
        // All statuses are there before the first request is returned.
        for request in requests {
            let status = if request.number == Some(0) { flushed } else { -1 };
            for (at, byte) in request.status.into_iter().zip(status.to_le_bytes()) {
                self.write(at, &[byte]).unwrap();
            }
        }
        let all = requests.iter().all(|request| self.answer(request.head).is_some());
        if !self.event_idx {
            // VIRTQ_AVAIL_F_NO_INTERRUPT
            let is_unwanted = self.read_u16(self.avail).is_some_and(|flags| flags & 1 != 0);
            return (all, !is_unwanted);
        }
        let Some(event) = self.read_u16(self.avail + 4 + 2 * u64::from(self.size)) else {
            return (false, false);
        };
        let since = self.next.wrapping_sub(event).wrapping_sub(1);
        let is_wanted = since < std::mem::take(&mut self.num_added);
        (all, is_wanted)
    }

    /// Returns a request; it stays where that can't be written.
    fn answer(&mut self, head: u16) -> Option<()> {
        let slot = u64::from(self.next % self.size);
        let element = [u32::from(head).to_le_bytes(), 4u32.to_le_bytes()].concat();
        self.write(self.used + 4 + 8 * slot, &element)?;
        let next = self.next.wrapping_add(1);
        self.num_added = self.num_added.wrapping_add(1);
        self.write(self.used + 2, &next.to_le_bytes())?;
        self.next = next;
        Some(())
    }

    /// Whether there are more requests than were seen (2.7.10).
    fn wait_for_kick(&mut self, seen: u16) -> Option<bool> {
        if self.event_idx {
            let event = self.used + 4 + 8 * u64::from(self.size);
            self.write(event, &seen.to_le_bytes())?;
        } else {
            self.write(self.used, &[0, 0])?;
        }
        Some(self.read_u16(self.avail + 2)? != seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A descriptor that is likely to mean something.
    fn descriptor() -> impl Strategy<Value = Vec<u8>> {
        let address = prop_oneof![
            6 => 0x1800u64..0x1840,
            2 => 0x1000u64..0x1700,
            1 => prop_oneof![Just(0x1ffeu64), Just(0x37fe), Just(0x2ffe), Just(u64::MAX - 1)],
            1 => any::<u64>(),
        ];
        let len = prop_oneof![8 => 0u32..9, 2 => Just(16u32), 2 => Just(64), 1 => any::<u32>()];
        let flags = prop_oneof![8 => 0u16..4, 1 => 0u16..8];
        let next = prop_oneof![8 => 0u16..6, 1 => any::<u16>()];
        (address, len, flags, next).prop_map(|(address, len, flags, next)| {
            let words = [len.to_le_bytes().to_vec(), flags.to_le_bytes().to_vec()].concat();
            [address.to_le_bytes().to_vec(), words, next.to_le_bytes().to_vec()].concat()
        })
    }

    proptest! {
        #[test]
        fn any_memory_is_answered_as_by_the_oracle(
            setup in any::<u8>(),
            first in 0u8..8,
            table in proptest::collection::vec(descriptor(), 32),
            ahead in 0u8..10,
            heads in proptest::collection::vec(prop_oneof![8 => 0u16..8, 1 => any::<u16>()], 40),
            buffers in proptest::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 64),
        ) {
            let mut memory = vec![0; 0x1800];
            memory[..512].copy_from_slice(&table.concat());
            let heads: Vec<u8> = heads.into_iter().flat_map(u16::to_le_bytes).collect();
            for avail in [0x400, 0x17f8] {
                memory[avail + 2] = first.wrapping_add(ahead);
                let room = heads.len().min(memory.len() - avail - 4);
                memory[avail + 4..avail + 4 + room].copy_from_slice(&heads[..room]);
            }
            memory[0x800..0x840].copy_from_slice(&buffers);
            check(&[vec![setup, first], memory].concat());
        }
    }

    #[test]
    fn seeds_are_answered_as_by_the_oracle() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/queue");
        let mut count = 0;
        for seed in std::fs::read_dir(seeds).unwrap() {
            check(&std::fs::read(seed.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0);
    }
}
