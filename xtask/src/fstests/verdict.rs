// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a test ended.

use std::fmt;
use std::time::Duration;

/// What is known of a test that was started.
pub(crate) struct Ended {
    pub(crate) test: String,
    pub(crate) verdict: Verdict,
    pub(crate) elapsed: Duration,
    /// What `check` printed.
    pub(crate) output: String,
    /// What the guest's kernel printed.
    pub(crate) console: String,
}

/// How a test ended; each but the first with a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed(String),
    /// By its own choice: the guest lacks something that it wants.
    NotRun(String),
    /// It hit the time limit.
    Hung(String),
    /// The guest, or what serves it, ended.
    Crashed(String),
}

impl Verdict {
    /// One word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::NotRun(_) => "not run",
            Self::Hung(_) => "hung",
            Self::Crashed(_) => "crashed",
        }
    }

    /// Why; empty where it passed.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(why) | Self::NotRun(why) | Self::Hung(why) | Self::Crashed(why) => why,
        }
    }

    /// Whether someone should look at it.
    pub(crate) fn is_bad(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Hung(_) | Self::Crashed(_))
    }

    /// Reads what `check` printed of one test: its name, how long it took last, and how it ended.
    ///
    /// A test passed if the last that is said of it is how long it took, `generic/001        4s`: older
    /// versions complain after that, of a filesystem or of the kernel's log, newer ones leave it out.
    pub(crate) fn of_check(test: &str, output: &str) -> Self {
        let said = output.strip_prefix(test).unwrap_or(output).trim_start_matches([' ', '\t']);
        let said = said.lines().take_while(|line| !is_of_summary(line));
        let said: Vec<_> = said.map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let not_run = said.iter().find_map(|line| line.split_once("[not run]"));
        match (not_run, said.last()) {
            (Some((before, why)), _) if !is_of_diff(before) => Self::NotRun(why.trim().to_owned()),
            (_, Some(last)) if ends_in_seconds(last) => Self::Passed,
            _ => Self::Failed(reason(&said)),
        }
    }

    /// The tests that `check`, at its end, says failed.
    pub(crate) fn failures(output: &str) -> impl Iterator<Item = &str> {
        let lists = output.lines().filter_map(|line| line.strip_prefix("Failures:"));
        lists.flat_map(str::split_whitespace)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            "" => f.write_str(self.word()),
            reason => write!(f, "{}: {reason}", self.word()),
        }
    }
}

/// Whether `check` prints this line at its end, of all tests.
fn is_of_summary(line: &str) -> bool {
    const SUMMARY: [&str; 5] = ["Ran:", "Not run:", "Failures:", "Passed all", "Interrupted!"];
    SUMMARY.iter().any(|word| line.starts_with(word))
}

/// Whether a line that begins so is one of a test's output, which `check` indents.
fn is_of_diff(line: &str) -> bool {
    line.starts_with("    ")
}

/// `4s`, but no time of an earlier run, `3s ...`.
fn ends_in_seconds(line: &str) -> bool {
    let last = line.rsplit(char::is_whitespace).next().unwrap_or_default();
    let digits = last.strip_suffix('s').unwrap_or_default();
    !is_of_diff(line) && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The first complaint: `output mismatch` of `3s ... - output mismatch (see FILE)`.
fn reason(said: &[&str]) -> String {
    let mut complaints = said.iter().map(|line| {
        let said = line.split(" (see ").next().unwrap_or(line);
        let said = said.split_once("s ...").map_or(said, |(_, said)| said);
        said.trim_start_matches(['-', ' ', '\t']).trim_end()
    });
    match complaints.find(|said| !said.is_empty() && !ends_in_seconds(said)) {
        Some(said) => said.replace("]- ", "], "),
        None => "check doesn't say why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(output: &str) -> Verdict {
        Verdict::of_check("generic/001", output)
    }

    #[test]
    fn test_with_time_passed() {
        assert_eq!(verdict("generic/001         4s\n"), Verdict::Passed);
        assert_eq!(verdict("generic/001 3s ...  4s\n"), Verdict::Passed);
        let last = "generic/001         4s\nRan: generic/001\nPassed all 1 tests\n\n";
        assert_eq!(verdict(last), Verdict::Passed);
        // What is printed before the time is no complaint, as check took it for none.
        assert_eq!(verdict("generic/001  umount: target is busy\n 4s\n"), Verdict::Passed);
    }

    #[test]
    fn test_not_run_has_its_reason() {
        for output in [
            "generic/001       [not run] no quota here\n",
            "generic/001 3s ... [not run] no quota here\nNot run: generic/001\nPassed all 0 tests\n",
        ] {
            assert_eq!(verdict(output), Verdict::NotRun("no quota here".into()));
        }
        let failed = "generic/001       - output mismatch (see /r)\n    +[not run] no\n";
        assert_eq!(verdict(failed), Verdict::Failed("output mismatch".into()));
    }

    #[test]
    fn test_failed_has_its_reason() {
        for (said, why) in [
            (
                "       - output mismatch (see /r/generic/001.out.bad)\n    --- a\n    +4s\n",
                "output mismatch",
            ),
            (" 3s ... - output mismatch (see /r/generic/001.out.bad)\n", "output mismatch"),
            (
                "       [failed, exit status 1]- output mismatch (see /r/x)\n",
                "[failed, exit status 1], output mismatch",
            ),
            (
                "       _check_dmesg: something found in dmesg (see /r/x)\n",
                "_check_dmesg: something found in dmesg",
            ),
            // As older versions of check have it.
            ("        4s\n_check_dmesg: something (see /r/x)\n", "_check_dmesg: something"),
            ("      \n", "check doesn't say why"),
            (
                "       Ran: generic/001\nInterrupted!\nPassed all 0 tests\n",
                "check doesn't say why",
            ),
        ] {
            assert_eq!(verdict(&format!("generic/001{said}")), Verdict::Failed(why.into()));
        }
    }

    #[test]
    fn failures_are_read_from_the_end() {
        let output = " 4s\nRan: a/1 a/2 a/3\nFailures: a/1 a/3\nFailed 2 of 3 tests\n";
        assert_eq!(Verdict::failures(output).collect::<Vec<_>>(), ["a/1", "a/3"]);
    }
}
