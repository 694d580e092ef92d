// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One boot of a guest: it runs tests until there are none left, or one hangs or crashes it.

use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_harness::{Access, Kernel, Lab, Outcome, VmBuilder};

use super::artefacts;
use super::device::Device;
use super::interrupt::Interrupt;
use super::options::{Dax, Filesystem};
use super::verdict::Ended;
use super::watch::{End, Watch};
use crate::process::run;

/// The guest's end is by its tests' limits.
const EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Sparse, and more than tests log.
const RESULTS_SIZE: &str = "4G";

/// What all boots have in common.
pub(crate) struct Setup<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) root_disk: &'a Path,
    pub(crate) suite_disk: &'a Path,
    pub(crate) kernel: Kernel,
    pub(crate) filesystem: Filesystem,
    pub(crate) dax: Dax,
    pub(crate) device_mib: u64,
    /// Of a test.
    pub(crate) limit: Duration,
    pub(crate) interrupt: &'a Interrupt,
}

impl Setup<'_> {
    /// Runs `tests`, at least the first, on two devices of `device`; hands each to `on_end`. What the
    /// guest leaves is then in `dir`, its console and the daemons' logs, and in `kept`, for each test that
    /// went bad.
    pub(crate) fn boot(
        &self,
        device: &Device,
        tests: &[String],
        dir: &Path,
        kept: &Path,
        mut on_end: impl FnMut(&Ended),
    ) -> Result<Vec<Ended>> {
        fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let results = dir.join(artefacts::DISK);
        let mut mke2fs = self.lab.host_tool("mke2fs")?;
        mke2fs.args(["-qF", "-t", "ext4", "-O", "^has_journal"]).arg(&results);
        run(mke2fs.arg(RESULTS_SIZE))?;

        let log_writes = tempfile::NamedTempFile::new_in(&dir)?;
        log_writes.as_file().set_len(self.device_mib << 20)?;
        let (sender, lines) = channel();
        let vm = self
            .guest(&results, log_writes.path(), tests)
            .on_line(move |line| sender.send(line.to_owned()).unwrap_or_default());
        let (vm, devices) = device.attach(vm, &dir, self.device_mib)?;
        let vm = vm.boot()?;
        let mut watch = Watch::new(lines, self.limit, self.interrupt);
        let end = watch.follow(&mut on_end)?;
        let outcome = if end == End::Gone { vm.wait()? } else { vm.kill()? };
        fs::write(dir.join("console.log"), &outcome.serial)?;
        let trouble = devices.finish(&dir)?;
        let ended = watch.conclude(end, outcome.qemu_status, trouble, on_end);
        if ended.is_empty() && !self.interrupt.came() {
            bail!("the guest got to no test: {}", last_words(&outcome));
        }
        artefacts::keep(self.lab, &dir, &ended, kept)
            .with_context(|| format!("cannot keep the results in {}", kept.display()))?;
        Ok(ended)
    }

    /// The guest, but for what it is tested on.
    fn guest(&self, results: &Path, log_writes: &Path, tests: &[String]) -> VmBuilder<'_> {
        let vm = self
            .lab
            .vm()
            .kernel(self.kernel)
            .memory_mib(2048)
            .cpus(2)
            .time_limit(EVER)
            .module("overlay")
            .module("loop")
            .disk(self.root_disk, Access::ReadOnly)
            .disk(self.suite_disk, Access::ReadOnly)
            .disk(results, Access::ReadWrite)
            .disk(log_writes, Access::ReadWrite)
            .script(&self.script(tests));
        match self.filesystem {
            Filesystem::Ext4 => vm,
            Filesystem::Xfs => vm.module("xfs"),
        }
    }

    /// What the guest runs: one script, which the other one takes over from in the new root.
    fn script(&self, tests: &[String]) -> String {
        let (mkfs, options) = match self.filesystem {
            // DAX wants blocks as large as pages; a small device would get smaller ones.
            Filesystem::Ext4 => ("mkfs.ext4 -qF", "-b 4096"),
            Filesystem::Xfs => ("mkfs.xfs -qf", ""),
        };
        format!(
            "cat >/run-tests <<'END_OF_TESTS'\nFSTYP={} MKFS='{mkfs}' MKFS_OPTIONS='{options}' \
             DAX={} LIMIT={}\nTESTS=({})\n{}END_OF_TESTS\n{}",
            self.filesystem.name(),
            self.dax.mount_option(),
            self.limit.as_secs(),
            tests.join(" "),
            include_str!("run_tests.sh"),
            include_str!("switch_root.sh"),
        )
    }
}

/// What a guest and its QEMU said at the end.
fn last_words(outcome: &Outcome) -> String {
    let lines: Vec<_> = outcome.serial.lines().collect();
    let tail = lines[lines.len().saturating_sub(30)..].join("\n");
    format!("QEMU ended ({}) after:\n{tail}\n{}", outcome.qemu_status, outcome.qemu_stderr)
}
