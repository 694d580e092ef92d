// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was measured, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::changes::Sample;
use crate::spread::spread;

/// One round's numbers of one row.
#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    per_second: f64,
    /// Calls of the device for each change.
    calls: f64,
    /// Processor's time of the device's process for each change; zero where there is none.
    cpu_us: f64,
    /// KiB written to the disk for each change; zero where that wasn't counted.
    written_kib: f64,
}

/// What was measured in all rounds of one load.
#[derive(Serialize)]
pub(crate) struct Row {
    what: String,
    who: &'static str,
    in_flight: usize,
    /// Of the rounds' numbers.
    median: Option<Round>,
    rounds: Vec<Round>,
}

/// All rows, in the order in which they were measured first.
#[derive(Default, Serialize)]
pub(crate) struct Tally(Vec<Row>);

impl Tally {
    pub(crate) fn add(
        &mut self,
        what: &str,
        who: &'static str,
        in_flight: usize,
        mut sample: Sample,
    ) {
        sample.took.sort_unstable();
        let count = sample.took.len() as f64;
        let part = |parts: usize| micros(sample.took[(sample.took.len() - 1) * parts / 1000]);
        let round = Round {
            p50_us: part(500),
            p99_us: part(990),
            p999_us: part(999),
            per_second: count / sample.elapsed.as_secs_f64(),
            calls: sample.calls as f64 / count,
            cpu_us: micros(sample.cpu) / count,
            written_kib: sample.written as f64 / 1024.0 / count,
        };
        let key = (what, who, in_flight);
        let at = self.0.iter().position(|row| row.key() == key).unwrap_or_else(|| {
            let what = what.to_owned();
            self.0.push(Row { what, who, in_flight, median: None, rounds: Vec::new() });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        row.rounds.push(round);
        row.median = Some(Round {
            p50_us: row.of(|round| round.p50_us)[0],
            p99_us: row.of(|round| round.p99_us)[0],
            p999_us: row.of(|round| round.p999_us)[0],
            per_second: row.of(|round| round.per_second)[0],
            calls: row.of(|round| round.calls)[0],
            cpu_us: row.of(|round| round.cpu_us)[0],
            written_kib: row.of(|round| round.written_kib)[0],
        });
    }

    /// Changes a second.
    pub(crate) fn rate(&self, what: &str, who: &str, in_flight: usize) -> Option<f64> {
        Some(self.median(what, who, in_flight)?.per_second)
    }

    /// Calls for each change.
    pub(crate) fn calls(&self, what: &str, who: &str, in_flight: usize) -> Option<f64> {
        Some(self.median(what, who, in_flight)?.calls)
    }

    /// The median over the rounds of how much longer half of `who`'s took than half of `other`'s in
    /// the same round, in µs.
    pub(crate) fn added(&self, what: &str, who: &str, other: &str) -> Option<f64> {
        let [who, other] = [who, other].map(|who| self.find(what, who, 1));
        let pairs = who?.rounds.iter().zip(&other?.rounds);
        let mut added: Vec<_> = pairs.map(|(who, other)| who.p50_us - other.p50_us).collect();
        added.sort_unstable_by(f64::total_cmp);
        added.get(added.len() / 2).copied()
    }

    fn median(&self, what: &str, who: &str, in_flight: usize) -> Option<Round> {
        self.find(what, who, in_flight)?.median
    }

    fn find(&self, what: &str, who: &str, in_flight: usize) -> Option<&Row> {
        self.0.iter().find(|row| row.key() == (what, who, in_flight))
    }
}

impl Row {
    fn key(&self) -> (&str, &'static str, usize) {
        (&self.what, self.who, self.in_flight)
    }

    /// The median of the rounds' numbers, the least and the most.
    fn of(&self, number: impl Fn(&Round) -> f64) -> [f64; 3] {
        spread(self.rounds.iter().map(number))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| | in flight | | p50 µs (least–most) | p99 µs | p99.9 µs | a second | calls each | CPU µs each | KiB each |"
        )?;
        f.write_str("|---|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.0 {
            let Row { what, who, in_flight, .. } = row;
            let [p50, least, most] = row.of(|round| round.p50_us);
            let [p99, ..] = row.of(|round| round.p99_us);
            let [p999, ..] = row.of(|round| round.p999_us);
            let [rate, ..] = row.of(|round| round.per_second);
            let [calls, ..] = row.of(|round| round.calls);
            let [cpu, ..] = row.of(|round| round.cpu_us);
            let [kib, ..] = row.of(|round| round.written_kib);
            let or_none = |number: f64, digits: usize| match number == 0.0 {
                true => "–".to_owned(),
                false => format!("{number:.digits$}"),
            };
            let (calls, cpu, kib) = (or_none(calls, 3), or_none(cpu, 1), or_none(kib, 1));
            write!(
                f,
                "\n| {what} | {in_flight} | {who} | {p50:.0} ({least:.0}–{most:.0}) | {p99:.0} | {p999:.0} \
                 | {rate:.0} | {calls} | {cpu} | {kib} |"
            )?;
        }
        Ok(())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
