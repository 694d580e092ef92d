// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM, in a process of its own, whose guest stores and flushes until it is killed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;

use guest_harness::{Random, start_again, started_again};
use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::record::{self, PAGE};
use crate::driver::Driver;
use crate::vmm::{Abilities, Vmm};

/// How many flushes may be in the queue.
const FLUSHES: usize = 4;
/// How many runs of pages are stored to, on average, between two of them.
const RUNS: u64 = 12;
/// How many pages a run may have.
const RUN: u64 = 8;

/// What is to be done.
#[derive(Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) socket: PathBuf,
    pub(super) ledger: PathBuf,
    pub(super) seed: u64,
    pub(super) pages: usize,
    /// The number of the first store.
    pub(super) first: u32,
}

/// The process that does it; dropping this kills it.
pub(super) struct Loader {
    child: Child,
    connection: UnixStream,
}

impl Loader {
    /// Starts it.
    pub(super) fn start(load: &Load) -> Self {
        let (child, mut connection) = start_again("power::store_and_flush").unwrap();
        writeln!(connection, "{}", serde_json::to_string(load).unwrap()).unwrap();
        Self { child, connection }
    }

    /// Waits until the first flush was answered, or the process has ended.
    pub(super) fn wait_until_begun(&self) {
        BufReader::new(&self.connection).read_line(&mut String::new()).unwrap();
    }

    /// Whether it has failed: it doesn't end by itself.
    pub(super) fn has_failed(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Kills it, without waiting for it to be gone: it may wait for a disk.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A flush that wasn't answered yet.
struct Flush {
    head: u32,
    /// What it vouches for, page and store.
    stores: Vec<(usize, u32)>,
}

/// In that process: does it.
pub(super) fn run() {
    let Some(connection) = started_again() else { return };
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line).unwrap();
    let load: Load = serde_json::from_str(&line).unwrap();
    let (mut random, ledger) = (Random::new(load.seed), Ledger::open(&load.ledger));
    let mut vmm = Vmm::start(&load.socket, Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    writeln!(&connection, "begun").unwrap();

    let mut flushes: [Option<Flush>; FLUSHES] = Default::default();
    let mut stores = Vec::new();
    for number in load.first.. {
        if random.one_in(RUNS) {
            let slot = match flushes.iter().position(Option::is_none) {
                Some(slot) => slot,
                None => take_answer(&mut vmm.driver, &mut flushes, &ledger),
            };
            let head = vmm.driver.add_flush(slot as u64).into();
            vmm.driver.publish();
            flushes[slot] = Some(Flush { head, stores: std::mem::take(&mut stores) });
            while vmm.driver.answers() > 0 || (random.one_in(2) && is_any(&flushes)) {
                take_answer(&mut vmm.driver, &mut flushes, &ledger);
            }
        }
        let start = usize::try_from(random.below(load.pages as u64)).unwrap();
        let len = usize::try_from(1 + random.below(RUN)).unwrap();
        for page in start..(start + len).min(load.pages) {
            ledger.store(page, number);
            vmm.store((page * PAGE) as u64, &record::bytes(number, page));
            stores.push((page, number));
        }
    }
}

fn is_any(flushes: &[Option<Flush>]) -> bool {
    flushes.iter().any(Option::is_some)
}

/// Waits for an answer, writes down what it says, and returns whose it was.
fn take_answer(driver: &mut Driver, flushes: &mut [Option<Flush>], ledger: &Ledger) -> usize {
    let (head, _) = driver.answer();
    let is_it = |flush: &Option<Flush>| flush.as_ref().is_some_and(|flush| flush.head == head);
    let slot = flushes.iter().position(is_it).unwrap();
    assert_eq!(driver.status(slot as u64), 0);
    let Flush { stores, .. } = flushes[slot].take().unwrap();
    stores.into_iter().for_each(|(page, number)| ledger.flush(page, number));
    slot
}
