// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What flushes are to cost, and whether they do. Shown, never asserted: a shared machine has moods.

use std::fmt;

use serde::Serialize;

use crate::changes::{MOST, Order};
use crate::tally::Tally;
use crate::{BARE, OURS, PEER};

/// One of them.
#[derive(Serialize)]
pub(crate) struct Target {
    what: String,
    value: f64,
    at_most: Option<f64>,
    at_least: Option<f64>,
    met: bool,
}

/// All that can be told from `tally`.
pub(crate) fn compare(tally: &Tally) -> Vec<Target> {
    Order::ALL.into_iter().flat_map(|order| of(tally, order.name()).into_iter().flatten()).collect()
}

fn of(tally: &Tally, order: &str) -> [Option<Target>; 5] {
    let rate = |who, in_flight| tally.rate(order, who, in_flight);
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let at_most = |what: &str, value: Option<f64>, limit: f64| {
        let (what, value) = (format!("{order}: {what}"), value?);
        Some(Target { what, value, at_most: Some(limit), at_least: None, met: value <= limit })
    };
    let at_least = |what: &str, value: Option<f64>, limit: f64| {
        let (what, value) = (format!("{order}: {what}"), value?);
        Some(Target { what, value, at_most: None, at_least: Some(limit), met: value >= limit })
    };
    let in_turns = format!("{order}, in turns");
    [
        at_most("µs that are added to fdatasync, p50", tally.added(&in_turns, OURS, BARE), 15.0),
        at_least("64 in flight beside one, rate", ratio(rate(OURS, MOST), rate(OURS, 1)), 20.0),
        at_most("64 in flight, fdatasyncs each", tally.calls(order, OURS, MOST), 0.05),
        at_least(
            "64 in flight beside QEMU's, rate",
            ratio(rate(OURS, MOST), rate(PEER, MOST)),
            3.0,
        ),
        at_least("one in flight beside QEMU's, rate", ratio(rate(OURS, 1), rate(PEER, 1)), 1.0),
    ]
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, value, at_most, at_least, met } = self;
        write!(f, "{what}: {value:.3}")?;
        if let Some(limit) = at_most {
            write!(f, ", at most {limit}")?;
        }
        if let Some(limit) = at_least {
            write!(f, ", at least {limit}")?;
        }
        f.write_str(if *met { ": met" } else { ": not met" })
    }
}
