// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that stay on one processor.

use std::fs;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// The processors of two that work side by side: the first and the last that this thread may use,
/// which are the same one where there is no other.
pub(crate) struct Cpus {
    all: CpuSet,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl Cpus {
    pub(crate) fn get() -> Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut each = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
        let first = each.next().context("no processor")?;
        let last = each.next_back().unwrap_or(first);
        Ok(Self { all, first, last })
    }

    /// Runs `task` in this thread on `cpu` alone.
    pub(crate) fn on<T>(&self, cpu: usize, task: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(None, cpu)?;
        let result = task();
        sched_setaffinity(None, &self.all)?;
        result
    }
}

/// Has all threads of the process `pid` run on `cpu` alone.
pub(crate) fn pin_process(pid: u32, cpu: usize) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = task?.file_name().to_string_lossy().parse()?;
        pin(Pid::from_raw(thread), cpu)?;
    }
    Ok(())
}

fn pin(thread: Option<Pid>, cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu);
    Ok(sched_setaffinity(thread, &one)?)
}
