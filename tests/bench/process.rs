// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process has used, and the disk was given.
#![allow(unsafe_code, reason = "a clock of another process; no crate offers it as safe")]

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_harness::target_dir;
use rustix::fs::{major, minor};

/// The bytes that were written to the disk of the files so far, by whomever: `stat` in sysfs counts
/// sectors of 512 bytes. What /proc/PID/io has is what was made dirty, counted in folios.
pub(crate) fn disk_written() -> Result<u64> {
    let device = std::fs::metadata(target_dir())?.dev();
    let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    // Not every filesystem is on one disk.
    let Ok(stat) = std::fs::read_to_string(path) else { return Ok(0) };
    let sectors = stat.split_whitespace().nth(6).context("no sectors written")?;
    Ok(sectors.parse::<u64>()? * 512)
}

/// The processor's time of all threads of `pid` so far, in nanoseconds: clock_getcpuclockid(3).
/// What /proc has is in ticks of 10 ms, or without the threads that have ended.
pub(crate) fn cpu(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock = 0;
    // SAFETY: the library writes to `clock`, which is there during the call.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time`, which is there during the call.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [seconds, nanos] =
        [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or_default());
    Ok(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}
