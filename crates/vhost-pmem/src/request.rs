// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request, from descriptor chain to status.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use crate::spec::{RequestType, Status};

/// What is wrong with a chain. Such a request fails; it stops nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum Malformed {
    /// A loop, a descriptor outside the table, or an indirect table that is invalid.
    #[error("chain does not end")]
    Endless,
    /// A readable descriptor behind a writable one (virtio 2.7.4.2).
    #[error("readable descriptor behind a writable one")]
    Order,
    /// Too short for a type.
    #[error("no room for a request type")]
    NoType,
    /// The type lies where no guest memory is.
    #[error(
        "request type in memory that the VMM doesn't share; give share=on to every memory backend \
         of the VMM, then restart the guest"
    )]
    TypeOutsideMemory,
}

/// Why a request can't be answered. It stays in the queue, and all after it: a driver takes one
/// that is returned without a status for whatever its memory held before, often success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unanswerable {
    /// Its descriptors or its status lie where no guest memory is, as far as the frontend has told.
    #[error("the guest keeps requests in memory that the VMM doesn't share")]
    Unshared,
    /// Its driver left no room for a status.
    #[error("the guest's driver left no room for a status")]
    NoRoom,
    /// The queue itself is of no use.
    #[error("the guest's queue is unusable")]
    Queue,
}

impl Unanswerable {
    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Unshared => {
                "give share=on to every memory backend of the VMM, then restart the guest"
            }
            Self::NoRoom | Self::Queue => {
                "restart the guest, with another driver if this happens again"
            }
        }
    }
}

/// A request that was read from the queue and can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    head: u16,
    kind: Result<RequestType, Malformed>,
    /// Where each byte of the status goes: a driver may split it as it likes (virtio 2.7.4).
    status: [GuestAddress; 4],
}

impl Request {
    /// Reads the request whose chain begins at `head` of a descriptor table of `size`. Its memory
    /// is read here and never again.
    pub(crate) fn parse(
        memory: &impl GuestMemory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, Unanswerable> {
        let mut readable = Le32::default();
        let mut writable = Le32::default();
        let mut form = Ok(());
        for descriptor in Chain::new(memory, table, size, head) {
            match descriptor {
                Ok(descriptor) if descriptor.is_write_only() => writable.extend(descriptor),
                Ok(descriptor) => {
                    if writable.any {
                        form = Err(Malformed::Order);
                    }
                    readable.extend(descriptor);
                }
                Err(Broken::Endless) => form = Err(Malformed::Endless),
                // What is missing may say where the status goes.
                Err(Broken::Unshared) => return Err(Unanswerable::Unshared),
            }
        }
        let status = writable.finish().ok_or(Unanswerable::NoRoom)?;
        if !status.iter().all(|address| memory.check_range(*address, 1, Permissions::Write)) {
            return Err(Unanswerable::Unshared);
        }
        Ok(Self { head, kind: form.and_then(|()| readable.read_type(memory)), status })
    }

    /// The chain's first descriptor, by which the driver knows it.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// What is asked.
    pub(crate) fn kind(&self) -> Result<RequestType, Malformed> {
        self.kind
    }

    /// Writes the status. Fails, having written a part of it or nothing, where the memory is gone
    /// since the request was read.
    pub(crate) fn answer(
        &self,
        memory: &impl GuestMemory,
        status: Status,
    ) -> Result<(), Unanswerable> {
        for (byte, address) in status.to_le_bytes().into_iter().zip(self.status) {
            memory.write_obj(byte, address).or(Err(Unanswerable::Unshared))?;
        }
        Ok(())
    }
}

/// How many bytes a descriptor has (virtio 2.7.5).
const DESCRIPTOR_LEN: u32 = 16;

/// Why a chain can't be read to its end.
#[derive(Debug, Clone, Copy)]
enum Broken {
    /// A descriptor lies where no guest memory is.
    Unshared,
    /// It has no end: see [`Malformed::Endless`].
    Endless,
}

/// The descriptors of a chain (virtio 2.7.5). The library's own iterator doesn't tell one that is
/// outside memory from the end.
struct Chain<'a, M> {
    memory: &'a M,
    table: GuestAddress,
    size: u16,
    /// None once it has ended.
    next: Option<u16>,
    /// How many more descriptors the table can have.
    left: u16,
    bytes: u32,
    is_indirect: bool,
}

impl<'a, M: GuestMemory> Chain<'a, M> {
    fn new(memory: &'a M, table: GuestAddress, size: u16, head: u16) -> Self {
        Self { memory, table, size, next: Some(head), left: size, bytes: 0, is_indirect: false }
    }

    fn read(&mut self, index: u16) -> Result<Descriptor, Broken> {
        if index >= self.size || self.left == 0 {
            return Err(Broken::Endless);
        }
        self.left -= 1;
        let address = self
            .table
            .checked_add(u64::from(index) * u64::from(DESCRIPTOR_LEN))
            .ok_or(Broken::Unshared)?;
        let descriptor: Descriptor = self.memory.read_obj(address).or(Err(Broken::Unshared))?;
        if descriptor.refers_to_indirect_table() {
            self.enter(descriptor)?;
            return self.read(0);
        }
        // No chain is longer than 4 GiB (virtio 2.7.5.2).
        self.bytes = self.bytes.checked_add(descriptor.len()).ok_or(Broken::Endless)?;
        self.next = descriptor.has_next().then_some(descriptor.next());
        Ok(descriptor)
    }

    /// Goes on in an indirect table, of whole descriptors, of which none leads to another table
    /// (virtio 2.7.5.3).
    fn enter(&mut self, table: Descriptor) -> Result<(), Broken> {
        let count = u16::try_from(table.len() / DESCRIPTOR_LEN).or(Err(Broken::Endless))?;
        if self.is_indirect || table.len() % DESCRIPTOR_LEN != 0 {
            return Err(Broken::Endless);
        }
        (self.table, self.size, self.left, self.is_indirect) = (table.addr(), count, count, true);
        Ok(())
    }
}

impl<M: GuestMemory> Iterator for Chain<'_, M> {
    type Item = Result<Descriptor, Broken>;

    /// Returns the next descriptor; after one that can't be read nothing.
    fn next(&mut self) -> Option<Self::Item> {
        self.next.take().map(|index| self.read(index))
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

    fn read_type(self, memory: &impl GuestMemory) -> Result<RequestType, Malformed> {
        let addresses = self.finish().ok_or(Malformed::NoType)?;
        let mut bytes = [0; 4];
        for (byte, address) in bytes.iter_mut().zip(addresses) {
            *byte = memory.read_obj(address).or(Err(Malformed::TypeOutsideMemory))?;
        }
        Ok(RequestType::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    /// VIRTQ_DESC_F_NEXT, _WRITE and _INDIRECT (virtio 2.7.5).
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    const DESC: u64 = 0x1000;
    const SIZE: u16 = 8;
    /// Where memory ends.
    const MEMORY: u64 = 0x1_0000;
    const FLUSH: [u64; 2] = [0x4000, 0x5000];

    type Descriptors<'a> = &'a [(u64, u32, u16, u16)];

    fn write(memory: &GuestMemoryMmap, table: u64, descriptors: Descriptors<'_>) {
        for (index, &(address, len, flags, next)) in (0..).zip(descriptors) {
            let descriptor = Descriptor::new(address, len, flags, next);
            memory.write_obj(descriptor, GuestAddress(table + 16 * index)).unwrap();
        }
    }

    /// A chain of `(address, length, flags, next)`; memory from 0x4000 on is zero.
    fn parse(descriptors: Descriptors<'_>) -> (Result<Request, Unanswerable>, GuestMemoryMmap) {
        let memory = memory();
        write(&memory, DESC, descriptors);
        (Request::parse(&memory, GuestAddress(DESC), SIZE, 0), memory)
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    #[test]
    fn flush_as_linux_sends_it_is_answered() {
        let (request, memory) = parse(&[(FLUSH[0], 4, NEXT, 1), (FLUSH[1], 4, WRITE, 0)]);
        let request = request.unwrap();
        assert_eq!(request.kind(), Ok(RequestType::Flush));
        request.answer(&memory, Status::Failure).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(FLUSH[1])).unwrap(), u32::MAX);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(FLUSH[1] + 4)).unwrap(), 0);
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
        let request = request.unwrap();
        assert_eq!(request.kind(), Ok(RequestType::Flush));
        request.answer(&memory, Status::Failure).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x5000)).unwrap(), 0xffff);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x7000)).unwrap(), 0xffff);
    }

    #[test]
    fn malformed_chain_with_room_for_a_status_is_named_and_fails() {
        let cases: [(Descriptors<'_>, Malformed); 6] = [
            (&[(0x4000, 3, NEXT, 1), (0x5000, 4, WRITE, 0)], Malformed::NoType),
            (&[(0x4000, 4, WRITE, 0)], Malformed::NoType),
            (&[(0x4000, 4, NEXT | WRITE, 1), (0x5000, 4, 0, 0)], Malformed::Order),
            (&[(0x4000, 4, NEXT, 1), (0x5000, 4, NEXT | WRITE, 9)], Malformed::Endless),
            (&[(MEMORY, 4, NEXT, 1), (0x5000, 4, WRITE, 0)], Malformed::TypeOutsideMemory),
            (&[(u64::MAX, 4, NEXT, 1), (0x5000, 4, WRITE, 0)], Malformed::TypeOutsideMemory),
        ];
        for (chain, expected) in cases {
            let (request, memory) = parse(chain);
            let request = request.unwrap();
            assert_eq!(request.kind(), Err(expected), "{chain:?}");
            request.answer(&memory, Status::Failure).unwrap();
        }
    }

    #[test]
    fn status_without_room_or_memory_is_unanswerable() {
        use Unanswerable::{NoRoom, Unshared};
        let request = (0x4000, 4, NEXT, 1);
        let cases: [(Descriptors<'_>, Unanswerable); 9] = [
            (&[(0x4000, 4, 0, 0)], NoRoom),
            (&[request, (0x5000, 3, WRITE, 0)], NoRoom),
            (&[request, (0x5000, 4, 0, 0)], NoRoom),
            (&[request, (0x4000, 4, NEXT, 0)], NoRoom),
            (&[request, (MEMORY, 4, WRITE, 0)], Unshared),
            (&[request, (MEMORY - 2, 4, WRITE, 0)], Unshared),
            (&[request, (0x5000, 3, NEXT | WRITE, 2), (MEMORY, 1, WRITE, 0)], Unshared),
            (&[request, (u64::MAX, 4, WRITE, 0)], Unshared),
            // Room that isn't there, in a chain that is wrong in other ways.
            (&[(MEMORY, 4, NEXT | WRITE, 1), (0x4000, 4, 0, 0)], Unshared),
        ];
        for (chain, expected) in cases {
            assert_eq!(parse(chain).0, Err(expected), "{chain:?}");
        }
    }

    #[test]
    fn chain_outside_memory_is_unanswerable_though_its_start_has_room() {
        use Unanswerable::{NoRoom, Unshared};
        let memory = memory();
        let flush = [(FLUSH[0], 4, NEXT, 1), (FLUSH[1], 4, WRITE, 0)];
        let parse = |table, head| Request::parse(&memory, GuestAddress(table), SIZE, head);

        // The queue's own table: outside, over the edge, over the last address; a head outside it.
        write(&memory, MEMORY - 16, &[(FLUSH[1], 4, NEXT | WRITE, 1)]);
        for table in [MEMORY, MEMORY - 8, MEMORY - 16, u64::MAX - 15] {
            assert_eq!(parse(table, 0), Err(Unshared), "{table:#x}");
        }
        assert_eq!(parse(u64::MAX - 15, 1), Err(Unshared));
        for head in [SIZE, u16::MAX] {
            assert_eq!(parse(DESC, head), Err(NoRoom), "{head}");
        }

        // An indirect one.
        for (table, len, expected) in [
            (0x8000, 32, None),
            (MEMORY, 32, Some(Unshared)),
            (MEMORY - 16, 32, Some(Unshared)),
            (u64::MAX, 32, Some(Unshared)),
            (0x8000, 33, Some(NoRoom)),
            (0x8000, 0, Some(NoRoom)),
            (0x8000, 16 << 16, Some(NoRoom)),
        ] {
            write(&memory, DESC, &[(table, len, INDIRECT, 0)]);
            write(&memory, 0x8000, &flush);
            assert_eq!(parse(DESC, 0).err(), expected, "{table:#x}, {len}");
        }
        // Within an indirect one.
        write(&memory, DESC, &[(0x8000, 32, INDIRECT, 0)]);
        write(&memory, 0x8000, &[(0x8000, 32, INDIRECT, 0)]);
        assert_eq!(parse(DESC, 0), Err(NoRoom));
    }

    #[test]
    fn status_whose_memory_is_gone_is_not_written() {
        let (request, _) = parse(&[(FLUSH[0], 4, NEXT, 1), (FLUSH[1], 4, WRITE, 0)]);
        let now = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x5000)]).unwrap();
        assert_eq!(request.unwrap().answer(&now, Status::Success), Err(Unanswerable::Unshared));
    }
}
