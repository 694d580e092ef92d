// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask plot`: the charts in `docs/`, of what the benchmarks have left in `target/bench`.

mod axis;
mod chart;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use guest_harness::target_dir;
use serde::Deserialize;

pub(crate) use crate::plot::chart::{COLOURS, escaped};
use crate::plot::chart::{Chart, Panel, Point, Series};

/// The part of a benchmark's results that is drawn.
#[derive(Deserialize)]
struct Results {
    rows: Vec<Row>,
}

/// One load on one device.
#[derive(Deserialize)]
struct Row {
    what: String,
    who: String,
    #[serde(alias = "in_flight")]
    jobs: u32,
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    per_second: f64,
}

/// Draws both charts.
pub(crate) fn draw_all() -> Result<()> {
    draw("flushes", "Changes of 4 KiB made durable", "changes in flight", "changes a second")?;
    draw(
        "guests",
        "Changes of 4 KiB, each with an fsync, in a guest",
        "fio jobs",
        "fsyncs a second",
    )
}

/// Draws what the benchmark `bench` found.
fn draw(bench: &str, title: &str, x_label: &str, y_label: &str) -> Result<()> {
    let from = target_dir().join("bench").join(format!("{bench}.json"));
    let json = fs::read(&from).with_context(|| {
        format!("cannot read {}: run `cargo bench --bench {bench}` first", from.display())
    })?;
    let results: Results = serde_json::from_slice(&json)
        .with_context(|| format!("{} is not what the benchmark writes", from.display()))?;
    let panels = panels(&results.rows);
    ensure!(!panels.is_empty(), "{} has nothing to draw", from.display());
    let rounds = results.rows.iter().map(|row| row.rounds.len()).max().unwrap_or_default();
    let chart = Chart {
        title,
        subtitle: &format!("medians of {rounds} rounds; whiskers from the least to the most"),
        x_label,
        y_label,
        panels,
    };
    let to = format!("docs/benchmarks-{bench}.svg");
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    fs::write(root.join(&to), chart.to_string())?;
    println!("{to}");
    Ok(())
}

/// A panel for each load that was measured with several numbers of jobs, in the results' order.
fn panels(rows: &[Row]) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for row in rows.iter().filter(|row| !row.rounds.is_empty()) {
        let at = position(&panels, |panel| panel.name == row.what).unwrap_or_else(|| {
            panels.push(Panel { name: row.what.clone(), series: Vec::new() });
            panels.len() - 1
        });
        let series = &mut panels[at].series;
        let at = position(series, |series| series.name == row.who).unwrap_or_else(|| {
            series.push(Series { name: row.who.clone(), points: Vec::new() });
            series.len() - 1
        });
        series[at].points.push(point(row));
    }
    panels.retain(|panel| panel.series.iter().any(|series| series.points.len() > 1));
    panels
}

fn position<T>(of: &[T], is: impl Fn(&T) -> bool) -> Option<usize> {
    of.iter().position(is)
}

fn point(row: &Row) -> Point {
    let mut rates: Vec<_> = row.rounds.iter().map(|round| round.per_second).collect();
    rates.sort_unstable_by(f64::total_cmp);
    let [median, least, most] = [rates.len() / 2, 0, rates.len() - 1].map(|at| rates[at]);
    Point { x: f64::from(row.jobs), median, least, most }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, who: &str, jobs: u32, rates: &[f64]) -> Row {
        let rounds = rates.iter().map(|&per_second| Round { per_second }).collect();
        Row { what: what.to_owned(), who: who.to_owned(), jobs, rounds }
    }

    #[test]
    fn rows_of_one_load_are_one_panel_and_single_ones_none() {
        let rows = [
            row("random", "a", 1, &[3.0, 1.0, 2.0]),
            row("random", "b", 1, &[5.0]),
            row("read", "a", 1, &[9.0]),
            row("random", "a", 8, &[4.0]),
        ];
        let panels = panels(&rows);
        let [Panel { name, series }] = &panels[..] else { panic!("{} panels", panels.len()) };
        assert_eq!((name.as_str(), series[0].name.as_str(), series.len()), ("random", "a", 2));
        let Point { x, median, least, most } = series[0].points[0];
        assert_eq!((x, median, least, most), (1.0, 2.0, 1.0, 3.0));
        assert_eq!(series[0].points.len(), 2);
    }

    #[test]
    fn results_of_either_benchmark_are_read() {
        for jobs in ["jobs", "in_flight"] {
            let json = format!(
                r#"{{"rows": [{{"what": "w", "who": "o", "{jobs}": 4, "rounds": [{{"per_second": 2.5}}]}}]}}"#
            );
            let results: Results = serde_json::from_str(&json).unwrap();
            assert_eq!((results.rows[0].jobs, results.rows[0].rounds[0].per_second), (4, 2.5));
        }
    }
}
