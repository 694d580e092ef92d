// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a target writes down about itself: a header, in the first sector of a device.
//!
//! A header is smaller than a sector, and a sector is written whole or not at all, also where
//! power is cut: one that is neither blank nor good was damaged by something else, and nothing that
//! it leads to is to be trusted. All numbers are little-endian.
//!
//! ```text
//! byte  0  magic
//!       8  version
//!      12  CRC-32 of the sector, with zeroes here
//!      16  what the target writes down
//! ```

use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Target;
use crate::bio::{BioError, BioVec, Buffer};
use crate::page::{NrPages, PAGE_BYTES, PAGE_SIZE, Pgoff, PgoffRange};
use crate::persist::{PersistError, persist_all};

/// The unit that a device writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

/// Why what a target wrote down can't be used.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum InvalidMetadata {
    /// It can't be read.
    #[error("cannot read its metadata")]
    Read(#[from] BioError),
    /// What a process before has written may not be durable.
    #[error("cannot sync its metadata")]
    Sync(#[from] PersistError),
    /// Something else is on the device.
    #[error(
        "not a {0}, and not blank; to make it one, and lose what is on it, \
         fill its first MiB with zeroes"
    )]
    Foreign(&'static str),
    /// A later version's.
    #[error("its metadata has version {0}, which this version doesn't know")]
    Version(u32),
    /// It isn't what was written.
    #[error("its header is damaged: the checksum doesn't match")]
    Header,
    /// A header is missing where there was one.
    #[error("its header is blank, but what follows isn't: the header is lost")]
    HeaderLost,
    /// Something else is where a mirror's leg has its label.
    #[error(
        "something else is in the page that follows the leg; fill the 8 sectors from sector {sector} on \
         with zeroes, which loses what is there"
    )]
    NoRoomForLabel {
        /// Where that is.
        sector: u64,
    },
    /// Of a mirror's leg, and the leg lacks something.
    #[error("it is a mirror's leg that was being copied to, and lacks what the others have")]
    LegBehind,
    /// Of a mirror's leg, a part.
    #[error("a part of the leg was written without the mirror, and the rest was not")]
    PartOfLeg,
    /// Made for something else.
    #[error("it was made for {what} of {}, not {}", bytes(*.is), bytes(*.asked))]
    Mismatch {
        /// Which property.
        what: &'static str,
        /// What it was made with, in pages.
        is: u64,
        /// What was asked for, in pages.
        asked: u64,
    },
}

/// A size, as an operator gives it.
fn bytes(pages: u64) -> String {
    let bytes = u128::from(pages) * u128::from(PAGE_SIZE);
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes % (1 << shift) == 0);
    match unit {
        Some((shift, unit)) if bytes > 0 => format!("{} {unit} ({bytes} bytes)", bytes >> shift),
        _ => format!("{bytes} bytes"),
    }
}

/// What a kind of target writes down.
pub(super) trait Header: FromBytes + IntoBytes + Immutable {
    /// How it is told from other things.
    const MAGIC: [u8; 8];
    /// Which version this is.
    const VERSION: u32;
    /// The oldest that is read: what it lacks are zeroes.
    const OLDEST: u32 = Self::VERSION;
    /// What a device that has it is called.
    const WHAT: &'static str;
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Sector {
    magic: [u8; 8],
    version: U32,
    checksum: U32,
    body: [u8; SECTOR_BYTES - 16],
}

impl Sector {
    fn checksum(&mut self) -> U32 {
        let found = std::mem::take(&mut self.checksum);
        let checksum = crc32fast::hash(self.as_bytes()).into();
        self.checksum = found;
        checksum
    }
}

/// The page that a header stands in.
pub(super) fn encode<H: Header>(header: &H) -> Vec<u8> {
    let mut body = [0; SECTOR_BYTES - 16];
    body[..size_of::<H>()].copy_from_slice(header.as_bytes());
    let version = H::VERSION.into();
    let mut sector = Sector { magic: H::MAGIC, version, checksum: U32::ZERO, body };
    sector.checksum = sector.checksum();
    let mut page = sector.as_bytes().to_vec();
    page.resize(PAGE_BYTES, 0);
    page
}

/// The header of a device; none if that is blank, as then must be the first page of what it leads
/// to, `follows`.
///
/// A process that wrote it may have ended before it was synced. Were it lost with the power later,
/// what is written now would be found under the header of before; so it is synced first.
pub(super) fn load<H: Header>(
    device: &dyn Target,
    follows: u64,
) -> Result<Option<H>, InvalidMetadata> {
    persist_all(device)?;
    let header = decode(&read(device, range(0, 1))?)?;
    if header.is_none() && !is_blank(&read(device, range(follows, 1))?) {
        return Err(InvalidMetadata::HeaderLost);
    }
    Ok(header)
}

/// The header that `page`, which begins with one, holds; none if it is blank.
pub(super) fn decode<H: Header>(page: &[u8]) -> Result<Option<H>, InvalidMetadata> {
    if is_blank(page) {
        return Ok(None);
    }
    let (mut sector, _) = Sector::read_from_prefix(page).expect("a page is larger than a sector");
    if sector.magic != H::MAGIC {
        return Err(InvalidMetadata::Foreign(H::WHAT));
    }
    if sector.checksum() != sector.checksum {
        return Err(InvalidMetadata::Header);
    }
    if !(H::OLDEST..=H::VERSION).contains(&sector.version.get()) {
        return Err(InvalidMetadata::Version(sector.version.get()));
    }
    let (header, _) = H::read_from_prefix(&sector.body).expect("a header is smaller than a sector");
    Ok(Some(header))
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// That a device was made as it is used now.
pub(super) fn check(what: &'static str, is: u64, asked: u64) -> Result<(), InvalidMetadata> {
    if is == asked { Ok(()) } else { Err(InvalidMetadata::Mismatch { what, is, asked }) }
}

/// `count` pages from page `start` on, which exist.
pub(super) fn range(start: u64, count: u64) -> PgoffRange {
    let start = Pgoff::try_new(start).expect("a page of a device");
    let count = NrPages::try_new(count).expect("some of its pages");
    PgoffRange::try_new(start, count).expect("pages of a device")
}

/// Reads `pages` of `device`.
pub(super) fn read(device: &dyn Target, pages: PgoffRange) -> Result<Vec<u8>, BioError> {
    let mut buffer = buffer(pages.nr_pages());
    device.submit(BioVec::try_new(pages, Buffer::Read(&mut buffer))?)?;
    Ok(buffer)
}

/// Writes to `device` from page `start` on.
pub(super) fn write(device: &dyn Target, start: u64, bytes: &[u8]) -> Result<(), BioError> {
    let pages = range(start, (bytes.len() / PAGE_BYTES) as u64);
    device.submit(BioVec::try_new(pages, Buffer::Write(bytes))?)
}

/// A buffer for as many pages.
pub(super) fn buffer(nr_pages: NrPages) -> Vec<u8> {
    vec![0; usize::try_from(nr_pages.bytes()).expect("a buffer that fits in memory")]
}
