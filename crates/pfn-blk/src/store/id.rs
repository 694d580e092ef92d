// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random identities: what tells a file's content from every other, and from itself at another time.

use std::fmt;
use std::io;
use std::num::NonZeroU128;

use rustix::rand::{GetRandomFlags, getrandom};

/// 128 random bits, of which two are never the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(NonZeroU128);

impl Id {
    /// A new one.
    pub(crate) fn random() -> io::Result<Self> {
        loop {
            let mut bytes = [0; 16];
            // As many as that are never cut short.
            getrandom(&mut bytes, GetRandomFlags::empty())?;
            if let Some(id) = Self::from_bytes(bytes) {
                return Ok(id);
            }
        }
    }

    /// The one that was written as these; none if they are blank.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        NonZeroU128::new(u128::from_le_bytes(bytes)).map(Self)
    }

    /// How it is written.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_le_bytes()
    }

    /// The one that is written so.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_plain);
        number.and_then(NonZeroU128::new).map(Self)
    }

    /// One for several in this order; the one itself where there is but one.
    pub(crate) fn of_all(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        let fold = |sum: u128, id: Self| sum.rotate_left(13) ^ id.0.get();
        NonZeroU128::new(all.into_iter().fold(0, fold)).map(Self)
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_read_as_it_was_written() {
        let id = Id::random().unwrap();
        assert_eq!(Id::from_bytes(id.to_bytes()), Some(id));
        assert_eq!(Id::parse(&id.to_string()), Some(id));
        for wrong in ["", "0", &"0".repeat(32), &format!("+{}", "1".repeat(31)), &"1".repeat(33)] {
            assert_eq!(Id::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn id_of_all_differs_by_their_order() {
        let [a, b] = [Id::random().unwrap(), Id::random().unwrap()];
        assert_eq!(Id::of_all([a]), Some(a));
        assert_ne!(Id::of_all([a, b]), Id::of_all([b, a]));
        assert_eq!(Id::of_all([]), None);
    }
}
