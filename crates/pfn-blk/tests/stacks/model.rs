// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: a list of pages.

use pfn_blk::{NrPages, Pgoff, PgoffRange};
use proptest::test_runner::Config as ProptestConfig;

/// What a page of a stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// A page of the store of that number.
    At(usize, u64),
    /// Kept by a target, of that number among all such pages.
    Kept(usize),
    Zero,
    Error,
}

/// A stack's pages, and what the stores hold: each page is filled with one byte.
pub(crate) struct Model {
    pub(crate) pages: Vec<Page>,
    pub(crate) stores: Vec<Vec<u8>>,
    /// What the pages hold that targets keep.
    pub(crate) kept: Vec<u8>,
}

impl Model {
    /// Does as a read must. What the pages hold, or that they can't be read.
    pub(crate) fn read(&self, start: usize, len: usize) -> Option<Vec<u8>> {
        let byte = |page: &Page| match *page {
            Page::At(store, at) => Some(self.stores[store][usize::try_from(at).unwrap()]),
            Page::Kept(number) => Some(self.kept[number]),
            Page::Zero => Some(0),
            Page::Error => None,
        };
        self.pages[start..start + len].iter().map(byte).collect()
    }

    /// Does as a write of `bytes`, one for each page, must: the pages up to the first that can't be
    /// written. Whether that was all.
    pub(crate) fn write(&mut self, start: usize, bytes: &[u8]) -> bool {
        for (page, byte) in self.pages[start..].iter().zip(bytes) {
            match *page {
                Page::At(store, at) => self.stores[store][usize::try_from(at).unwrap()] = *byte,
                Page::Kept(number) => self.kept[number] = *byte,
                Page::Zero => {}
                Page::Error => return false,
            }
        }
        true
    }
}

pub(crate) fn range(start: u64, len: u64) -> PgoffRange {
    let len = NrPages::try_new(len).unwrap();
    PgoffRange::try_new(Pgoff::try_new(start).unwrap(), len).unwrap()
}

/// A page for each byte, filled with it.
pub(crate) fn fill(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [*byte; 4096]).collect()
}

/// So many cases, unless `PROPTEST_CASES` asks for others.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let is_asked = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig { cases: if is_asked { default.cases } else { count }, ..default }
}
