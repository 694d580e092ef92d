// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device may hold: sector by sector, the last thing that a flush has answered for, and all
//! that was written since.

use crate::record::{self, PAGE};

/// Pages of a device.
pub(crate) const PAGES: usize = 64;
/// Written whole or not at all.
const SECTOR: usize = 512;
const PER_PAGE: usize = PAGE / SECTOR;
/// Words of a sector.
const WORDS: usize = SECTOR / 8;

/// The number of a write. Zero is that of a blank file's zeroes.
pub(crate) type Number = u32;

/// What all sectors may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content(Vec<Sector>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sector {
    /// What it holds, if that is known: it was read or written, and nothing crashed since.
    now: Option<Number>,
    /// What it may hold after a crash.
    may: Vec<Number>,
}

impl Content {
    /// Of a file that holds this write everywhere, durably.
    pub(crate) fn of(number: Number) -> Self {
        Self(vec![Sector { now: Some(number), may: vec![number] }; PAGES * PER_PAGE])
    }

    /// A write to a page begins; its outcome is unknown until [`Content::written`].
    pub(crate) fn write(&mut self, page: usize, number: Number) {
        for sector in &mut self.0[page * PER_PAGE..][..PER_PAGE] {
            sector.now = None;
            sector.allow(number);
        }
    }

    /// That write has returned.
    pub(crate) fn written(&mut self, page: usize, number: Number) {
        self.0[page * PER_PAGE..][..PER_PAGE].iter_mut().for_each(|it| it.now = Some(number));
    }

    /// A flush was answered for: what is known to be there is durable.
    pub(crate) fn flushed(&mut self) {
        for sector in &mut self.0 {
            if let Some(now) = sector.now {
                sector.may = vec![now];
            }
        }
    }

    /// Something crashed: of what wasn't flushed any part is there.
    pub(crate) fn crashed(&mut self) {
        self.0.iter_mut().for_each(|sector| sector.now = None);
    }

    /// All of this or the other.
    pub(crate) fn or(&mut self, other: &Self) {
        for (sector, other) in self.0.iter_mut().zip(&other.0) {
            other.may.iter().for_each(|number| sector.allow(*number));
            if sector.now != other.now {
                sector.now = None;
            }
        }
    }

    /// Checks what a device holds, which is then known.
    pub(crate) fn check(&mut self, bytes: &[u8]) -> Result<(), String> {
        for (index, (sector, bytes)) in
            self.0.iter_mut().zip(bytes.chunks_exact(SECTOR)).enumerate()
        {
            let (page, within) = (index / PER_PAGE, index % PER_PAGE);
            let number = number(bytes, page, within)
                .ok_or_else(|| format!("page {page}, sector {within}, is torn or foreign"))?;
            let permitted = sector.now.map_or_else(|| sector.may.clone(), |now| vec![now]);
            if !permitted.contains(&number) {
                return Err(format!(
                    "page {page}, sector {within}, holds write {number}, not one of {permitted:?}"
                ));
            }
            sector.now = Some(number);
        }
        Ok(())
    }

    /// What a page is known to hold, if that is the same write everywhere.
    pub(crate) fn page(&self, page: usize) -> Option<Number> {
        let sectors = &self.0[page * PER_PAGE..][..PER_PAGE];
        sectors.iter().all(|sector| sector.now == sectors[0].now).then_some(sectors[0].now)?
    }
}

impl Sector {
    fn allow(&mut self, number: Number) {
        if !self.may.contains(&number) {
            self.may.push(number);
        }
    }
}

/// The bytes that a write puts into a page.
pub(crate) fn bytes(number: Number, page: usize) -> Vec<u8> {
    match number {
        0 => vec![0; PAGE],
        _ => record::bytes(number, page),
    }
}

/// The write that a sector is by.
fn number(bytes: &[u8], page: usize, sector: usize) -> Option<Number> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let mut numbers = record::words(bytes)
        .into_iter()
        .enumerate()
        .map(|(index, word)| record::number(word, page, sector * WORDS + index));
    let first = numbers.next()??;
    numbers.all(|number| number == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: Number) -> Vec<u8> {
        (0..PAGES).flat_map(|page| bytes(number, page)).collect()
    }

    fn holds(content: &Content, number: Number) -> bool {
        content.clone().check(&device(number)).is_ok()
    }

    #[test]
    fn flushed_write_must_be_there_and_later_ones_may_be() {
        let mut content = Content::of(0);
        for number in [1, 2] {
            (0..PAGES).for_each(|page| content.write(page, number));
            (0..PAGES).for_each(|page| content.written(page, number));
            assert!(holds(&content, number) && !holds(&content, number - 1));
            if number == 1 {
                content.flushed();
            }
        }
        content.crashed();
        assert_eq!([0, 1, 2].map(|number| holds(&content, number)), [false, true, true]);
    }

    #[test]
    fn what_was_read_and_then_flushed_must_be_there() {
        let mut content = Content::of(0);
        (0..PAGES).for_each(|page| content.write(page, 1));
        content.crashed();
        content.check(&device(1)).unwrap();
        content.flushed();
        content.crashed();
        assert!(holds(&content, 1) && !holds(&content, 0));
    }
}
