// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit of work: 4 KiB are changed, and made durable. Some of them are kept in flight.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::image::PAGE;
use crate::process;

/// The most that are kept in flight: each takes two of a queue's 128 descriptors.
pub(crate) const MOST: usize = 64;

/// What makes changes durable, as a guest's driver sees it.
pub(crate) trait Device {
    /// Begins to change `page` in `slot`, which is free. It isn't told yet.
    fn begin(&mut self, slot: usize, page: usize, bytes: &[u8; PAGE]) -> Result<()>;

    /// Tells it of what has begun.
    fn publish(&mut self);

    /// The slot of a change that has become durable, if there is one. Whatever else is to be sent
    /// for a change is sent with the next `publish`.
    fn durable(&mut self) -> Result<Option<usize>>;

    /// Sleeps until it calls, unless there is an answer already.
    fn wait(&mut self) -> Result<()>;

    /// How often it has called: the sum of what was read from its eventfd.
    fn calls(&mut self) -> u64;

    /// The process that does it.
    fn pid(&self) -> u32;
}

/// Which pages are changed. No page comes up twice before all have, where their number is a power
/// of two.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As a log is written.
    Row,
    /// As a database's pages are.
    Scattered,
}

impl Order {
    pub(crate) const ALL: [Self; 2] = [Self::Row, Self::Scattered];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Row => "in a row",
            Self::Scattered => "here and there",
        }
    }
}

/// The changes of one file. Each has a number, which the page then holds.
pub(crate) struct Changes {
    order: Order,
    pages: usize,
    number: usize,
}

impl Changes {
    pub(crate) fn new(order: Order, pages: usize) -> Self {
        // Other numbers than the file has, and other pages than the other order begins with.
        let number = if order == Order::Row { pages / 4 } else { 3 * pages };
        Self { order, pages, number }
    }

    /// The next page to change, and what it is to hold.
    pub(crate) fn next(&mut self, bytes: &mut [u8; PAGE]) -> usize {
        self.number += 1;
        for at in [0, PAGE - 8] {
            bytes[at..at + 8].copy_from_slice(&self.number.to_le_bytes());
        }
        match self.order {
            Order::Row => self.number % self.pages,
            // Any odd number will do.
            Order::Scattered => self.number.wrapping_mul(0x9e37_79b1) % self.pages,
        }
    }
}

/// What a run of changes took.
#[derive(Default)]
pub(crate) struct Sample {
    /// From before the change to its being durable, each.
    pub(crate) took: Vec<Duration>,
    /// All of it, from the first to the last.
    pub(crate) elapsed: Duration,
    pub(crate) calls: u64,
    /// The processor's time that the device's process took.
    pub(crate) cpu: Duration,
    /// Bytes that the disk was given, by whomever.
    pub(crate) written: u64,
}

impl Sample {
    /// Adds another run.
    pub(crate) fn extend(&mut self, other: Self) {
        self.took.extend(other.took);
        self.elapsed += other.elapsed;
        self.calls += other.calls;
        self.cpu += other.cpu;
        self.written += other.written;
    }
}

/// Keeps `in_flight` changes on their way, each that is durable replaced by a new one, until there
/// were `count`, or `time` is over.
pub(crate) fn run(
    device: &mut impl Device,
    changes: &mut Changes,
    in_flight: usize,
    count: usize,
    time: Duration,
) -> Result<Sample> {
    let mut bytes = [0; PAGE];
    let mut took = Vec::with_capacity(count.min(1 << 20));
    let pid = device.pid();
    let (calls, cpu, written) = (device.calls(), process::cpu(pid)?, process::disk_written()?);
    let start = Instant::now();
    let mut began = vec![start; in_flight];
    let mut left = count;
    let mut outstanding = 0;
    for (slot, began) in began.iter_mut().enumerate().take(left) {
        *began = Instant::now();
        let page = changes.next(&mut bytes);
        device.begin(slot, page, &bytes)?;
        outstanding += 1;
        left -= 1;
    }
    device.publish();
    while outstanding > 0 {
        device.wait()?;
        while let Some(slot) = device.durable()? {
            let now = Instant::now();
            took.push(now - began[slot]);
            if left == 0 || now - start >= time {
                outstanding -= 1;
                continue;
            }
            left -= 1;
            began[slot] = now;
            let page = changes.next(&mut bytes);
            device.begin(slot, page, &bytes)?;
        }
        device.publish();
    }
    let elapsed = start.elapsed();
    let calls = device.calls() - calls;
    let (cpu, written) = (process::cpu(pid)? - cpu, process::disk_written()? - written);
    Ok(Sample { took, elapsed, calls, cpu, written })
}
