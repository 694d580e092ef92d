// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What cases write, where, and how they compare it.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::sys::{PAGE, PMD, Touch};

/// How much the ranges of [`RANGES`] need: more than two 2 MiB pages, and no whole number of pages.
pub(crate) const SPAN: usize = (2 * PMD) + 5000;

/// Offsets and lengths around every boundary there is: within a page, across two, whole pages, across
/// 2 MiB, whole 2 MiB, all.
pub(crate) const RANGES: [(usize, usize); 12] = [
    (0, 1),
    (1, PAGE - 1),
    (PAGE - 1, 2),
    ((3 * PAGE) - 7, 14),
    (5 * PAGE, PAGE),
    (8 * PAGE + 100, 3 * PAGE),
    (PMD - 3, 6),
    (PMD - PAGE, 2 * PAGE),
    (PMD, PMD),
    (PMD - 1, PMD + 2),
    (2 * PMD, 5000),
    (0, SPAN),
];

/// Random numbers that a seed repeats (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let number = self.next() % (end as u64);
        usize::try_from(number).unwrap_or_default()
    }
}

/// `len` bytes that no other seed makes, and none of which is 0.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes().map(|byte| byte.max(1)));
    }
    bytes.truncate(len);
    bytes
}

/// Shorter words for what cases do with files all the time.
pub(crate) trait Bytes {
    /// Reads `len` bytes that must be there.
    fn get(&self, at: usize, len: usize) -> Result<Vec<u8>>;
    /// Reads all there is.
    fn get_all(&self) -> Result<Vec<u8>>;
    /// Writes `bytes`.
    fn put(&self, at: usize, bytes: &[u8]) -> Result<()>;
    /// Calls `fallocate`.
    fn allocate(&self, how: FallocateFlags, at: usize, len: usize) -> io::Result<()>;
    /// Its size.
    fn size(&self) -> Result<usize>;
}

impl Bytes for File {
    fn get(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, at as u64).with_context(|| format!("read {at}+{len}"))?;
        Ok(bytes)
    }

    fn get_all(&self) -> Result<Vec<u8>> {
        let len = self.size()?;
        let mut beyond = [0];
        ensure!(self.read_at(&mut beyond, len as u64)? == 0, "there is something behind the end");
        self.get(0, len)
    }

    fn put(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let len = bytes.len();
        self.write_all_at(bytes, at as u64).with_context(|| format!("write {at}+{len}"))
    }

    fn allocate(&self, how: FallocateFlags, at: usize, len: usize) -> io::Result<()> {
        Ok(fallocate(self, how, at as u64, len as u64)?)
    }

    fn size(&self) -> Result<usize> {
        Ok(usize::try_from(self.metadata()?.len())?)
    }
}

/// Fails unless `got` is `expected`, and says where they begin to differ.
pub(crate) fn expect_same(what: impl Display, got: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(
        got.len() == expected.len(),
        "{what}: {} bytes, not the {} expected",
        got.len(),
        expected.len()
    );
    if got == expected {
        return Ok(());
    }
    let differ = |(got, expected): (&u8, &u8)| got != expected;
    let wrong = got.iter().zip(expected).filter(|&pair| differ(pair)).count();
    let Some(at) = got.iter().zip(expected).position(differ) else { return Ok(()) };
    let (got, expected) = (got[at], expected[at]);
    bail!("{what}: {wrong} bytes differ, the first at {at}: {got:#04x}, not {expected:#04x}")
}

/// Fails unless `got` is all zeroes.
pub(crate) fn expect_zeroes(what: impl Display, got: &[u8]) -> Result<()> {
    expect_same(what, got, &vec![0; got.len()])
}

/// Fails unless `result` is one of the errors `expected`.
pub(crate) fn expect_error<T>(
    what: impl Display,
    result: Result<T, impl Into<anyhow::Error>>,
    expected: &[Errno],
) -> Result<()> {
    let Err(error) = result else { bail!("{what}: went well, where {expected:?} was expected") };
    let error: anyhow::Error = error.into();
    let number = errno(&error);
    ensure!(
        number.is_some_and(|number| expected.contains(&number)),
        "{what}: {error:#}, where {expected:?} was expected"
    );
    Ok(())
}

/// The system's error that `error` is made of.
pub(crate) fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| match cause.downcast_ref::<io::Error>() {
        Some(error) => Errno::from_io_error(error),
        None => cause.downcast_ref().copied(),
    })
}

/// Fails unless a touch ended as `expected`.
pub(crate) fn expect_touch(what: impl Display, got: Touch, expected: Touch) -> Result<()> {
    ensure!(got == expected, "{what}: {got:?}, not {expected:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_of_two_seeds_differs_and_has_no_zeroes() {
        let [one, two] = [1, 2].map(|seed| noise(seed, 1001));
        assert_ne!(one, two);
        assert_eq!(one, noise(1, 1001));
        assert!(one.len() == 1001 && !one.contains(&0));
    }

    #[test]
    fn different_bytes_are_found_and_counted() {
        let error = expect_same("it", &[1, 2, 3, 4], &[1, 0, 3, 0]).unwrap_err();
        assert_eq!(error.to_string(), "it: 2 bytes differ, the first at 1: 0x02, not 0x00");
        assert!(expect_same("it", &[1], &[1, 0]).is_err());
        assert!(expect_zeroes("it", &[0, 0]).is_ok() && expect_zeroes("it", &[0, 1]).is_err());
    }

    #[test]
    fn error_is_expected_by_its_number_whatever_wraps_it() {
        let full = || Err::<(), _>(io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(expect_error("it", full(), &[Errno::DQUOT, Errno::NOSPC]).is_ok());
        assert!(expect_error("it", full().context("writing"), &[Errno::NOSPC]).is_ok());
        assert!(expect_error("it", full(), &[Errno::DQUOT]).is_err());
        assert!(expect_error("it", anyhow::Ok(()), &[Errno::DQUOT]).is_err());
    }
}
