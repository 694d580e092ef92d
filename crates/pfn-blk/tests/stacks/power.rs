// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stores with a volatile cache in front of their medium, and a power switch.
//!
//! What is written stands in the cache until a sync. When power is cut each sector that was written
//! since holds what the medium had, or any of what was written to it: the device may have written
//! it back at any time, in any order. Sectors are written whole or not at all, pages are not.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use pfn_blk::{Access, MemoryStore, NrPages, Pgoff, Store};

use crate::stack::name;

pub(crate) const SECTOR: usize = 512;

/// A random number generator, good enough to pick sectors.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// What a store's medium and cache hold.
#[derive(Debug, Default)]
struct Disk {
    medium: Vec<u8>,
    /// All that was written to a sector since the last sync.
    cached: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// Notes beside the pages, which are durable at once, or not there.
    attributes: BTreeMap<String, Vec<u8>>,
    /// How many operations go well until all fail.
    left: Option<usize>,
    syncs: usize,
}

impl Disk {
    /// Each sector goes to the medium, or doesn't.
    fn lose(&mut self, dice: &mut Dice) {
        for (sector, written) in std::mem::take(&mut self.cached) {
            if let Some(bytes) = dice.roll(written.len() + 1).checked_sub(1) {
                self.put(sector, &written[bytes]);
            }
        }
    }

    /// Counts an operation. Whether it fails.
    fn is_broken(&mut self) -> bool {
        let is_broken = self.left == Some(0);
        self.left = self.left.map(|left| left.saturating_sub(1));
        is_broken
    }

    /// What is read from it.
    fn seen(&self) -> Vec<u8> {
        let mut seen = self.medium.clone();
        for (sector, written) in &self.cached {
            seen[sector * SECTOR..][..SECTOR].copy_from_slice(written.last().unwrap());
        }
        seen
    }

    fn sync(&mut self) {
        for (sector, written) in std::mem::take(&mut self.cached) {
            self.put(sector, written.last().unwrap());
        }
    }

    fn put(&mut self, sector: usize, bytes: &[u8; SECTOR]) {
        self.medium[sector * SECTOR..][..SECTOR].copy_from_slice(bytes);
    }
}

#[derive(Debug)]
struct Switch {
    /// How many writes and syncs are left until power is cut.
    left: Option<usize>,
    is_cut: bool,
    dice: Dice,
    disks: Vec<Disk>,
}

/// What the stores of a stack share: the power, and what is left when it is gone.
#[derive(Debug, Clone)]
pub(crate) struct Power(Arc<Mutex<Switch>>);

impl Power {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Switch {
            left: None,
            is_cut: false,
            dice: Dice(seed),
            disks: Vec::new(),
        })))
    }

    /// Has power fail in the midst of the write or sync after so many.
    pub(crate) fn cut_after(&self, operations: usize) {
        self.0.lock().unwrap().left = Some(operations);
    }

    /// Does something during which power is not cut.
    pub(crate) fn spare<T>(&self, act: impl FnOnce() -> T) -> T {
        let left = self.0.lock().unwrap().left.take();
        let done = act();
        self.0.lock().unwrap().left = left;
        done
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.0.lock().unwrap().is_cut
    }

    /// Power is back.
    pub(crate) fn restore(&self) {
        let mut switch = self.0.lock().unwrap();
        switch.is_cut = false;
        switch.left = None;
    }

    /// Has a store fail everything after so many reads, writes and syncs.
    pub(crate) fn break_after(&self, number: usize, operations: usize) {
        self.0.lock().unwrap().disks[number].left = Some(operations);
    }

    /// All stores work.
    pub(crate) fn mend(&self) {
        self.0.lock().unwrap().disks.iter_mut().for_each(|disk| disk.left = None);
    }

    /// How often a store was synced.
    pub(crate) fn syncs(&self, number: usize) -> usize {
        self.0.lock().unwrap().disks[number].syncs
    }

    /// How many stores there are.
    pub(crate) fn stores(&self) -> usize {
        self.0.lock().unwrap().disks.len()
    }

    /// The store of that number, with what its disk holds.
    pub(crate) fn store(&self, number: usize, nr_pages: NrPages) -> Box<dyn Store> {
        self.store_to(Access::ReadWrite, number, nr_pages)
    }

    /// The same, to be used so.
    pub(crate) fn store_to(
        &self,
        access: Access,
        number: usize,
        nr_pages: NrPages,
    ) -> Box<dyn Store> {
        let mut switch = self.0.lock().unwrap();
        if switch.disks.len() <= number {
            switch.disks.resize_with(number + 1, Disk::default);
        }
        let disk = &mut switch.disks[number];
        disk.medium.resize(usize::try_from(nr_pages.bytes()).unwrap(), 0);
        let memory = MemoryStore::new(&name(number), nr_pages).unwrap();
        memory.write(Pgoff::ZERO, &disk.seen()).unwrap();
        Box::new(VolatileStore { memory, access, number, power: self.clone() })
    }

    /// Whether a store can be read.
    fn read(&self, number: usize) -> io::Result<()> {
        let mut switch = self.0.lock().unwrap();
        if switch.is_cut || switch.disks[number].is_broken() {
            return Err(io::Error::other("broken, or power was cut"));
        }
        Ok(())
    }

    /// Does a write or sync of a store. One that fails is done all the same, or isn't.
    fn operate(
        &self,
        number: usize,
        operate: impl FnOnce(&mut Disk) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut switch = self.0.lock().unwrap();
        if switch.is_cut {
            return Err(io::Error::other("no power"));
        }
        let is_cut = switch.left == Some(0);
        if switch.disks[number].is_broken() || is_cut {
            if switch.dice.roll(2) == 0 {
                operate(&mut switch.disks[number])?;
            }
            if is_cut {
                switch.lose();
            }
            return Err(io::Error::other("broken, or power was cut"));
        }
        switch.left = switch.left.map(|left| left - 1);
        operate(&mut switch.disks[number])
    }
}

impl Switch {
    fn lose(&mut self) {
        self.is_cut = true;
        self.disks.iter_mut().for_each(|disk| disk.lose(&mut self.dice));
    }
}

#[derive(Debug)]
struct VolatileStore {
    /// What is seen while power is on.
    memory: MemoryStore,
    access: Access,
    number: usize,
    power: Power,
}

impl Store for VolatileStore {
    fn name(&self) -> &str {
        self.memory.name()
    }

    fn nr_pages(&self) -> NrPages {
        self.memory.nr_pages()
    }

    fn access(&self) -> Access {
        self.access
    }

    fn is_persistent(&self) -> bool {
        true
    }

    fn is_removed(&self) -> bool {
        self.memory.is_removed()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        self.power.read(self.number)?;
        self.memory.read(at, buffer)
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        self.power.operate(self.number, |disk| {
            let first = usize::try_from(at.bytes()).unwrap() / SECTOR;
            for (sector, bytes) in (first..).zip(buffer.chunks_exact(SECTOR)) {
                disk.cached.entry(sector).or_default().push(bytes.try_into().unwrap());
            }
            self.memory.write(at, buffer)
        })
    }

    fn persist(&self) -> io::Result<()> {
        self.power.operate(self.number, |disk| {
            disk.syncs += 1;
            disk.sync();
            Ok(())
        })
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.power.read(self.number)?;
        let switch = self.power.0.lock().unwrap();
        Ok(switch.disks[self.number].attributes.get(name).cloned())
    }

    fn set_attribute(&self, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        self.power.operate(self.number, |disk| {
            match value {
                Some(value) => disk.attributes.insert(name.to_owned(), value.to_owned()),
                None => disk.attributes.remove(name),
            };
            Ok(())
        })
    }

    fn attributes(&self) -> io::Result<Vec<String>> {
        self.power.read(self.number)?;
        let switch = self.power.0.lock().unwrap();
        Ok(switch.disks[self.number].attributes.keys().cloned().collect())
    }

    fn identity(&self) -> io::Result<u64> {
        Ok(self.number as u64 + 1)
    }
}
