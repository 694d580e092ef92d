// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the numbers were measured on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{major, minor};

/// The command that runs `bench`, the kernel, cores, memory, and the filesystem of `dir`, one a line.
pub(crate) fn facts(bench: &str, dir: &Path) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory = memory.split_whitespace().nth(1).context("no memory")?.parse::<u64>()? >> 10;
    let device = fs::metadata(dir)?.dev();
    let device = format!("{}:{}", major(device), minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let filesystem = mounts.lines().find_map(|mount| {
        let (place, kind) = mount.split_once(" - ")?;
        (place.split(' ').nth(2)? == device).then(|| kind.split(' ').next())?
    });
    let filesystem = filesystem.unwrap_or("unknown");
    let ahead = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    let ahead = ahead.as_deref().map_or("unknown", str::trim);
    Ok(format!(
        "Command:    cargo bench --bench {bench}\n\
         Kernel:     Linux {}\n\
         Cores:      {cores}\n\
         Memory:     {memory} MiB\n\
         Filesystem: {filesystem}, reads ahead {ahead} KiB",
        kernel.trim()
    ))
}
