// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A logarithmic axis.

/// Where the numbers from `least` to `most` are, between the pixels `from` and `to`.
pub(crate) struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// For all of `values`, which are positive, and the round numbers around them.
    pub(crate) fn around(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let (least, most) = bounds(values);
        let below = rounds().filter(|&round| round <= least).fold(1e-3, f64::max);
        let above = rounds().filter(|&round| round >= most).fold(1e9, f64::min);
        Self { least: below, most: above, from, to }
    }

    /// For all of `values`, which are positive.
    pub(crate) fn exact(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let (least, most) = bounds(values);
        Self { least, most, from, to }
    }

    /// The pixel of `value`.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let part = (value / self.least).ln() / (self.most / self.least).ln();
        self.from + part * (self.to - self.from)
    }

    /// The round numbers on it.
    pub(crate) fn ticks(&self) -> impl Iterator<Item = f64> {
        let (least, most) = (self.least, self.most);
        rounds().filter(move |round| (least..=most).contains(round))
    }
}

/// 1, 2 and 5, times powers of ten.
fn rounds() -> impl Iterator<Item = f64> {
    (-3..=9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
}

fn bounds(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_reaches_to_round_numbers_and_is_logarithmic() {
        let axis = Axis::around([150.0, 7000.0].into_iter(), 300.0, 0.0);
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [100., 200., 500., 1000., 2000., 5000., 1e4]);
        let pixels = [100.0, 1000.0, 1e4].map(|value| axis.at(value).round());
        assert_eq!(pixels, [300.0, 150.0, 0.0]);
    }
}
