// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is stored: pages of which each word tells which page it is of, and which store it was by.

pub(super) const PAGE: usize = 4096;
/// Words of a page: what a store puts there at once.
pub(super) const WORDS: usize = PAGE / 8;

/// The word at `index` of `page`, by the store of that number.
pub(super) fn word(number: u32, page: usize, index: usize) -> u64 {
    (u64::from(number) << 32) | (page * WORDS + index) as u64
}

/// The number of the store that a word is by, if it is where it belongs.
pub(super) fn number(word: u64, page: usize, index: usize) -> Option<u32> {
    let number = (word >> 32) as u32;
    (word == self::word(number, page, index)).then_some(number)
}

/// All of a page.
pub(super) fn bytes(number: u32, page: usize) -> Vec<u8> {
    (0..WORDS).flat_map(|index| word(number, page, index).to_le_bytes()).collect()
}

/// The words of some pages.
pub(super) fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}
