// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk with a volatile cache.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::metadata::{self, Metadata};
use crate::random::Random;

/// Written whole or not at all.
pub(super) const SECTOR: usize = 512;
/// What is lost, kept and reordered by itself.
const PAGE: usize = 4096;

/// What is wrong with a disk whose power is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// Writes fail with `ENOSPC`.
    Full,
    /// Everything fails with `EIO`.
    Broken,
}

/// A medium, and what was written and isn't on it yet.
#[derive(Debug)]
pub(super) struct Disk {
    medium: File,
    inode: u64,
    size: u64,
    /// When it was written last.
    modified: SystemTime,
    /// Whether it answers syncs without doing them.
    lies: bool,
    fault: Option<Fault>,
    /// What was written since the last sync, page by page, the first one first.
    unsynced: Vec<Write>,
    /// What a sector holds for whoever reads it, if that isn't on the medium.
    seen: HashMap<u64, [u8; SECTOR]>,
    metadata: Metadata,
}

/// A page that was written, or a part of one.
#[derive(Debug)]
struct Write {
    offset: u64,
    bytes: Vec<u8>,
}

/// What became of the pages that were written and not synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    kept: usize,
    torn: usize,
    lost: usize,
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.kept += other.kept;
        self.torn += other.torn;
        self.lost += other.lost;
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, torn, lost } = self;
        write!(f, "of what was not synced, {kept} pages kept, {torn} torn, {lost} lost")
    }
}

impl Disk {
    /// The one whose medium is the file at `path`.
    pub(super) fn open(path: &Path, lies: bool) -> io::Result<Self> {
        let medium = File::options().read(true).write(true).open(path)?;
        let found = medium.metadata()?;
        let (inode, size, modified) = (found.ino(), found.len(), found.modified()?);
        let (fault, unsynced, seen, metadata) = Default::default();
        Ok(Self { medium, inode, size, modified, lies, fault, unsynced, seen, metadata })
    }

    pub(super) fn modified(&self) -> SystemTime {
        self.modified
    }

    /// That of the medium: no other disk has it for as long as this one is there.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    pub(super) fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    fn check_broken(&self) -> io::Result<()> {
        if self.fault == Some(Fault::Broken) { Err(Errno::IO.into()) } else { Ok(()) }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` with what was written last.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check_broken()?;
        self.check(offset, buffer.len())?;
        self.medium.read_exact_at(buffer, offset)?;
        if self.seen.is_empty() {
            return Ok(());
        }
        for (sector, bytes) in (offset / SECTOR as u64..).zip(buffer.chunks_exact_mut(SECTOR)) {
            if let Some(seen) = self.seen.get(&sector) {
                bytes.copy_from_slice(seen);
            }
        }
        Ok(())
    }

    /// Takes `data` into the cache.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_broken()?;
        if self.fault == Some(Fault::Full) {
            return Err(Errno::NOSPC.into());
        }
        self.check(offset, data.len())?;
        self.modified = SystemTime::now();
        for (sector, bytes) in (offset / SECTOR as u64..).zip(data.chunks_exact(SECTOR)) {
            self.seen.insert(sector, bytes.try_into().expect("a sector"));
        }
        let (mut offset, mut rest) = (offset, data);
        while !rest.is_empty() {
            let within = usize::try_from(offset % PAGE as u64).expect("less than a page");
            let (front, behind) = rest.split_at(rest.len().min(PAGE - within));
            self.unsynced.push(Write { offset, bytes: front.to_vec() });
            offset += front.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Gives it another size.
    pub(super) fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.check_broken()?;
        if len < self.size || len % PAGE as u64 != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.metadata.set_len(&self.medium, len)?;
        self.modified = SystemTime::now();
        self.size = len;
        Ok(())
    }

    /// An extended attribute, if it has that.
    pub(super) fn attribute(&self, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.check_broken()?;
        metadata::attribute(&self.medium, name)
    }

    /// The names of its extended attributes, each with a zero behind it.
    pub(super) fn attributes(&self) -> io::Result<Vec<u8>> {
        self.check_broken()?;
        metadata::names(&self.medium)
    }

    /// Sets an extended attribute, or takes it away.
    pub(super) fn set_attribute(&mut self, name: &OsStr, value: Option<&[u8]>) -> io::Result<()> {
        self.check_broken()?;
        self.metadata.set_attribute(&self.medium, name, value)
    }

    /// Makes durable what was written before.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.check_broken()?;
        if self.lies {
            return Ok(());
        }
        for (sector, bytes) in self.seen.drain() {
            self.medium.write_all_at(&bytes, sector * SECTOR as u64)?;
        }
        self.unsynced.clear();
        self.metadata.sync();
        self.medium.set_modified(self.modified)
    }

    /// Loses power. The disk may have brought what is in its cache to the medium at any time, in any
    /// order: all of it, none, or some, of which some only in part.
    pub(super) fn lose(&mut self, random: &mut Random) -> io::Result<Losses> {
        let mut writes = std::mem::take(&mut self.unsynced);
        self.seen.clear();
        let fate = random.below(4);
        if fate > 1 {
            random.shuffle(&mut writes);
        }
        // Its time is as lost or kept as its pages are.
        let modified =
            if random.one_in(2) { self.medium.metadata()?.modified()? } else { self.modified };
        let mut losses = Losses::default();
        for Write { offset, bytes } in writes {
            let (fate, count) = match (fate, random.below(4)) {
                (0, _) | (2.., 0) => (Fate::Lost, &mut losses.lost),
                (1, _) | (2.., 1 | 2) => (Fate::Kept, &mut losses.kept),
                _ => (Fate::Torn, &mut losses.torn),
            };
            *count += 1;
            for (at, sector) in (offset..).step_by(SECTOR).zip(bytes.chunks_exact(SECTOR)) {
                if fate == Fate::Kept || (fate == Fate::Torn && random.one_in(2)) {
                    self.medium.write_all_at(sector, at)?;
                }
            }
        }
        self.metadata.lose(&self.medium, random)?;
        self.medium.set_modified(modified)?;
        Ok(losses)
    }

    /// That it is whole sectors that there are.
    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.size);
        match end {
            Some(end) if (offset | end) % SECTOR as u64 == 0 => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Torn,
    Lost,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGES: usize = 16;

    /// A disk of zeroes, and its medium.
    fn disk(lies: bool) -> (Disk, File) {
        let medium = tempfile::NamedTempFile::new().unwrap();
        medium.as_file().set_len((PAGES * PAGE) as u64).unwrap();
        (Disk::open(medium.path(), lies).unwrap(), medium.reopen().unwrap())
    }

    fn page(medium: &File, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        medium.read_exact_at(&mut bytes, (page * PAGE) as u64).unwrap();
        bytes
    }

    /// What the pages of a disk hold after it has lost power, for many seeds, each as the set of its
    /// sectors' bytes.
    fn fates(lies: bool, prepare: impl Fn(&mut Disk)) -> BTreeSet<BTreeSet<u8>> {
        let mut fates = BTreeSet::new();
        for seed in 0..50 {
            let (mut disk, medium) = disk(lies);
            prepare(&mut disk);
            disk.lose(&mut Random::new(seed)).unwrap();
            fates.extend((0..PAGES).map(|at| BTreeSet::from_iter(page(&medium, at))));
        }
        fates
    }

    fn write_all(disk: &mut Disk, byte: u8) {
        disk.write(0, &[byte; PAGES * PAGE]).unwrap();
    }

    fn sets<const N: usize>(sets: [&[u8]; N]) -> BTreeSet<BTreeSet<u8>> {
        sets.into_iter().map(|set| set.iter().copied().collect()).collect()
    }

    #[test]
    fn synced_write_is_kept_by_every_seed() {
        let kept = fates(false, |disk| {
            write_all(disk, 7);
            disk.sync().unwrap();
        });
        assert_eq!(kept, sets([&[7]]));
    }

    #[test]
    fn unsynced_write_is_lost_kept_or_torn() {
        let any = fates(false, |disk| write_all(disk, 7));
        assert_eq!(any, sets([&[0], &[7], &[0, 7]]));
    }

    #[test]
    fn unsynced_writes_of_one_page_come_in_any_order_but_not_before_what_was_synced() {
        let any = fates(false, |disk| {
            write_all(disk, 5);
            disk.sync().unwrap();
            write_all(disk, 6);
            write_all(disk, 7);
        });
        assert_eq!(any, sets([&[5], &[6], &[7], &[5, 6], &[5, 7], &[6, 7], &[5, 6, 7]]));
    }

    #[test]
    fn lying_disk_loses_what_it_said_was_synced() {
        let any = fates(true, |disk| {
            write_all(disk, 7);
            disk.sync().unwrap();
        });
        assert!(any.is_superset(&sets([&[0], &[7]])), "{any:?}");
    }

    #[test]
    fn read_sees_what_was_written_last_synced_or_not() {
        let (mut disk, medium) = disk(false);
        write_all(&mut disk, 5);
        disk.sync().unwrap();
        disk.write(SECTOR as u64, &[6; SECTOR]).unwrap();
        let mut bytes = [0; 3 * SECTOR];
        disk.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [[5; SECTOR], [6; SECTOR], [5; SECTOR]].as_flattened());
        assert_eq!(page(&medium, 0), [5; PAGE]);
    }

    #[test]
    fn unsynced_size_and_attributes_are_there_or_are_not() {
        let name = OsStr::new("user.test");
        let (mut sizes, mut values) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..50 {
            let (mut disk, medium) = disk(false);
            if let Err(error) = disk.set_attribute(name, Some(b"1")) {
                eprintln!("skipped: {error}");
                return;
            }
            disk.sync().unwrap();
            disk.set_attribute(name, Some(b"2")).unwrap();
            disk.set_attribute(name, None).unwrap();
            disk.set_len(2 * (PAGES * PAGE) as u64).unwrap();
            assert_eq!(disk.attribute(name).unwrap(), None);
            disk.lose(&mut Random::new(seed)).unwrap();
            sizes.insert(medium.metadata().unwrap().len());
            values.insert(metadata::attribute(&medium, name).unwrap());
        }
        assert_eq!(Vec::from_iter(sizes), [1, 2].map(|times| times * (PAGES * PAGE) as u64));
        assert_eq!(Vec::from_iter(values), [None, Some(b"1".to_vec())]);
    }

    #[test]
    fn faulty_disk_fails_what_it_must_until_it_is_repaired() {
        let (mut disk, medium) = disk(false);
        write_all(&mut disk, 5);
        disk.set_fault(Some(Fault::Full));
        assert_eq!(disk.write(0, &[6; PAGE]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.sync().unwrap();
        disk.set_fault(Some(Fault::Broken));
        disk.write(0, &[6; PAGE]).unwrap_err();
        disk.read(0, &mut [0; PAGE]).unwrap_err();
        disk.sync().unwrap_err();
        disk.set_fault(None);
        disk.write(PAGE as u64, &[7; PAGE]).unwrap();
        disk.sync().unwrap();
        assert_eq!([page(&medium, 0), page(&medium, 1)], [[5; PAGE], [7; PAGE]]);
    }

    #[test]
    fn losses_are_the_same_for_the_same_seed() {
        let lose = || {
            let (mut disk, medium) = disk(false);
            write_all(&mut disk, 7);
            let losses = disk.lose(&mut Random::new(3)).unwrap();
            (losses, (0..PAGES).map(|at| page(&medium, at)).collect::<Vec<_>>())
        };
        assert_eq!(lose(), lose());
    }

    #[test]
    fn what_is_no_sector_of_the_disk_is_refused() {
        let (mut disk, _) = disk(false);
        disk.write(1, &[0; SECTOR]).unwrap_err();
        disk.write(0, &[0; 1]).unwrap_err();
        disk.write((PAGES * PAGE) as u64, &[0; SECTOR]).unwrap_err();
        disk.read(u64::MAX - 511, &mut [0; SECTOR]).unwrap_err();
    }
}
