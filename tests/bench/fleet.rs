// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many devices at once, each of a daemon of its own, on a file of its own.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::changes::{self, Changes, Device, Order, Sample};
use crate::footprint::Footprint;
use crate::guest::{self, Guest, load, store};
use crate::image::{Image, PAGE};
use crate::pmem::Pmem;
use crate::process;
use crate::results::Window;

/// Some changes one behind another, then the next one's turn.
const SHORT_TURN: usize = 16;

/// One of them.
pub(crate) struct Member {
    pmem: Pmem,
    changes: Changes,
    bare: Bare,
    /// How long it took until it waited for a frontend, and until its pages were mapped.
    began: [Duration; 2],
}

impl Member {
    fn start(image: &Image, window: Window) -> Result<Self> {
        let start = Instant::now();
        let daemon = guest::start(&[
            "--file".as_ref(),
            image.path().as_os_str(),
            "--window".as_ref(),
            window.word().as_ref(),
        ])?;
        let ready = start.elapsed();
        let guest = Guest::attach(daemon)?;
        let mapped = start.elapsed();
        guest.with(|memory| (0..image.pages()).try_for_each(|at| load(&memory, at).map(drop)))?;
        Ok(Self {
            pmem: Pmem::new(guest),
            changes: Changes::new(Order::Scattered, image.pages()),
            bare: Bare::new(image)?,
            began: [ready, mapped],
        })
    }

    /// Changes one behind another, for `time`; at most `count`.
    fn run(&mut self, count: usize, time: Duration) -> Result<Sample> {
        changes::run(&mut self.pmem, &mut self.changes, 1, count, time)
    }
}

/// The same with no daemon: the file mapped by this process, and synced.
struct Bare {
    region: MmapRegion,
    changes: Changes,
}

impl Bare {
    fn new(image: &Image) -> Result<Self> {
        let at = FileOffset::new(image.file().try_clone()?, 0);
        let region = MmapRegion::from_file(at, image.pages() * PAGE)?;
        (0..image.pages()).try_for_each(|at| load(&region.as_volatile_slice(), at).map(drop))?;
        Ok(Self { region, changes: Changes::new(Order::Scattered, image.pages()) })
    }

    fn run(&mut self, count: usize, time: Duration) -> Result<Sample> {
        let file = self.region.file_offset().expect("made from a file").file();
        let mut bytes = [0; PAGE];
        let mut sample = Sample::default();
        let start = Instant::now();
        while sample.took.len() < count && start.elapsed() < time {
            let began = Instant::now();
            let page = self.changes.next(&mut bytes);
            store(&self.region.as_volatile_slice(), page, &bytes)?;
            file.sync_data()?;
            sample.took.push(began.elapsed());
        }
        sample.elapsed = start.elapsed();
        Ok(sample)
    }
}

/// All of them, in one kind of window.
pub(crate) struct Fleet(Vec<Member>);

impl Fleet {
    /// Starts a daemon for each of `images`, one behind another.
    pub(crate) fn start(images: &[Image], window: Window) -> Result<Self> {
        Ok(Self(images.iter().map(|image| Member::start(image, window)).collect::<Result<_>>()?))
    }

    /// What their daemons take now.
    pub(crate) fn footprints(&self) -> impl Iterator<Item = Result<Footprint>> {
        self.0.iter().map(|member| Footprint::of(member.pmem.pid(), member.began))
    }

    /// Changes to the `number`th, while the others are idle: through its daemon, and without it.
    pub(crate) fn one_busy(&mut self, number: usize, time: Duration) -> Result<[Sample; 2]> {
        let count = self.0.len();
        let member = &mut self.0[number % count];
        let mut samples = <[Sample; 2]>::default();
        let start = Instant::now();
        while start.elapsed() < time {
            samples[0].extend(member.run(SHORT_TURN, time)?);
            let written = process::disk_written()?;
            let mut bare = member.bare.run(SHORT_TURN, time)?;
            bare.written = process::disk_written()? - written;
            samples[1].extend(bare);
        }
        Ok(samples)
    }

    /// Changes to all of them, one in flight each: through their daemons, and without them.
    pub(crate) fn all_busy(&mut self, time: Duration) -> Result<[Sample; 2]> {
        let mut samples = <[Sample; 2]>::default();
        for _ in 0..2 {
            samples[0].extend(self.together(|member| member.run(usize::MAX, time / 2))?);
            samples[1].extend(self.together(|member| member.bare.run(usize::MAX, time / 2))?);
        }
        Ok(samples)
    }

    /// Has each do `work` in a thread of its own.
    fn together(&mut self, work: impl Fn(&mut Member) -> Result<Sample> + Sync) -> Result<Sample> {
        let begin = Barrier::new(self.0.len() + 1);
        let mut all = Sample::default();
        let written = process::disk_written()?;
        let elapsed = thread::scope(|scope| {
            let threads: Vec<_> = self
                .0
                .iter_mut()
                .map(|member| {
                    scope.spawn(|| {
                        begin.wait();
                        work(member)
                    })
                })
                .collect();
            begin.wait();
            let start = Instant::now();
            for thread in threads {
                all.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
            }
            anyhow::Ok(start.elapsed())
        })?;
        // What each found was all that was written meanwhile.
        all.written = process::disk_written()? - written;
        all.elapsed = elapsed;
        Ok(all)
    }

    pub(crate) fn end(self) -> Result<()> {
        self.0.into_iter().try_for_each(|member| member.pmem.end())
    }
}
