// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a VM ended.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Result, bail};

/// What the kernel prints when it is in trouble.
const TROUBLE: [&str; 5] = ["Oops", "Kernel panic", "BUG:", "Call Trace", "MARK insmod-failed"];

/// What is left of a VM.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit status of the script, unless the guest ended before it.
    pub script_status: Option<i32>,
    /// All the guest printed, its kernel's messages included, with plain line feeds.
    pub serial: String,
    /// How QEMU ended.
    pub qemu_status: ExitStatus,
    /// What QEMU itself had to say.
    pub qemu_stderr: String,
    /// Whether the VM was ended by its time limit.
    pub timed_out: bool,
    /// From the start of QEMU to its end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Passes on the outcome of a script that returned 0 in a guest whose kernel had no trouble and
    /// whose QEMU exited with 0.
    ///
    /// # Errors
    ///
    /// Else, with the last lines the guest printed.
    pub fn expect_success(self) -> Result<Self> {
        match self.failure() {
            None => Ok(self),
            Some(failure) => bail!("{failure}{}", tail(&self.serial, &self.qemu_stderr)),
        }
    }

    fn failure(&self) -> Option<String> {
        if self.timed_out {
            return Some(format!("the guest hit its time limit after {:.0?}", self.elapsed));
        }
        let lines: Vec<_> = self.serial.lines().collect();
        let is_trouble = |line: &&str| TROUBLE.iter().any(|word| line.contains(word));
        if let Some(at) = lines.iter().position(is_trouble) {
            // Before a `Call Trace` comes what is wrong, and where.
            let report = lines[at.saturating_sub(10)..=at].join("\n");
            return Some(format!("the guest's kernel is in trouble: {report}"));
        }
        if !self.qemu_status.success() {
            return Some(format!("QEMU failed ({})", self.qemu_status));
        }
        match self.script_status {
            Some(0) => None,
            Some(status) => Some(format!("the guest's script returned {status}")),
            None => Some("the guest ended before its script".to_owned()),
        }
    }
}

/// The status in the last `MARK done rc=N` line.
pub(crate) fn script_status(serial: &str) -> Option<i32> {
    serial.lines().rev().find_map(|line| line.strip_prefix("MARK done rc=")?.parse().ok())
}

/// The last lines of what guest and QEMU printed, for an error.
pub(crate) fn tail(serial: &str, qemu_stderr: &str) -> String {
    const LINES: usize = 40;
    let mut text = String::from("\n--- the guest's last lines:");
    let lines: Vec<_> = serial.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        text.push('\n');
        text.push_str(line);
    }
    if !qemu_stderr.is_empty() {
        text.push_str("\n--- QEMU:\n");
        text.push_str(qemu_stderr.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn outcome(serial: &str, wait_status: i32) -> Outcome {
        Outcome {
            script_status: script_status(serial),
            serial: serial.to_owned(),
            qemu_status: ExitStatus::from_raw(wait_status),
            qemu_stderr: "qemu: warning".to_owned(),
            timed_out: false,
            elapsed: Duration::from_secs(7),
        }
    }

    fn error(outcome: Outcome) -> String {
        outcome.expect_success().unwrap_err().to_string()
    }

    #[test]
    fn outcome_with_status_zero_is_success() {
        assert!(outcome("hello\nMARK done rc=0\n", 0).expect_success().is_ok());
    }

    #[test]
    fn outcome_with_script_status_is_failure_with_tail() {
        let error = error(outcome("hello\nMARK done rc=3\n", 0));
        assert!(error.starts_with("the guest's script returned 3\n"), "{error}");
        assert!(
            error.contains("\nhello\n") && error.ends_with("--- QEMU:\nqemu: warning"),
            "{error}"
        );
    }

    #[test]
    fn outcome_without_mark_is_failure() {
        assert_eq!(outcome("echo MARK done rc=0\n", 0).script_status, None);
        assert!(error(outcome("hello\n", 0)).contains("ended before its script"));
    }

    #[test]
    fn outcome_with_kernel_trouble_is_failure_despite_status_zero() {
        let serial = "[    1.0] BUG: unable to handle page fault\nMARK done rc=0\n";
        assert!(error(outcome(serial, 0)).contains("unable to handle"));
        let stall = "[    1.0] rcu: self-detected stall\n[    1.1] CPU: 0\n[    1.2] Call Trace:\n";
        let serial = format!("{stall}{}", "more\n".repeat(50));
        assert!(error(outcome(&serial, 0)).contains("in trouble: [    1.0] rcu: self-detected"));
    }

    #[test]
    fn outcome_of_failed_qemu_is_failure() {
        assert!(error(outcome("MARK done rc=0\n", 9)).contains("QEMU failed (signal: 9"));
    }

    #[test]
    fn outcome_at_time_limit_is_failure() {
        let outcome = Outcome { timed_out: true, ..outcome("MARK done rc=0\n", 9) };
        assert!(error(outcome).contains("time limit"));
    }
}
