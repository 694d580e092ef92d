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

    /// What `check` said of `test` alone, which it ended with `status`.
    pub(crate) fn of_check(test: &str, output: &str, status: i32) -> Self {
        let about = |word: &str| {
            let mut lists = output.lines().filter_map(|line| line.strip_prefix(word));
            lists.any(|tests| tests.split_whitespace().any(|name| name == test))
        };
        let said = output.lines().find_map(|line| said_of(test, line));
        if about("Failures:") {
            return Self::Failed(reason(said.unwrap_or_default()));
        }
        if about("Not run:") {
            let why = said.and_then(|said| said.split_once("[not run]")).map(|(_, why)| why.trim());
            return Self::NotRun(why.unwrap_or_default().to_owned());
        }
        if status == 0 && about("Ran:") {
            return Self::Passed;
        }
        Self::Failed(format!("check gave up: {}", last_words(output)))
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

/// What follows the test's name in a line that begins with it.
fn said_of<'a>(test: &str, line: &'a str) -> Option<&'a str> {
    let said = line.strip_prefix(test)?;
    said.is_empty()
        .then_some(said)
        .or_else(|| said.starts_with(char::is_whitespace).then_some(said))
}

/// `  3s ... [failed, exit status 1]- output mismatch (see FILE)` without the last time and the file.
fn reason(said: &str) -> String {
    let said = said.split(" (see ").next().unwrap_or(said);
    let said = said.split_once("s ...").map_or(said, |(_, said)| said);
    let said = said.trim_start_matches(['-', ' ', '\t']).trim_end();
    if said.is_empty() { "check doesn't say why".to_owned() } else { said.replace("]- ", "], ") }
}

/// The last line that isn't of the summary, which is printed whatever happened.
fn last_words(output: &str) -> &str {
    const SUMMARY: [&str; 4] = ["Ran:", "Interrupted!", "Passed all", "Not run:"];
    let of_summary = |line: &&str| SUMMARY.iter().any(|word| line.starts_with(word));
    let mut lines = output.lines().rev().filter(|line| !line.trim().is_empty());
    lines.find(|line| !of_summary(line)).unwrap_or("it printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "FSTYP         -- ext4\nMOUNT_OPTIONS -- -o dax=always /dev/pmem1 /scratch\n\n";

    fn verdict(rest: &str, status: i32) -> Verdict {
        Verdict::of_check("generic/001", &format!("{HEAD}{rest}"), status)
    }

    #[test]
    fn test_with_time_passed() {
        let rest = "generic/001 3s ...  4s\nRan: generic/001\nPassed all 1 tests\n\n";
        assert_eq!(verdict(rest, 0), Verdict::Passed);
    }

    #[test]
    fn test_not_run_has_its_reason() {
        let rest = "generic/001       [not run] no quota here\nRan: generic/001\nNot run: generic/001\nPassed all 1 tests\n";
        assert_eq!(verdict(rest, 0), Verdict::NotRun("no quota here".into()));
        let rest = rest.replace("Ran: generic/001\n", "");
        assert_eq!(verdict(&rest, 0), Verdict::NotRun("no quota here".into()));
    }

    #[test]
    fn test_failed_has_its_reason() {
        let end = "Ran: generic/001\nFailures: generic/001\nFailed 1 of 1 tests\n";
        for (said, why) in [
            (
                "       - output mismatch (see /r/generic/001.out.bad)\n    --- a\n",
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
            ("      \n", "check doesn't say why"),
        ] {
            let rest = format!("generic/001{said}{end}");
            assert_eq!(verdict(&rest, 1), Verdict::Failed(why.into()));
        }
    }

    #[test]
    fn check_that_gives_up_is_quoted() {
        let rest = "mount: bad option\ncheck: failed to mount $SCRATCH_DEV using specified options\nInterrupted!\nPassed all 0 tests\n";
        let why = "check gave up: check: failed to mount $SCRATCH_DEV using specified options";
        assert_eq!(verdict(rest, 1), Verdict::Failed(why.into()));
        assert_eq!(
            Verdict::of_check("generic/001", "", 127),
            Verdict::Failed("check gave up: it printed nothing".into())
        );
    }

    #[test]
    fn verdict_of_another_test_is_not_taken() {
        let rest = "generic/0011  4s\nRan: generic/0011\nPassed all 1 tests\n";
        assert!(verdict(rest, 0).is_bad());
    }
}
