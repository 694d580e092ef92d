// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What daemons take of their host while they serve, and how long they take to begin.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::spread::spread;

/// One daemon's.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Footprint {
    /// From its start to when it waits for a frontend.
    ready_ms: f64,
    /// From its start to when a frontend has its pages mapped.
    mapped_ms: f64,
    /// Resident, with what it shares with others.
    rss_kib: f64,
    /// Resident, what is shared being divided among those that share it.
    pss_kib: f64,
    /// Resident, and nobody else's.
    private_kib: f64,
    /// Of no file.
    anonymous_kib: f64,
    threads: f64,
    fds: f64,
}

impl Footprint {
    /// That of `pid` now, which took so long to begin.
    pub(crate) fn of(pid: u32, [ready, mapped]: [Duration; 2]) -> Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |name: &str| -> Result<f64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            Ok(kib.with_context(|| format!("no {name}"))?.parse()?)
        };
        let count =
            |what| Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
        Ok(Self {
            ready_ms: ready.as_secs_f64() * 1e3,
            mapped_ms: mapped.as_secs_f64() * 1e3,
            rss_kib: kib("Rss")?,
            pss_kib: kib("Pss")?,
            private_kib: kib("Private_Clean")? + kib("Private_Dirty")?,
            anonymous_kib: kib("Anonymous")?,
            threads: count("task")? as f64,
            fds: count("fd")? as f64,
        })
    }
}

/// All that served the same.
#[derive(Serialize)]
struct Row {
    what: String,
    footprints: Vec<Footprint>,
}

/// What all took, in the order in which they were measured first.
#[derive(Default, Serialize)]
pub(crate) struct Footprints(Vec<Row>);

impl Footprints {
    pub(crate) fn add(&mut self, what: &str, footprint: Footprint) {
        match self.0.iter_mut().find(|row| row.what == what) {
            Some(row) => row.footprints.push(footprint),
            None => self.0.push(Row { what: what.to_owned(), footprints: vec![footprint] }),
        }
    }
}

impl Row {
    /// The median, the least and the most.
    fn of(&self, number: impl Fn(&Footprint) -> f64) -> [f64; 3] {
        spread(self.footprints.iter().map(number))
    }
}

impl fmt::Display for Footprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| | ready ms (least–most) | mapped ms (least–most) | RSS KiB | PSS KiB | private KiB | \
             anonymous KiB | threads | fds |"
        )?;
        f.write_str("|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.0 {
            let [ready, ready_least, ready_most] = row.of(|one| one.ready_ms);
            let [mapped, mapped_least, mapped_most] = row.of(|one| one.mapped_ms);
            write!(
                f,
                "\n| {} | {ready:.1} ({ready_least:.1}–{ready_most:.1}) \
                 | {mapped:.1} ({mapped_least:.1}–{mapped_most:.1})",
                row.what
            )?;
            let numbers: [fn(&Footprint) -> f64; 6] = [
                |one| one.rss_kib,
                |one| one.pss_kib,
                |one| one.private_kib,
                |one| one.anonymous_kib,
                |one| one.threads,
                |one| one.fds,
            ];
            for number in numbers {
                write!(f, " | {:.0}", row.of(number)[0])?;
            }
            f.write_str(" |")?;
        }
        Ok(())
    }
}
