// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a guest's RAM has room for what Linux keeps there of each page of the device: its
//! `struct page`, without which it has no DAX. A guest that hasn't ends at its start, or is left with
//! next to nothing, and says nothing that points here.

use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Bytes of a page on the device that Linux spends one byte of RAM on: 64 for each 4096.
const PER_BYTE: u64 = 64;

/// RAM that is small for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "Linux needs {need} bytes of the guest's RAM for this device, 64 for each page, and there are \
     {ram} bytes; give the guest more, or a smaller device"
)]
pub(crate) struct Cramped {
    ram: u64,
    need: u64,
}

/// Checks that a device of `bytes` takes no more than half of a guest's RAM. Of what a frontend has
/// told of, `other` bytes are none.
pub(crate) fn check(bytes: u64, memory: &GuestMemoryMmap, other: u64) -> Result<(), Cramped> {
    let shared: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let (ram, need) = (shared.saturating_sub(other), bytes / PER_BYTE);
    // Without any there is no queue either, and it isn't known.
    if ram > 0 && need > ram / 2 { Err(Cramped { ram, need }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn ram_of_which_a_device_takes_more_than_half_is_small() {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 30), 1 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        check(64 << 20, &memory, 0).unwrap();
        let cramped = check(128 << 20, &memory, 0).unwrap_err();
        assert_eq!(cramped, Cramped { ram: 2 << 20, need: 2 << 20 });
        assert_eq!(check(64 << 20, &memory, 1 << 20).unwrap_err().ram, 1 << 20);
        check(64 << 20, &memory, 2 << 20).unwrap();
    }
}
