// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What has happened so far: a line that changes on a terminal, a line each few seconds elsewhere.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::device::Finished;
use crate::event::Event;
use crate::ledger::Ledger;

/// How often to say something where lines stay.
const INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct Progress {
    seed: u64,
    began: Instant,
    said: Cell<Instant>,
    bar: ProgressBar,
    counts: RefCell<[u64; Event::ALL.len()]>,
    /// Of each device.
    verified: RefCell<Vec<(&'static str, u64)>>,
}

impl Progress {
    pub(crate) fn new(seed: u64) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        let began = Instant::now();
        Self {
            seed,
            began,
            said: Cell::new(began),
            bar,
            counts: RefCell::default(),
            verified: RefCell::default(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Counts an event, after which `ledger` is what a device's is.
    pub(crate) fn happened(&self, event: Event, device: &'static str, ledger: &Ledger) {
        self.counts.borrow_mut()[event as usize] += 1;
        let mut verified = self.verified.borrow_mut();
        verified.retain(|(name, _)| *name != device);
        verified.push((device, ledger.verified_kib));
        drop(verified);
        if std::io::stderr().is_terminal() {
            self.bar.set_message(self.to_string());
        } else if self.said.get().elapsed() >= INTERVAL {
            self.said.set(Instant::now());
            eprintln!("{self}");
        }
    }

    /// Says it all, once it is over.
    pub(crate) fn summarise(&self, devices: &[Finished]) {
        self.bar.finish_and_clear();
        eprintln!("{self}");
        for device in devices {
            let Finished { name, first, last, checks, verified_kib } = device;
            assert!(*verified_kib > 0, "{name}: nothing was verified");
            eprintln!(
                "{name}: {checks} checks found {:.1} MiB; the daemon held {first} first, {last} last",
                *verified_kib as f64 / 1024.0
            );
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s:", self.elapsed().as_secs())?;
        for (event, count) in Event::ALL.iter().zip(*self.counts.borrow()) {
            write!(f, " {count} {},", event.name())?;
        }
        let kib: u64 = self.verified.borrow().iter().map(|(_, kib)| kib).sum();
        write!(f, " {:.1} MiB verified; seed {}", kib as f64 / 1024.0, self.seed)
    }
}
