// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Prometheus, as Debian has it, and its own program to ask it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_harness::{host_program, patience};
use serde::Deserialize;

use super::{Ends, PATIENCE};

/// One that runs, and asks for metrics once a second.
pub(super) struct Prometheus {
    /// Where it is, with a slash.
    dir: String,
    url: String,
    _process: Ends,
}

/// One line of an answer.
#[derive(Deserialize)]
pub(super) struct Series {
    #[serde(rename = "metric")]
    pub(super) labels: BTreeMap<String, String>,
    /// Seconds of Unix time, and a number.
    #[serde(rename = "values")]
    points: Vec<(f64, String)>,
}

impl Series {
    /// The numbers that are some, by time.
    pub(super) fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let number = |(time, value): &(f64, String)| Some((*time, value.parse::<f64>().ok()?));
        self.points.iter().filter_map(number).filter(|(_, value)| value.is_finite())
    }
}

impl Prometheus {
    /// Starts one in `dir` for the metrics at `port`.
    pub(super) fn start(dir: &Path, port: u16) -> Result<Self> {
        let job =
            format!("- job_name: vhost-pmem\n  static_configs: [targets: ['127.0.0.1:{port}']]");
        let config = format!("global:\n  scrape_interval: 1s\nscrape_configs:\n{job}\n");
        fs::write(dir.join("prometheus.yml"), config)?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = host_program("prometheus", "prometheus")?;
        command.current_dir(dir).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        command.arg(format!("--web.listen-address={address}"));
        let log = File::create(dir.join("prometheus.log"))?;
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let process = Ends(process.context("cannot start prometheus")?);
        let until = Instant::now() + patience(PATIENCE);
        while TcpStream::connect(&address).is_err() {
            let log = || fs::read_to_string(dir.join("prometheus.log")).unwrap_or_default();
            ensure!(Instant::now() < until, "prometheus doesn't begin:\n{}", log());
            sleep(Duration::from_millis(100));
        }
        let dir = format!("{}/", dir.display());
        Ok(Self { dir, url: format!("http://{address}"), _process: process })
    }

    pub(super) fn dir(&self) -> &str {
        &self.dir
    }

    /// What it answers to `query` for each second between two times.
    pub(super) fn ask(&self, query: &str, [start, end]: [f64; 2]) -> Result<Vec<Series>> {
        let mut command = host_program("prometheus", "promtool")?;
        command.args(["query", "range", "--format=json", "--step=1s"]);
        command.arg(format!("--start={start:.0}")).arg(format!("--end={end:.0}"));
        let output = command.arg(&self.url).arg(query).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "Prometheus refuses {query}: {said}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("the answer to {query}"))
    }
}

/// A port that is free now.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
