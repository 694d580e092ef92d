// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes through a window of ours: a store, and a flush.

use std::collections::VecDeque;
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::calls::Calls;
use crate::changes::{Changes, Device, Sample};
use crate::guest::{Guest, store};
use crate::image::{Image, PAGE};
use crate::process;

/// How it is served.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// By a direct window, on folios as large as the kernel likes.
    Direct,
    /// By a direct window, on folios of one page each.
    Prefetched,
    /// By a served window, whose folios are always of one page each.
    Served,
}

pub(crate) struct Pmem {
    guest: Guest,
    calls: Calls,
    /// The requests on their way: slots by head, in order. Ours answers in order.
    sent: VecDeque<(u16, usize)>,
    /// Whether there are some that it wasn't told of.
    unpublished: bool,
    /// Whether the driver looks for answers without sleeping.
    polls: bool,
}

impl Pmem {
    /// Serves `image`, all of which is in the page cache, and has been loaded.
    pub(crate) fn start(image: &Image, how: How) -> Result<Self> {
        image.warm()?;
        let how: &[&str] = match how {
            How::Direct => &["--window", "direct"],
            How::Prefetched => &["--window", "direct", "--prefetch"],
            How::Served => &["--window", "served"],
        };
        let file = ["--file".as_ref(), image.path().as_os_str()];
        let guest = Guest::start(
            &file.into_iter().chain(how.iter().map(AsRef::as_ref)).collect::<Vec<_>>(),
        )?;
        guest.with(|memory| {
            (0..image.pages()).try_for_each(|at| crate::guest::load(&memory, at).map(drop))
        })?;
        Ok(Self::new(guest))
    }

    /// Of a guest that is there.
    pub(crate) fn new(mut guest: Guest) -> Self {
        let calls = Calls::new(guest.driver());
        Self { guest, calls, sent: VecDeque::new(), unpublished: false, polls: false }
    }

    /// Has the driver look for answers, and want no calls; or sleep until it is called.
    pub(crate) fn set_polls(&mut self, polls: bool) {
        self.polls = polls;
        self.guest.driver().want_calls(!polls);
    }

    pub(crate) fn end(self) -> Result<()> {
        self.guest.end()
    }

    /// Stores to `dirty` pages in a row, and flushes, `count` times; what the flush took.
    pub(crate) fn flushes(&mut self, dirty: usize, count: usize) -> Result<Vec<Duration>> {
        (0..count)
            .map(|number| {
                self.dirty(dirty, number)?;
                self.guest.flush()
            })
            .collect()
    }

    /// The same, synced by ourselves.
    pub(crate) fn syncs(&mut self, dirty: usize, count: usize) -> Result<Vec<Duration>> {
        let file = self.guest.file()?;
        (0..count)
            .map(|number| {
                self.dirty(dirty, number)?;
                let began = Instant::now();
                file.sync_data()?;
                Ok(began.elapsed())
            })
            .collect()
    }

    fn dirty(&self, pages: usize, number: usize) -> Result<()> {
        let bytes = [u8::try_from(number % 251)?; PAGE];
        self.guest.with(|memory| (0..pages).try_for_each(|at| store(&memory, at, &bytes)))
    }

    /// The same changes with no daemon: stored through the very mapping, and made durable by `sync`.
    pub(crate) fn bare(
        &self,
        changes: &mut Changes,
        count: usize,
        sync: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Sample> {
        let mut bytes = [0; PAGE];
        let mut sample = Sample::default();
        let written = process::disk_written()?;
        let start = Instant::now();
        for _ in 0..count {
            let began = Instant::now();
            let page = changes.next(&mut bytes);
            self.guest.with(|memory| store(&memory, page, &bytes))?;
            sync()?;
            sample.took.push(began.elapsed());
        }
        sample.elapsed = start.elapsed();
        sample.calls = count as u64;
        sample.written = process::disk_written()? - written;
        Ok(sample)
    }

    /// The file that is mapped.
    pub(crate) fn file(&self) -> Result<File> {
        self.guest.file()
    }
}

impl Device for Pmem {
    fn begin(&mut self, slot: usize, page: usize, bytes: &[u8; PAGE]) -> Result<()> {
        self.guest.with(|memory| store(&memory, page, bytes))?;
        let head = self.guest.driver().add_flush(slot as u64);
        self.sent.push_back((head, slot));
        self.unpublished = true;
        Ok(())
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.guest.driver().publish();
        }
    }

    fn durable(&mut self) -> Result<Option<usize>> {
        let driver = self.guest.driver();
        if driver.answers() == 0 {
            return Ok(None);
        }
        let (answered, _) = driver.answer();
        let sent = self.sent.pop_front();
        let slot = sent.filter(|&(head, _)| u32::from(head) == answered).map(|(_, slot)| slot);
        let failed = slot.is_none_or(|slot| driver.status(slot as u64) != 0);
        ensure!(!failed, "a flush failed:\n{}", self.guest.daemon().log());
        Ok(slot)
    }

    fn wait(&mut self) -> Result<()> {
        while self.polls && self.guest.driver().answers() == 0 {
            std::hint::spin_loop();
        }
        self.calls.wait(self.guest.driver())
    }

    fn calls(&mut self) -> u64 {
        self.calls.count(self.guest.driver())
    }

    fn pid(&self) -> u32 {
        self.guest.daemon().pid()
    }
}
