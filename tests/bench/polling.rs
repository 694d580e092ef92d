// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What polling saves: a daemon that looks for requests, and a driver that looks for answers.
//!
//! Each has a processor of its own, as whoever polls must have. Who syncs has the same one in all
//! rows, with a daemon and without: one that the disk doesn't interrupt is woken by the one that it
//! does, which takes longer by more than is measured here.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::changes::{self, Changes, Device, Order, Sample};
use crate::guest::{Guest, load};
use crate::image::Image;
use crate::pinned::{Cpus, pin_process};
use crate::pmem::Pmem;
use crate::spinner::Spinner;
use crate::tally::Tally;
use crate::{BARE, OURS, SHORT_TURN};

/// How long the daemon looks.
const MICROSECONDS: &str = "200";

/// Who of the two looks, and who sleeps.
pub(crate) const DAEMON: &str = "vhost-pmemd --poll-us 200";
pub(crate) const BOTH: &str = "vhost-pmemd --poll-us 200, and a driver that polls";
/// What another process takes at least.
pub(crate) const SPINNER: &str = "fdatasync, by a process that polls";

/// What a load is called, of which all have a share.
pub(crate) fn name(order: Order) -> String {
    format!("{}, single pages, polling, in turns", order.name())
}

/// One change in flight through daemons that poll and do not, and without one, in short turns; on
/// images that are cached in single pages.
pub(crate) fn measure(images: &[Image; 2], time: Duration, tally: &mut Tally) -> Result<()> {
    let [polled, other] = images;
    let mut polling = start(polled, &["--poll-us", MICROSECONDS])?;
    let mut sleeping = start(other, &[])?;
    let file = polling.file()?;
    let cpus = Cpus::get()?;
    let mut spinner = Spinner::start(polled.path())?;
    for pid in [polling.pid(), sleeping.pid(), spinner.pid()] {
        pin_process(pid, cpus.last)?;
    }
    for order in Order::ALL {
        let mut changes = [0; 2].map(|_| Changes::new(order, polled.pages()));
        let [changes, others] = &mut changes;
        let mut samples = [BOTH, DAEMON, OURS, BARE, SPINNER].map(|who| (who, Sample::default()));
        let began = Instant::now();
        while began.elapsed() < time {
            for (who, sample) in &mut samples {
                polling.set_polls(*who == BOTH);
                let cpu = if *who == BARE { cpus.last } else { cpus.first };
                sample.extend(cpus.on(cpu, || match *who {
                    OURS => changes::run(&mut sleeping, others, 1, SHORT_TURN, time),
                    BARE => polling.bare(changes, SHORT_TURN, &mut || Ok(file.sync_data()?)),
                    SPINNER => {
                        spinner.awake(|spinner| {
                            polling.bare(changes, SHORT_TURN, &mut || spinner.sync())
                        })
                    }
                    _ => changes::run(&mut polling, changes, 1, SHORT_TURN, time),
                })?);
            }
        }
        for (who, sample) in samples {
            tally.add(&name(order), who, 1, sample);
        }
    }
    [polling, sleeping].into_iter().try_for_each(Pmem::end)
}

/// A guest that has loaded all of an image.
fn start(image: &Image, args: &[&str]) -> Result<Pmem> {
    let file = ["--file".as_ref(), image.path().as_os_str()];
    let guest =
        Guest::start(&file.into_iter().chain(args.iter().map(AsRef::as_ref)).collect::<Vec<_>>())?;
    guest.with(|memory| (0..image.pages()).try_for_each(|at| load(&memory, at).map(drop)))?;
    Ok(Pmem::new(guest))
}
