// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! fio in a guest: what it is to do, and what it reports.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The most jobs at once; each has a file of its own.
pub(crate) const JOBS_MOST: usize = 8;

/// How large each file is, in MiB.
pub(crate) const FILE_MIB: usize = 16;

/// How fio reaches a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Loads and stores; a sync is msync(2).
    Mmap,
    /// read(2), write(2) and fsync(2).
    Sync,
}

impl Engine {
    pub(crate) const ALL: [Self; 2] = [Self::Mmap, Self::Sync];

    fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Sync => "sync",
        }
    }
}

/// What it does with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Changes 4 KiB here and there, and syncs after each.
    Synced,
    /// Reads in large blocks.
    Read,
    /// Writes in large blocks, and syncs nothing.
    Write,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Synced => "4 KiB and fsync",
            Self::Read => "read, 1 MiB",
            Self::Write => "write, 1 MiB",
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Synced => "--rw=randwrite --bs=4k --fsync=1",
            // The page faults of the first time are not counted.
            Self::Read => "--rw=read --bs=1m --ramp_time=200ms",
            Self::Write => "--rw=write --bs=1m --ramp_time=200ms",
        }
    }
}

/// One run of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) engine: Engine,
    pub(crate) load: Load,
    pub(crate) jobs: usize,
}

impl Task {
    pub(crate) fn name(self) -> String {
        format!("{}, {}", self.engine.name(), self.load.name())
    }

    /// The command that does it for `time`, in the files `0` to `7` of the current directory.
    pub(crate) fn command(self, time: Duration) -> String {
        format!(
            "fio --name=job --filename_format='$jobnum' --size={FILE_MIB}m --ioengine={} {} \
             --numjobs={} --group_reporting --time_based --runtime={}ms --percentile_list=50:99 \
             --output-format=json",
            self.engine.name(),
            self.load.options(),
            self.jobs,
            time.as_millis()
        )
    }
}

/// What one run came to.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Numbers {
    /// Reads or writes a second, of all jobs; with fsyncs, as many of those.
    pub(crate) per_second: f64,
    pub(crate) mib_per_second: f64,
    /// What half of the fsyncs took no longer than; `None` where there are none.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
}

impl Numbers {
    /// Reads fio's report on `task`.
    pub(crate) fn read(task: Task, report: &str) -> Result<Self> {
        let Report { jobs: [group] } = serde_json::from_str(report)?;
        ensure!(group.error == 0, "fio failed with error {}", group.error);
        let side = if task.load == Load::Read { group.read } else { group.write };
        ensure!(side.iops > 0.0, "fio did nothing in its turn: give it more, with --turn");
        let micros = |key| group.sync.lat_ns.percentile.get(key).map(|nanos| nanos / 1e3);
        let (p50_us, p99_us) = (micros("50.000000"), micros("99.000000"));
        ensure!(p50_us.is_some() == (task.load == Load::Synced), "fio synced, or it didn't");
        let mib_per_second = side.bw_bytes / 1024.0 / 1024.0;
        Ok(Self { per_second: side.iops, mib_per_second, p50_us, p99_us })
    }
}

/// fio's report in JSON, as far as it is of use.
#[derive(Deserialize)]
struct Report {
    /// One group, of all jobs.
    jobs: [Group; 1],
}

#[derive(Deserialize)]
struct Group {
    error: i32,
    read: Transfer,
    write: Transfer,
    sync: Syncs,
}

#[derive(Deserialize)]
struct Transfer {
    iops: f64,
    bw_bytes: f64,
}

#[derive(Deserialize)]
struct Syncs {
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    /// Not there where nothing was synced.
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}
