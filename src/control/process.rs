// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this process takes of its host, as proc(5) tells it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// What a process takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// When it started, in milliseconds of Unix time.
    pub(crate) started_ms: u64,
    /// The processors' time that it has taken, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// In bytes.
    pub(crate) resident: u64,
    /// In bytes.
    pub(crate) virtual_memory: u64,
    pub(crate) threads: u64,
    /// Those that are open, but for those of a served window's own threads.
    pub(crate) fds: u64,
    /// How many may be; nothing if that has no limit.
    pub(crate) fds_max: Option<u64>,
}

/// What tells it: opened at the start, so that it can be read where nothing more may be opened.
#[derive(Debug)]
pub(crate) struct OwnProcess {
    stat: File,
    fds: Mutex<Dir>,
    /// In seconds of Unix time.
    booted: u64,
    ticks_per_second: u64,
    page_size: u64,
}

impl OwnProcess {
    pub(crate) fn open() -> io::Result<Self> {
        let all = fs::read_to_string("/proc/stat")?;
        let booted = all.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fds = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        Ok(Self {
            stat: File::open("/proc/self/stat")?,
            fds: Mutex::new(Dir::new(fds)?),
            booted: booted.ok_or(io::ErrorKind::InvalidData)?,
            // Asked for the first time, the kernel is.
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            page_size: rustix::param::page_size() as u64,
        })
    }

    /// How it is now; nothing if the kernel doesn't say.
    pub(crate) fn read(&self) -> Option<Process> {
        let mut text = [0; 1024];
        let len = self.stat.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        // The name before has a bracket at its end, and may have anything else in it.
        let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // By their numbers in proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ms = |ticked: u64| ticked * 1000 / self.ticks_per_second;
        Some(Process {
            pid: std::process::id(),
            started_ms: self.booted * 1000 + ms(field(22)?),
            cpu_ms: ms(field(14)? + field(15)?),
            resident: field(24)? * self.page_size,
            virtual_memory: field(23)?,
            threads: field(20)?,
            fds: self.count_fds()?,
            fds_max: getrlimit(Resource::Nofile).current,
        })
    }

    fn count_fds(&self) -> Option<u64> {
        let mut fds = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
        fds.rewind();
        let names = std::iter::from_fn(|| fds.read()).collect::<Result<Vec<_>, _>>().ok()?;
        let is_fd = |name: &&rustix::fs::DirEntry| name.file_name().to_bytes()[0] != b'.';
        Some(names.iter().filter(is_fd).count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_told_as_the_kernel_knows_it() {
        let own = OwnProcess::open().unwrap();
        let before = own.read().unwrap();
        let files: Vec<_> = (0..500).map(|_| File::open("/dev/null").unwrap()).collect();
        let after = own.read().unwrap();
        // Other tests open some, too, but not that many.
        assert!(after.fds > before.fds + 400, "{before:?} {after:?}");
        drop(files);
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let word = |key| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        let resident: u64 = word("VmRSS:").strip_suffix(" kB").unwrap().parse().unwrap();
        assert!((resident * 1024).abs_diff(after.resident) < 32 << 20, "{resident} {after:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = u64::try_from(now.as_millis()).unwrap().abs_diff(after.started_ms);
        assert!(age < 3_600_000, "{age} ms");
        assert_eq!(after.pid, std::process::id());
    }
}
