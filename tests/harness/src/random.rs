// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chance that can be repeated.

use std::time::SystemTime;

/// A random number generator that a seed repeats: SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The one of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// True once in `sides` times.
    pub fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    /// Brings `items` into any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).expect("an index"));
        }
    }
}

/// How often a test that is never through does what it does, and by which chance.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// How often.
    pub count: u64,
    /// The seed.
    pub seed: u64,
}

impl Rounds {
    /// What `{prefix}_ROUNDS` and `{prefix}_SEED` in the environment say; else `count` rounds, and a
    /// seed of this moment's. Prints both, so that they can be repeated.
    ///
    /// # Panics
    ///
    /// If one of them is no number.
    #[must_use]
    pub fn from_environment(prefix: &str, count: u64) -> Self {
        Self::from_environment_or(prefix, count, now())
    }

    /// The same with the seed `or`, for a test that is to do the same each time unless it is asked to do
    /// something else.
    ///
    /// # Panics
    ///
    /// If one of them is no number.
    #[must_use]
    pub fn from_environment_or(prefix: &str, count: u64, or: u64) -> Self {
        let variable = |name: &str| {
            let value = std::env::var(name).ok()?;
            Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
        };
        let names = ["ROUNDS", "SEED"].map(|name| format!("{prefix}_{name}"));
        let count = variable(&names[0]).unwrap_or(count);
        let seed = variable(&names[1]).unwrap_or(or);
        eprintln!("{}={count} {}={seed}", names[0], names[1]);
        Self { count, seed }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.subsec_nanos().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_order_and_loses_nothing() {
        let shuffled = |seed| {
            let mut items: Vec<_> = (0..100).collect();
            Random::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(1), shuffled(1));
        assert_ne!(shuffled(1), shuffled(2));
        let mut items = shuffled(3);
        items.sort_unstable();
        assert!(items.into_iter().eq(0..100));
    }
}
