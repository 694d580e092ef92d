// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Reads `256M` as QEMU does, in powers of 1024; shows both the human and the
/// exact figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

const SUFFIXES: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidSize;

impl fmt::Display for InvalidSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size is a number of bytes, or one with a suffix such as 256M, 4G or 1T")
    }
}

impl std::error::Error for InvalidSize {}

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let upper = text.to_ascii_uppercase();
        let suffixed =
            SUFFIXES.iter().find_map(|&(suffix, shift)| Some((upper.strip_suffix(suffix)?, shift)));
        let (digits, shift) = suffixed.unwrap_or((&upper, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidSize);
        }
        let count: u64 = digits.parse().or(Err(InvalidSize))?;
        count.checked_mul(1 << shift).map(Self).ok_or(InvalidSize)
    }
}

/// With the bytes behind it, where that isn't the same; `{:#}` is without them.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        match SUFFIXES.iter().find(|(_, shift)| bytes != 0 && bytes % (1 << shift) == 0) {
            Some((suffix, shift)) if f.alternate() => write!(f, "{} {suffix}iB", bytes >> shift),
            Some((suffix, shift)) => write!(f, "{} {suffix}iB ({bytes} bytes)", bytes >> shift),
            None => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_with_suffix_counts_in_powers_of_1024() {
        for (text, bytes) in [("4096", 4096), ("256M", 256 << 20), ("1t", 1 << 40), ("3k", 3072)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn size_that_is_none_is_refused() {
        for text in ["", "M", "-1", "+1", "1.5G", "1MB", "0x10", "99999999999T", "1 M"] {
            assert_eq!(text.parse::<ByteSize>(), Err(InvalidSize), "{text}");
        }
    }

    #[test]
    fn size_shown_is_human_and_exact() {
        assert_eq!(ByteSize(300 << 20).to_string(), "300 MiB (314572800 bytes)");
        assert_eq!(format!("{:#}", ByteSize(300 << 20)), "300 MiB");
        assert_eq!(ByteSize(5000).to_string(), "5000 bytes");
        assert_eq!(ByteSize(0).to_string(), "0 bytes");
    }
}
