// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power cuts: what was flushed is there when the machine is on again, on disks that lose, reorder
//! and tear what wasn't synced.
//!
//! Three processes are at it beside the daemon: the disks', the VMM's, which stores and flushes, and
//! the test's, which has the power cut after so many writes and syncs, kills the others, and looks
//! at what the next daemon makes of what is left on the media.

mod ledger;
mod live;
mod load;
mod operations;
mod record;
mod stack;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use guest_harness::{Daemon, Random, Rounds, VolatileDisks, serve_volatile_disks};
use rustix::process::Signal;
use tempfile::TempDir;

use self::ledger::{Entry, Ledger};
use self::live::Media;
use self::load::{Load, Loader};
use self::record::{PAGE, WORDS};
use self::stack::{PAGES, Stack};
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
#[ignore = "no test: the process that serves the disks of the others"]
fn serve_disks() {
    serve_volatile_disks().unwrap();
}

#[test]
#[ignore = "no test: the process of the others' VMM"]
fn store_and_flush() {
    load::run();
}

/// The power is cut again and again while a stack is served.
struct Subject {
    stack: Stack,
    dir: TempDir,
    random: Random,
    /// Disks that say that they have synced, and don't.
    lying: &'static [&'static str],
    /// What was found the last time.
    held: Vec<u64>,
    /// The number of the next store.
    next: u32,
}

impl Subject {
    fn new(stack: Stack, seed: u64, lying: &'static [&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (random, held) = (Random::new(seed), Vec::new());
        Self { stack, dir, random, lying, held, next: 2 }
    }

    fn media(&self) -> PathBuf {
        self.dir.path().join("media")
    }

    /// Serves, stores and flushes until the power is cut, and checks what is left. `None` where there
    /// is no FUSE to be had; an error if something is missing.
    fn round(&mut self) -> Option<Result<(), String>> {
        let is_new = self.held.is_empty() || self.random.one_in(6);
        if is_new {
            // There are none at first.
            let _ = fs::remove_dir_all(self.media());
            fs::create_dir(self.media()).unwrap();
            self.stack.make_media(&self.media());
            self.held = self.stack.first_content();
        }
        let ledger = Ledger::create(&self.dir.path().join("ledger"), PAGES);
        let cut = self.run_until_cut(is_new)?;
        let entries = ledger.read();
        let flushed = entries.iter().filter(|entry| entry.flushed > 0).count();
        let stored = entries.iter().filter(|entry| entry.stored > entry.flushed).count();
        eprintln!("{:?}: {cut}; flushed {flushed} pages, stored to {stored} since", self.stack);
        let checked = self.check(&entries);
        self.next = entries.iter().map(|entry| entry.stored + 1).fold(self.next, u32::max);
        Some(checked)
    }

    fn run_until_cut(&mut self, is_new: bool) -> Option<String> {
        let seed = self.random.number();
        let disks = VolatileDisks::start("power::serve_disks", self.dir.path(), seed, self.lying);
        let mut disks = disks.unwrap()?;
        // Now and then while the daemon begins, where it makes headers and maps on new media.
        let early = self.random.one_in(if is_new { 2 } else { 8 });
        if early {
            disks.cut_after(self.random.below(8)).unwrap();
        }
        let mut arguments = self.stack.arguments(|name| disks.path(name), self.dir.path());
        let control = self.dir.path().join("control");
        arguments.extend(["--control".into(), control.clone().into()]);
        let started = disks.unless_cut(|| Daemon::start_served(DAEMON, arguments)).unwrap();
        let Some(daemon) = started else { return Some("cut while it began".to_owned()) };
        let daemon = daemon.unwrap()?;
        let mut loader = Loader::start(&Load {
            socket: daemon.socket().to_owned(),
            ledger: self.dir.path().join("ledger"),
            seed: self.random.number(),
            pages: PAGES,
            first: self.next,
        });
        let cows = live::COWS.map(|cow| disks.path(cow));
        let random = Random::new(self.random.number());
        let operate = move || live::operate(&control, &cows, random);
        let operator = (self.stack == Stack::Snapshots).then(|| thread::spawn(operate));
        let has_failed = || operator.as_ref().is_some_and(thread::JoinHandle::is_finished);
        if !early {
            loader.wait_until_begun();
            match self.random.one_in(2) {
                true => disks.cut_after(self.random.below(300)).unwrap(),
                false => disks.cut_in_sync_after(self.random.below(20)).unwrap(),
            }
        }
        let cut = disks.wait_for_cut_or(|| loader.has_failed() || has_failed()).unwrap();
        loader.kill();
        daemon.signal(Signal::KILL).unwrap();
        // They may wait for the disks.
        drop(disks);
        let said = operator.map(|operator| operator.join().unwrap());
        let cut = cut.unwrap_or_else(|| {
            panic!("the VMM or the operator failed: {said:?}; the daemon says:\n{}", daemon.log())
        });
        daemon.kill(PATIENCE).unwrap();
        Some(cut)
    }

    /// Has the next daemon serve what is on the media, and looks at it.
    fn check(&mut self, entries: &[Entry]) -> Result<(), String> {
        let dir = self.dir.path().to_owned();
        let media = Media::new(&dir);
        let mut is_origin = self.stack == Stack::Snapshots && media.is_origin();
        let mut arguments = self.stack.arguments(|name| dir.join("disks").join(name), &dir);
        if is_origin && self.random.one_in(2) {
            media.merge()?;
            is_origin = media.is_origin();
        } else if is_origin && self.random.one_in(2) {
            // Else it is found by its mark.
            arguments.extend(["--overlay".into(), dir.join("disks/cow").into()]);
        }
        let daemon = Daemon::start(DAEMON, arguments).map_err(|error| format!("{error:#}"))?;
        let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
        if vmm.driver.flush() != 0 {
            return Err("a flush failed".to_owned());
        }
        let mut bytes = vec![0; PAGE];
        for (page, entry) in entries.iter().enumerate() {
            vmm.load((page * PAGE) as u64, &mut bytes);
            let before = &mut self.held[page * WORDS..][..WORDS];
            check_page(page, *entry, self.next, before, &record::words(&bytes))?;
        }
        drop(vmm);
        if self.stack == Stack::Mirror && self.random.one_in(2) {
            // What it has copied so far is there; the next one has the rest to do.
            daemon.kill(PATIENCE).unwrap();
            return Ok(());
        }
        if daemon.log().contains("mirror: comparing") {
            daemon.wait_until_logged("mirror: all legs are the same").unwrap();
        }
        let (status, log) = daemon.terminate().unwrap();
        assert!(status.success(), "{log}");
        if is_origin {
            media.merge()?;
        }
        self.check_media()
    }

    /// That what is written twice is the same, and what is not to be written as it was.
    fn check_media(&self) -> Result<(), String> {
        let read = |name: &str| record::words(&fs::read(self.media().join(name)).unwrap());
        match self.stack {
            Stack::Mirror if read("one") != self.held => Err("the first leg differs".to_owned()),
            Stack::Mirror if read("other") != self.held => Err("the second leg differs".to_owned()),
            Stack::Snapshots if read("one") != self.held => Err("the file differs".to_owned()),
            Stack::Overlay if read("base") != self.stack.first_content() => {
                Err("the base was changed".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Checks that each word of a page is of the last store that was flushed, or a later one; or if there
/// was none, what it was `before`; and takes it for what it is before the next time. `first` was the
/// first store of the round.
fn check_page(
    page: usize,
    entry: Entry,
    first: u32,
    before: &mut [u64],
    now: &[u64],
) -> Result<(), String> {
    for (index, (before, now)) in before.iter_mut().zip(now).enumerate() {
        let is_kept = entry.flushed == 0 && before == now;
        let wanted = first.max(entry.flushed)..=entry.stored;
        let number = record::number(*now, page, index);
        if !is_kept && !number.is_some_and(|number| wanted.contains(&number)) {
            return Err(format!(
                "page {page}, word {index}, is of {number:?} ({now:#x}), not of {wanted:?}; it was \
                 {before:#x} before"
            ));
        }
        *before = *now;
    }
    Ok(())
}

/// Cuts the power so often, on disks that are carried on.
fn flushed_pages_survive(stack: Stack) {
    let rounds = Rounds::from_environment("VHOST_PMEM_POWER", 12);
    let mut subject = Subject::new(stack, rounds.seed, &[]);
    for round in 0..rounds.count {
        match subject.round() {
            None => return,
            Some(Err(missing)) => panic!("round {round}: {missing}"),
            Some(Ok(())) => {}
        }
    }
}

#[test]
fn direct_file_keeps_what_was_flushed_over_power_cuts() {
    flushed_pages_survive(Stack::Direct);
}

#[test]
fn striped_files_keep_what_was_flushed_over_power_cuts() {
    flushed_pages_survive(Stack::Striped);
}

#[test]
fn served_file_keeps_what_was_flushed_over_power_cuts() {
    flushed_pages_survive(Stack::Served);
}

#[test]
fn overlay_keeps_what_was_flushed_over_power_cuts() {
    flushed_pages_survive(Stack::Overlay);
}

#[test]
fn mirror_keeps_what_was_flushed_over_power_cuts_on_both_legs() {
    flushed_pages_survive(Stack::Mirror);
}

#[test]
fn file_keeps_what_was_flushed_while_snapshots_are_taken_and_merged_over_power_cuts() {
    if live::can_mark() {
        flushed_pages_survive(Stack::Snapshots);
    }
}

/// These tests can fail: a disk that doesn't sync is found out.
#[test]
fn disk_that_lies_is_caught() {
    let liars: [(Stack, &[&str]); 4] = [
        (Stack::Direct, &["one"]),
        (Stack::Striped, &["other"]),
        (Stack::Overlay, &["cow"]),
        // One of them alone loses its label with its data, and is copied to; without the log they
        // are compared.
        (Stack::Mirror, &["one", "other"]),
    ];
    for (stack, lying) in liars {
        let mut subject = Subject::new(stack, 1, lying);
        let caught = (0..30).find_map(|_| match subject.round() {
            None => Some("skipped".to_owned()),
            Some(checked) => checked.err(),
        });
        eprintln!("{stack:?}, lying {lying:?}: {}", caught.expect("nobody noticed"));
    }
}
