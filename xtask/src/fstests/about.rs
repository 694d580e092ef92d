// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run was of: when, with what versions and options.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use guest_harness::{Kernel, Lab};

use super::options::Filesystem;

/// The facts of a run, for the head of the table and the JUnit file.
pub(crate) struct About {
    pub(crate) date: String,
    pub(crate) facts: Vec<(&'static str, String)>,
}

impl About {
    /// Of a run, beginning now, of the xfstests in `suite` with the executable `daemon` and the guest's
    /// `root_disk` and `kernel`.
    pub(crate) fn new(
        lab: &Lab,
        suite: &Path,
        daemon: &Path,
        root_disk: &Path,
        kernel: Kernel,
        filesystem: Filesystem,
    ) -> Result<Self> {
        let package = match filesystem {
            Filesystem::Ext4 => "e2fsprogs",
            Filesystem::Xfs => "xfsprogs",
        };
        let packages = fs::read_to_string(root_disk.with_file_name("packages"))?;
        let version =
            packages.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix(' '));
        let daemon = Command::new(daemon).arg("--version").output().context("vhost-pmemd")?;
        let daemon = String::from_utf8_lossy(&daemon.stdout).trim().to_owned();
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            facts: vec![
                ("options", std::env::args().skip(2).collect::<Vec<_>>().join(" ")),
                ("xfstests", described(suite)),
                ("vhost-pmemd", daemon.rsplit(' ').next().unwrap_or_default().to_owned()),
                ("QEMU", lab.qemu().version().to_string()),
                ("kernel", lab.kernel_release(kernel)?),
                (package, version.unwrap_or("unknown").to_owned()),
            ],
        })
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:12} {}", "date", self.date)?;
        self.facts.iter().try_for_each(|(name, value)| writeln!(f, "{name:12} {value}"))
    }
}

/// The version of a cloned xfstests. One that isn't a clone has none: git would tell that of what the
/// tree lies in.
fn described(suite: &Path) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(suite).args(["describe", "--always", "--tags", "--dirty"]);
    let output = suite.join(".git").exists().then(|| git.output().ok()).flatten();
    match output {
        Some(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
