// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wire format of a persistent memory device: virtio 1.4, section 5.19.

pub use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;

/// Feature bit 0: the pages are shared memory region 0 of the device, not a range of guest
/// physical memory that the configuration names (5.19.3).
pub const VIRTIO_PMEM_F_SHMEM_REGION: u64 = 1 << 0;

/// The shared memory region that holds the pages (5.19.4).
pub const VIRTIO_PMEM_SHMEM_REGION_ID: u8 = 0;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`, the only request there is (5.19.6).
const REQ_TYPE_FLUSH: u32 = 0;

/// `struct virtio_pmem_config` (5.19.4): where the pages lie in guest physical memory, in bytes.
/// Both are zero with [`VIRTIO_PMEM_F_SHMEM_REGION`], and where there is nothing to present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// Guest physical address of the first page.
    pub start: u64,
    /// Size.
    pub size: u64,
}

impl Config {
    /// `len` bytes of the configuration space from `offset` on; `None` where it has none.
    pub fn read(&self, offset: usize, len: usize) -> Option<Vec<u8>> {
        let bytes = [self.start.to_le_bytes(), self.size.to_le_bytes()].concat();
        Some(bytes.get(offset..offset.checked_add(len)?)?.to_vec())
    }
}

/// The `type` of `struct virtio_pmem_req` (5.19.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestType {
    /// Make everything durable that was written before.
    Flush,
    /// A type that this device doesn't know.
    Unknown(u32),
}

impl RequestType {
    /// Reads a type off the wire.
    pub const fn from_le_bytes(bytes: [u8; 4]) -> Self {
        match u32::from_le_bytes(bytes) {
            REQ_TYPE_FLUSH => Self::Flush,
            other => Self::Unknown(other),
        }
    }
}

/// The `ret` of `struct virtio_pmem_resp` (5.19.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done: 0.
    Success,
    /// Not done: -1.
    Failure,
}

impl Status {
    /// How many bytes it has.
    pub const LEN: u32 = 4;

    /// The status as it is written.
    pub const fn to_le_bytes(self) -> [u8; 4] {
        match self {
            Self::Success => 0i32.to_le_bytes(),
            Self::Failure => (-1i32).to_le_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_read_is_little_endian_start_then_size() {
        let config = Config { start: 0x0102, size: 0x0304 };
        let bytes = config.read(0, 16).unwrap();
        assert_eq!(bytes, [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(config.read(8, 2).unwrap(), [4, 3]);
    }

    #[test]
    fn config_read_out_of_bounds_is_none() {
        let config = Config::default();
        for (offset, len) in [(0, 17), (16, 1), (usize::MAX, 2), (1, usize::MAX)] {
            assert_eq!(config.read(offset, len), None, "{offset} {len}");
        }
        assert_eq!(config.read(16, 0), Some(vec![]));
    }

    #[test]
    fn virtio_5_19_6_type_and_status_values() {
        assert_eq!(RequestType::from_le_bytes([0; 4]), RequestType::Flush);
        assert_eq!(RequestType::from_le_bytes([1, 0, 0, 0]), RequestType::Unknown(1));
        assert_eq!(Status::Success.to_le_bytes(), [0; 4]);
        assert_eq!(Status::Failure.to_le_bytes(), [0xff; 4]);
    }
}
