// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request, from descriptor chain to status.

use std::ops::Deref;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use crate::spec::{RequestType, Status};

/// What is wrong with a chain. Such a request fails; it stops nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum Malformed {
    /// It ends in the middle: a loop, or a descriptor that isn't in the table or in memory.
    #[error("chain does not end")]
    Endless,
    /// A readable descriptor behind a writable one (virtio 2.7.4.2).
    #[error("readable descriptor behind a writable one")]
    Order,
    /// Too short for a type.
    #[error("no room for a request type")]
    NoType,
    /// The type lies where no guest memory is.
    #[error("request type outside guest memory")]
    TypeOutsideMemory,
}

/// A request that was taken from the queue and must be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    head: u16,
    kind: Result<RequestType, Malformed>,
    /// Where each byte of the status goes: a driver may split it as it likes (virtio 2.7.4).
    status: Option<[GuestAddress; 4]>,
}

impl Request {
    /// Reads a request; its memory is read here and never again.
    pub(crate) fn parse<M>(chain: DescriptorChain<M>) -> Self
    where
        M: Deref<Target: GuestMemory + Sized>,
        DescriptorChain<M>: Clone,
    {
        let head = chain.head_index();
        let mut readable = Le32::default();
        let mut writable = Le32::default();
        let mut order = Ok(());
        let mut unfinished = true;
        for descriptor in chain.clone() {
            unfinished = descriptor.has_next();
            if descriptor.is_write_only() {
                writable.extend(descriptor);
            } else {
                if writable.any {
                    order = Err(Malformed::Order);
                }
                readable.extend(descriptor);
            }
        }
        let kind = if unfinished {
            Err(Malformed::Endless)
        } else {
            order.and_then(|()| {
                let addresses = readable.finish().ok_or(Malformed::NoType)?;
                let mut bytes = [0; 4];
                for (byte, address) in bytes.iter_mut().zip(addresses) {
                    *byte =
                        chain.memory().read_obj(address).or(Err(Malformed::TypeOutsideMemory))?;
                }
                Ok(RequestType::from_le_bytes(bytes))
            })
        };
        Self { head, kind, status: writable.finish() }
    }

    /// The chain's first descriptor, by which the driver knows it.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// What is asked.
    pub(crate) fn kind(&self) -> Result<RequestType, Malformed> {
        self.kind
    }

    /// Writes the status and returns how many bytes that were: none where the driver left no
    /// room for it, or not all of it is memory.
    pub(crate) fn answer(&self, memory: &impl GuestMemory, status: Status) -> u32 {
        let Some(addresses) = self.status else { return 0 };
        if addresses.iter().any(|address| memory.read_obj::<u8>(*address).is_err()) {
            return 0;
        }
        for (byte, address) in status.to_le_bytes().into_iter().zip(addresses) {
            if memory.write_obj(byte, address).is_err() {
                return 0;
            }
        }
        4
    }
}

/// Where the first four bytes of some descriptors lie.
#[derive(Default)]
struct Le32 {
    addresses: [GuestAddress; 4],
    len: usize,
    /// Whether there was a descriptor at all, if only an empty one.
    any: bool,
}

impl Le32 {
    fn extend(&mut self, descriptor: Descriptor) {
        self.any = true;
        let free = &mut self.addresses[self.len..];
        for (offset, address) in (0..descriptor.len()).zip(free) {
            // Past the end of the address space no memory is found either.
            *address =
                descriptor.addr().checked_add(offset.into()).unwrap_or(GuestAddress::new(!0));
            self.len += 1;
        }
    }

    fn finish(self) -> Option<[GuestAddress; 4]> {
        (self.len == self.addresses.len()).then_some(self.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};
    use vm_memory::GuestMemoryMmap;

    /// VIRTQ_DESC_F_NEXT and VIRTQ_DESC_F_WRITE (virtio 2.7.5).
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const DESC: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    /// Where memory ends.
    const MEMORY: u64 = 0x1_0000;

    /// A chain of `(address, length, flags, next)`; memory from 0x4000 on is zero.
    fn parse(descriptors: &[(u64, u32, u16, u16)]) -> (Request, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        for (index, &(address, len, flags, next)) in (0..).zip(descriptors) {
            let descriptor = Descriptor::new(address, len, flags, next);
            memory.write_obj(descriptor, GuestAddress(DESC + 16 * index)).unwrap();
        }
        // The available ring: flags, idx, and the chain's head, which is 0.
        memory.write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(AVAIL)).unwrap();
        let mut queue = Queue::new(8).unwrap();
        queue.try_set_desc_table_address(GuestAddress(DESC)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.set_ready(true);
        let request = Request::parse(queue.iter(&memory).unwrap().next().unwrap());
        (request, memory)
    }

    #[test]
    fn flush_as_linux_sends_it_is_answered() {
        let (request, memory) = parse(&[(0x4000, 4, NEXT, 1), (0x5000, 4, WRITE, 0)]);
        assert_eq!(request.kind(), Ok(RequestType::Flush));
        assert_eq!(request.answer(&memory, Status::Failure), 4);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5000)).unwrap(), u32::MAX);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5004)).unwrap(), 0);
    }

    #[test]
    fn virtio_2_7_4_framing_is_the_drivers_choice() {
        let (request, memory) = parse(&[
            (0x4000, 1, NEXT, 1),
            (0x4001, 3, NEXT, 2),
            (0x5000, 2, NEXT | WRITE, 3),
            (0x6000, 0, NEXT | WRITE, 4),
            (0x7000, 64, WRITE, 0),
        ]);
        assert_eq!(request.kind(), Ok(RequestType::Flush));
        assert_eq!(request.answer(&memory, Status::Failure), 4);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5000)).unwrap(), 0xffff);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x7000)).unwrap(), 0xffff);
    }

    #[test]
    fn malformed_chain_is_named_and_answered_where_there_is_room() {
        type Case<'a> = (&'a [(u64, u32, u16, u16)], Malformed, u32);
        let cases: [Case<'_>; 7] = [
            (&[(0x4000, 3, NEXT, 1), (0x5000, 4, WRITE, 0)], Malformed::NoType, 4),
            (&[(0x4000, 4, WRITE, 0)], Malformed::NoType, 4),
            (&[(0x4000, 4, NEXT | WRITE, 1), (0x5000, 4, 0, 0)], Malformed::Order, 4),
            (&[(0x4000, 4, NEXT, 1), (0x5000, 4, NEXT, 0)], Malformed::Endless, 0),
            (&[(0x4000, 4, NEXT, 1), (0x5000, 4, NEXT | WRITE, 9)], Malformed::Endless, 4),
            (&[(MEMORY, 4, NEXT, 1), (0x5000, 4, WRITE, 0)], Malformed::TypeOutsideMemory, 4),
            (&[(u64::MAX, 4, NEXT, 1), (0x5000, 4, WRITE, 0)], Malformed::TypeOutsideMemory, 4),
        ];
        for (chain, expected, answered) in cases {
            let (request, memory) = parse(chain);
            assert_eq!(request.kind(), Err(expected), "{chain:?}");
            assert_eq!(request.answer(&memory, Status::Failure), answered, "{chain:?}");
        }
    }

    #[test]
    fn status_without_room_or_memory_is_not_written() {
        for status in [(0x5000, 3, WRITE, 0), (MEMORY - 2, 4, WRITE, 0), (u64::MAX, 4, WRITE, 0)] {
            let (request, memory) = parse(&[(0x4000, 4, NEXT, 1), status]);
            assert_eq!(request.kind(), Ok(RequestType::Flush));
            assert_eq!(request.answer(&memory, Status::Failure), 0, "{status:?}");
            assert_eq!(memory.read_obj::<u16>(GuestAddress(MEMORY - 2)).unwrap(), 0, "{status:?}");
        }
    }
}
