// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One thing after another to a file, at random, beside a model of it.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, copy_file_range};
use rustix::mm::{Advice, MapFlags};

use crate::case::cases;
use crate::data::{Bytes, Random, expect_same, noise};
use crate::site::Site;
use crate::sys::{Mapping, PAGE, PMD};

cases! { "stress":
    ; mounts:
    changes_of_one_page_or_few_follow_the_model
    changes_of_any_size_follow_the_model
}

const MOST: usize = 2 * PMD + 3 * PAGE;

fn changes_of_one_page_or_few_follow_the_model(site: &Site) -> Result<()> {
    run(site, 1500, 6 * PAGE)
}

fn changes_of_any_size_follow_the_model(site: &Site) -> Result<()> {
    run(site, 400, MOST)
}

/// Does `steps` changes, each of `longest` bytes at most.
fn run(site: &Site, steps: usize, longest: usize) -> Result<()> {
    let mut subject = Subject {
        mapping: None,
        file: site.file("file")?,
        model: Vec::new(),
        random: Random::new(site.seed),
        longest,
    };
    for step in 0..steps {
        let what = subject.change().with_context(|| format!("step {step}"))?;
        subject.check(step % 40 == 0).with_context(|| format!("step {step}, {what}"))?;
    }
    let model = subject.model;
    drop((subject.mapping, subject.file));
    site.remount()?;
    expect_same("after a remount", &site.open("file")?.get_all()?, &model)
}

struct Subject {
    mapping: Option<Mapping>,
    file: File,
    model: Vec<u8>,
    random: Random,
    longest: usize,
}

impl Subject {
    /// Changes something, and says what.
    fn change(&mut self) -> Result<String> {
        let choice = self.random.below(14);
        let size = self.model.len();
        let (at, len) = self.range(size);
        match choice {
            0..=2 => self.store(at, len),
            3 | 4 => {
                let (at, len) = self.range(MOST);
                let bytes = noise(self.random.next(), len);
                self.file.put(at, &bytes)?;
                if len == 0 {
                    return Ok("write of nothing".to_owned());
                }
                self.grow(at + len);
                self.model[at..at + len].copy_from_slice(&bytes);
                return Ok(format!("write {at}+{len}"));
            }
            5 => {
                let size = self.range(MOST).0;
                self.file.set_len(size as u64)?;
                self.model.resize(size, 0);
                return Ok(format!("truncate {size}"));
            }
            6 if len > 0 => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.file.allocate(how, at, len)?;
                self.model[at..at + len].fill(0);
                return Ok(format!("punch {at}+{len}"));
            }
            7 => {
                let (at, len) = self.range(MOST);
                if len > 0 {
                    self.file.allocate(FallocateFlags::ZERO_RANGE, at, len)?;
                    self.grow(at + len);
                    self.model[at..at + len].fill(0);
                }
                return Ok(format!("zero {at}+{len}"));
            }
            8 => {
                let (at, len) = self.range(MOST);
                if len > 0 {
                    self.file.allocate(FallocateFlags::empty(), at, len)?;
                    self.grow(at + len);
                }
                return Ok(format!("allocate {at}+{len}"));
            }
            9 => return self.collapse(at, len),
            10 => return self.insert(at, len),
            11 => return self.copy(at, len),
            12 => self.sync()?,
            _ => self.mapping = None,
        }
        Ok(format!("{choice}: {at}+{len}"))
    }

    fn store(&mut self, at: usize, len: usize) {
        let bytes = noise(self.random.next(), len);
        if let Some(mapping) = &self.mapping {
            mapping.store(at, &bytes);
            self.model[at..at + len].copy_from_slice(&bytes);
        }
    }

    fn collapse(&mut self, at: usize, len: usize) -> Result<String> {
        let [at, len] = [at, len].map(|bytes| bytes / PAGE * PAGE);
        if len > 0 && at + len < self.model.len() {
            self.file.allocate(FallocateFlags::COLLAPSE_RANGE, at, len)?;
            self.model.drain(at..at + len);
        }
        Ok(format!("collapse {at}+{len}"))
    }

    fn insert(&mut self, at: usize, len: usize) -> Result<String> {
        let [at, len] = [at, len].map(|bytes| bytes / PAGE * PAGE);
        if len > 0 && at < self.model.len() && self.model.len() + len <= MOST {
            self.file.allocate(FallocateFlags::INSERT_RANGE, at, len)?;
            self.model.splice(at..at, std::iter::repeat_n(0, len));
        }
        Ok(format!("insert {at}+{len}"))
    }

    fn copy(&mut self, at: usize, len: usize) -> Result<String> {
        let into = self.random.below(MOST - len);
        if into.abs_diff(at) >= len {
            let [mut from, mut to] = [at as u64, into as u64];
            let copied =
                copy_file_range(&self.file, Some(&mut from), &self.file, Some(&mut to), len)?;
            if copied > 0 {
                self.grow(into + copied);
                self.model.copy_within(at..at + copied, into);
            }
        }
        Ok(format!("copy {at}+{len} to {into}"))
    }

    fn sync(&mut self) -> Result<()> {
        match (&self.mapping, self.random.below(3)) {
            (Some(mapping), 0) => mapping.sync()?,
            (Some(mapping), 1) => mapping.advise(0..mapping.len(), Advice::LinuxDontNeed)?,
            _ => self.file.sync_data()?,
        }
        Ok(())
    }

    fn grow(&mut self, size: usize) {
        if size > self.model.len() {
            self.model.resize(size, 0);
        }
    }

    /// A range within the first `end` bytes, half of the time of whole pages.
    fn range(&mut self, end: usize) -> (usize, usize) {
        if end == 0 {
            return (0, 0);
        }
        let at = self.random.below(end);
        let len = self.random.below(self.longest.min(end - at) + 1);
        if self.random.below(2) == 0 { (at, len) } else { (at / PAGE * PAGE, len / PAGE * PAGE) }
    }

    /// Compares a range, or all, with the model.
    fn check(&mut self, all: bool) -> Result<()> {
        let size = self.model.len();
        let (at, len) = if all { (0, size) } else { self.range(size) };
        let aligned = self.random.below(2) == 0;
        let mapping = match self.mapping.take() {
            Some(mapping) => mapping,
            None if aligned => Mapping::aligned(&self.file, 0, MOST, MapFlags::SHARED)?,
            None => Mapping::shared(&self.file, 0, MOST)?,
        };
        let mapping = self.mapping.insert(mapping);
        let expected = &self.model[at..at + len];
        anyhow::ensure!(self.file.size()? == size, "the size is {}", self.file.size()?);
        expect_same(format!("load {at}+{len}"), &mapping.load(at, len), expected)?;
        expect_same(format!("read {at}+{len}"), &self.file.get(at, len)?, expected)
    }
}
