// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second, plain reading of the configuration space, to hold the first one against: virtio 1.3,
//! section 5.19.4.

use crate::spec::Config;

/// Any bytes, taken for a configuration and a part of it that is asked for: what is read is that part,
/// or nothing if it isn't all there.
pub(crate) fn check(data: &[u8]) {
    let mut words = data.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let mut word = || words.next().unwrap_or_default();
    let config = Config { start: word(), size: word() };
    let [mut offset, mut len] = [word(), word()];
    // Now and then far out.
    for bound in [&mut offset, &mut len] {
        if *bound >> 63 == 0 {
            *bound %= 20;
        }
    }
    let mut expected = Vec::new();
    let mut is_there = true;
    // As many as decide the matter.
    for index in 0..u128::from(len.min(17)) {
        let at = u128::from(offset) + index;
        let byte = match at {
            0..8 => config.start >> (8 * at),
            8..16 => config.size >> (8 * (at - 8)),
            _ => {
                is_there = false;
                break;
            }
        };
        expected.push(u8::try_from(byte & 0xff).unwrap());
    }
    is_there &= offset <= 16;
    let [offset, len] = [offset, len].map(|bound| usize::try_from(bound).unwrap());
    assert_eq!(config.read(offset, len), is_there.then_some(expected), "{offset} {len}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_part_of_the_config_is_read_as_by_the_oracle(
            words in proptest::collection::vec(any::<u64>(), 4),
            near in 0u8..4,
        ) {
            let mut words = words;
            for (index, word) in words[2..].iter_mut().enumerate() {
                if near & (1 << index) != 0 {
                    *word >>= 1;
                }
            }
            let data: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            super::check(&data);
        }
    }
}
