// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Regions of all sizes, and of many files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::changes::Sample;
use crate::footprint::{Footprint, Footprints};
use crate::guest::{self, Guest};
use crate::image::{Image, PAGE};
use crate::process;
use crate::results::Window;
use crate::tally::Tally;

/// Flushes one behind another, then the next one's turn.
const SHORT_TURN: usize = 16;

/// How many pages of a region are stored to, in turn.
const PLACES: u64 = 16;

/// Regions of sparse files, in GiB.
const SIZES: [u64; 4] = [1, 16, 256, 1024];

/// Regions of so many files, each of 1 MiB.
const FILES: [usize; 4] = [1, 4, 16, 64];

/// A region, and its guest.
struct Shape {
    what: String,
    guest: Guest,
    began: [Duration; 2],
    bytes: u64,
    /// What is synced without the daemon: none where the guest's stores aren't in a file yet.
    files: Vec<File>,
    number: u64,
}

impl Shape {
    fn start(what: String, args: &[&OsStr], bytes: u64, files: Vec<File>) -> Result<Self> {
        let start = Instant::now();
        let daemon = guest::start(args)?;
        let ready = start.elapsed();
        let guest = Guest::attach(daemon)?;
        let began = [ready, start.elapsed()];
        let mut shape = Self { what, guest, began, bytes, files, number: 0 };
        // What was a hole is one no more.
        for _ in 0..PLACES {
            shape.store(1)?;
        }
        shape.guest.flush()?;
        Ok(shape)
    }

    /// Stores to a page in each of `parts` of the region.
    fn store(&mut self, parts: u64) -> Result<()> {
        self.number += 1;
        let bytes = [u8::try_from(self.number % 251)?; PAGE];
        let part = self.bytes / parts;
        let at = part / PLACES * (self.number % PLACES);
        (0..parts).for_each(|number| self.guest.store(number * part + at, &bytes));
        Ok(())
    }

    /// Stores and has it flushed, some times; what the flushes took.
    fn flushes(&mut self, parts: u64) -> Result<Sample> {
        self.sample(parts, |shape| shape.guest.flush())
    }

    /// The same without the daemon, the files being synced one behind another.
    fn syncs(&mut self, parts: u64) -> Result<Sample> {
        self.sample(parts, |shape| {
            let began = Instant::now();
            shape.files.iter().try_for_each(File::sync_data)?;
            Ok(began.elapsed())
        })
    }

    fn sample(
        &mut self,
        parts: u64,
        mut sync: impl FnMut(&mut Self) -> Result<Duration>,
    ) -> Result<Sample> {
        let mut sample = Sample::default();
        let pid = self.guest.daemon().pid();
        let (written, cpu) = (process::disk_written()?, process::cpu(pid)?);
        for _ in 0..SHORT_TURN {
            self.store(parts)?;
            sample.took.push(sync(self)?);
        }
        sample.elapsed = sample.took.iter().sum();
        sample.written = process::disk_written()? - written;
        sample.cpu = process::cpu(pid)? - cpu;
        Ok(sample)
    }
}

/// Takes note of what all take, before the first one ends: they share the executable.
fn end(shapes: Vec<Shape>, footprints: &mut Footprints) -> Result<()> {
    for shape in &shapes {
        let pid = shape.guest.daemon().pid();
        footprints.add(&shape.what, Footprint::of(pid, shape.began)?);
    }
    shapes.into_iter().try_for_each(|shape| shape.guest.end())
}

/// Regions of files that are sparse.
pub(crate) fn sizes(
    dir: &Path,
    time: Duration,
    footprints: &mut Footprints,
    tally: &mut Tally,
) -> Result<()> {
    let mut shapes = Vec::new();
    let mut paths = Vec::new();
    for gib in SIZES {
        for window in [Window::Direct, Window::Served] {
            let word = window.word();
            let path = dir.join(format!("{gib}-{word}.img"));
            let file = File::create(&path)?;
            file.set_len(gib << 30)?;
            let args = ["--file".as_ref(), path.as_os_str(), "--window".as_ref(), word.as_ref()];
            let what = format!("{gib} GiB, {word}");
            let files = if window == Window::Direct { vec![file] } else { Vec::new() };
            shapes.push(Shape::start(what, &args, gib << 30, files)?);
            paths.push(path);
        }
    }
    turns(&mut shapes, |_| 1, time, tally)?;
    end(shapes, footprints)?;
    Ok(paths.iter().try_for_each(fs::remove_file)?)
}

/// Files joined by a table.
pub(crate) struct Joined {
    images: Vec<Image>,
    table: PathBuf,
}

impl Joined {
    /// Writes them, and the tables.
    pub(crate) fn create_all(dir: &Path) -> Result<Vec<Self>> {
        FILES.into_iter().map(|count| Self::create(dir, count)).collect()
    }

    fn create(dir: &Path, count: usize) -> Result<Self> {
        let create = |number| Image::create_singly(dir, &format!("{number}-of-{count}.img"), 1);
        let images = (0..count).map(create).collect::<Result<Vec<_>>>()?;
        let line = |(number, image): (usize, &Image)| {
            format!("{} 2048 linear {} 0\n", 2048 * number, image.path().display())
        };
        let table = dir.join(format!("{count}.table"));
        fs::write(&table, images.iter().enumerate().map(line).collect::<String>())?;
        Ok(Self { images, table })
    }

    fn start(&self) -> Result<Shape> {
        let count = self.images.len();
        let args = ["--table".as_ref(), self.table.as_os_str()];
        let files = self.images.iter().map(|image| image.file().try_clone());
        let files = files.collect::<std::io::Result<_>>()?;
        Shape::start(format!("{count} files"), &args, (count as u64) << 20, files)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.table);
    }
}

/// Regions of many files.
pub(crate) fn extents(
    joined: &[Joined],
    time: Duration,
    footprints: &mut Footprints,
    tally: &mut Tally,
) -> Result<()> {
    let mut shapes = joined.iter().map(Joined::start).collect::<Result<Vec<_>>>()?;
    turns(&mut shapes, |_| 1, time, tally)?;
    turns(&mut shapes, |shape| shape.files.len() as u64, time, tally)?;
    end(shapes, footprints)
}

/// Has all take turns, each with a dirty page in so many parts.
fn turns(
    shapes: &mut [Shape],
    parts: impl Fn(&Shape) -> u64,
    time: Duration,
    tally: &mut Tally,
) -> Result<()> {
    let mut samples: Vec<_> = shapes.iter().map(|_| <[Sample; 2]>::default()).collect();
    let start = Instant::now();
    while start.elapsed() < time {
        for (shape, [ours, bare]) in shapes.iter_mut().zip(&mut samples) {
            let parts = parts(shape);
            ours.extend(shape.flushes(parts)?);
            if !shape.files.is_empty() {
                bare.extend(shape.syncs(parts)?);
            }
        }
    }
    for (shape, [ours, bare]) in shapes.iter().zip(samples) {
        let what = format!("{}, {} dirty", shape.what, parts(shape));
        tally.add(&what, "vhost-pmemd", 1, ours);
        if !bare.took.is_empty() {
            tally.add(&what, "fdatasync", 1, bare);
        }
    }
    Ok(())
}
