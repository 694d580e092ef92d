// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A suite, and how it is run.

use std::time::Duration;

use anyhow::{Result, bail};
use guest_harness::{Lab, VmBuilder};

use crate::place::Place;
use crate::results::Case;
use crate::{known, record};

/// How to run a suite in a guest, and what it says.
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    /// Gives a guest the suite's programs.
    pub(crate) equip: fn(VmBuilder<'_>) -> Result<VmBuilder<'_>>,
    /// What the guest runs, which stops where a command fails.
    pub(crate) script: fn(Place) -> String,
    /// Reads what that printed.
    pub(crate) read: fn(&str) -> Vec<Case>,
    /// How many operations that are, for a suite whose cases don't tell.
    pub(crate) operations: fn(Place) -> Option<u64>,
    /// So many cases there are at least: a suite that stops half way has not passed.
    pub(crate) cases_min: fn(Place) -> usize,
}

/// A guest takes a minute; the time is for machines with much else to do.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// What stands before what the suite printed, once more and in one piece: as it came, there may be
/// messages of the kernel's in the middle of a line.
const AGAIN: &str = "MARK again";

impl Suite {
    /// Runs it, and leaves a record.
    ///
    /// # Panics
    ///
    /// If a case fails that isn't known to, or doesn't that is; or the guest, its kernel or QEMU
    /// fails.
    pub(crate) fn check(&self, place: Place) {
        if let Err(error) = self.run(place) {
            panic!("{} on {place}: {error:#}", self.name);
        }
    }

    fn run(&self, place: Place) -> Result<()> {
        let lab = Lab::open()?;
        let outcome = place.run(&lab, |vm| {
            Ok((self.equip)(vm)?.script(&self.script(place)).time_limit(TIME_LIMIT))
        })?;
        let Some(outcome) = outcome else { return Ok(()) };
        let (_, printed) = outcome.serial.split_once(AGAIN).unwrap_or_default();
        let cases = (self.read)(printed);
        let operations = (self.operations)(place);
        record::write(&lab, self.name, place, &outcome, &cases, operations)?;
        let outcome = outcome.expect_success()?;

        let mut complaints = known::complaints(self.name, place, &cases);
        let least = (self.cases_min)(place);
        if cases.len() < least {
            complaints.push(format!("{} cases ran, of {least} at least", cases.len()));
        }
        if !complaints.is_empty() {
            bail!("{}\n--- the guest:\n{}", complaints.join("\n"), outcome.serial);
        }
        Ok(())
    }

    fn script(&self, place: Place) -> String {
        let script = (self.script)(place);
        // A pipe ends as its last command does.
        format!(
            "{{ (set -eu
            {script}
            ) 2>&1; echo $? >status; }} | tee printed
            echo 2 >/proc/sys/kernel/printk
            echo '{AGAIN}'
            cat printed
            exit $(cat status)"
        )
    }
}
