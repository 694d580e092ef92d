// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What flushes are to cost, and whether they do. Shown, never asserted: a shared machine has moods.

use std::fmt;

use serde::Serialize;

use crate::changes::{MOST, Order};
use crate::polling;
use crate::tally::Tally;
use crate::{BARE, OURS, PEER, PREFETCHED, SERVED};

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
    let orders = || Order::ALL.into_iter().map(Order::name);
    let added = orders()
        .flat_map(|order| [order.to_owned(), format!("{order}, --prefetch")])
        .filter_map(|what| added(tally, &what));
    // Another process on another processor has its price, whatever it does.
    let polled = Order::ALL.into_iter().flat_map(|order| {
        [BARE, polling::SPINNER].map(|beside| {
            let value = tally.added(&polling::name(order), polling::BOTH, beside)?;
            let what =
                format!("{}: µs that are added to {beside}, both polling, p50", order.name());
            Some(Target { what, value, at_most: Some(5.0), at_least: None, met: value <= 5.0 })
        })
    });
    let polled = polled.flatten();
    let ours = [OURS, PREFETCHED, SERVED];
    let rates = ours.into_iter().flat_map(|who| orders().map(move |order| (who, order)));
    added.chain(polled).chain(rates.flat_map(|(who, order)| rates_of(tally, who, order))).collect()
}

fn added(tally: &Tally, what: &str) -> Option<Target> {
    let value = tally.added(&format!("{what}, in turns"), OURS, BARE)?;
    let what = format!("{what}: µs that are added to fdatasync, p50");
    Some(Target { what, value, at_most: Some(15.0), at_least: None, met: value <= 15.0 })
}

fn rates_of(tally: &Tally, who: &str, order: &str) -> Vec<Target> {
    let rate = |who, in_flight| tally.rate(order, who, in_flight);
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let at_most = |what: &str, value: Option<f64>, limit: f64| {
        let (what, value) = (format!("{who}, {order}: {what}"), value?);
        Some(Target { what, value, at_most: Some(limit), at_least: None, met: value <= limit })
    };
    let at_least = |what: &str, value: Option<f64>, limit: f64| {
        let (what, value) = (format!("{who}, {order}: {what}"), value?);
        Some(Target { what, value, at_most: None, at_least: Some(limit), met: value >= limit })
    };
    let all = [
        at_least("64 in flight beside one, rate", ratio(rate(who, MOST), rate(who, 1)), 20.0),
        at_most("64 in flight, fdatasyncs each", tally.calls(order, who, MOST), 0.05),
        at_least("64 in flight beside QEMU's, rate", ratio(rate(who, MOST), rate(PEER, MOST)), 3.0),
        at_least("one in flight beside QEMU's, rate", ratio(rate(who, 1), rate(PEER, 1)), 1.0),
    ];
    all.into_iter().flatten().collect()
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
