// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is told of the rounds' numbers.

/// The median, the least and the most.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    [sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]]
}
