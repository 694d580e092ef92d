// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The dashboard, as its file has it, and what there is to be shown in it.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::prometheus::{Prometheus, Series};

/// What Grafana puts in the place of its variables: all devices, and some scrapes.
const VARIABLES: [(&str, &str); 2] = [("$device", "(db|mail|old|web)"), ("$__rate_interval", "5s")];

#[derive(Deserialize)]
pub(super) struct Dashboard {
    pub(super) title: String,
    pub(super) panels: Vec<Panel>,
}

#[derive(Deserialize)]
pub(super) struct Panel {
    pub(super) title: String,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    #[serde(rename = "gridPos")]
    pub(super) place: Place,
    #[serde(rename = "fieldConfig", default)]
    fields: Fields,
    #[serde(default)]
    targets: Vec<Target>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Row,
    Stat,
    Timeseries,
}

/// In a grid of 24 columns.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

#[derive(Default, Deserialize)]
struct Fields {
    #[serde(default)]
    defaults: Defaults,
}

#[derive(Default, Deserialize)]
struct Defaults {
    #[serde(default)]
    unit: String,
    #[serde(default)]
    thresholds: Thresholds,
}

#[derive(Default, Deserialize)]
struct Thresholds {
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    color: String,
    value: Option<f64>,
}

#[derive(Deserialize)]
struct Target {
    expr: String,
    #[serde(rename = "legendFormat")]
    legend: String,
}

/// A line of a panel: seconds since the beginning, and numbers.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Dashboard {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let json = fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&json).with_context(|| path.display().to_string())
    }

    /// The lines of each panel, of the time since `since`.
    pub(super) fn ask(&self, prometheus: &Prometheus, since: Duration) -> Result<Vec<Vec<Line>>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let time = [now - since.as_secs_f64(), now];
        self.panels.iter().map(|panel| panel.ask(prometheus, time)).collect()
    }
}

impl Panel {
    fn ask(&self, prometheus: &Prometheus, time: [f64; 2]) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for Target { expr, legend } in &self.targets {
            let query = VARIABLES
                .iter()
                .fold(expr.clone(), |query, (variable, value)| query.replace(variable, value));
            let named = |series: Series| {
                let points: Vec<_> =
                    series.points().map(|(at, value)| (at - time[0], value)).collect();
                let name = series.labels.iter().fold(legend.clone(), |name, (label, value)| {
                    name.replace(&format!("{{{{{label}}}}}"), value)
                });
                // A snapshot that was taken has its whole path.
                Line { name: name.replace(prometheus.dir(), ""), points }
            };
            let answer = prometheus.ask(&query, time)?;
            lines.extend(answer.into_iter().map(named).filter(|line| !line.points.is_empty()));
        }
        ensure!(self.kind == Kind::Row || !lines.is_empty(), "nothing in panel {:?}", self.title);
        Ok(lines)
    }

    pub(super) fn unit(&self) -> &str {
        &self.fields.defaults.unit
    }

    /// The colour of a number, by the thresholds.
    pub(super) fn colour(&self, number: f64) -> &str {
        let mut steps = self.fields.defaults.thresholds.steps.iter().rev();
        let reached = steps.find(|step| step.value.is_none_or(|value| number >= value));
        reached.map_or("green", |step| &step.color)
    }
}
