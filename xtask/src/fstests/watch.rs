// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Follows what a guest prints, from test to test.

use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use guest_harness::patience;

use super::verdict::{Ended, Verdict};

/// How long a guest may take to boot, and from one test to the next.
const BETWEEN_TESTS: Duration = Duration::from_secs(300);
/// How long the guest, which watches a test's time too, may take to tell what it hangs on.
const GRACE: Duration = Duration::from_secs(20);

/// Follows one guest.
pub(crate) struct Watch {
    lines: Receiver<String>,
    limit: Duration,
    running: Option<Running>,
    ended: Vec<Ended>,
}

/// Why no more lines are read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// QEMU has ended.
    Gone,
    /// A test hit its limit, or no test begins.
    Hung,
}

/// A test that runs.
struct Running {
    test: String,
    began: Instant,
    output: String,
    console: String,
}

impl Running {
    /// The kernel's last words, if it panicked.
    fn panic(&self) -> Option<&str> {
        let line = self.console.lines().find(|line| line.contains("Kernel panic"))?;
        line.find("Kernel panic").map(|at| &line[at..])
    }

    fn end(self, verdict: Verdict) -> Ended {
        let Self { test, began, output, console } = self;
        Ended { test, verdict, elapsed: began.elapsed(), output, console }
    }
}

impl Watch {
    /// Follows the guest that prints `lines`, and gives each test as long as `limit`.
    pub(crate) fn new(lines: Receiver<String>, limit: Duration) -> Self {
        Self { lines, limit, running: None, ended: Vec::new() }
    }

    /// Reads to the end of the guest, or until it hangs. Hands each test that ended to `on_end`.
    pub(crate) fn follow(&mut self, mut on_end: impl FnMut(&Ended)) -> Result<End> {
        loop {
            let patience = match &self.running {
                Some(running) => {
                    (self.limit + patience(GRACE)).saturating_sub(running.began.elapsed())
                }
                None => patience(BETWEEN_TESTS),
            };
            match self.lines.recv_timeout(patience) {
                Err(RecvTimeoutError::Timeout) => return Ok(End::Hung),
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Gone),
                Ok(line) if line == "MARK hung" && self.running.is_some() => return Ok(End::Hung),
                Ok(line) => self.take(&line, &mut on_end)?,
            }
        }
    }

    /// All tests, once the guest has ended with `qemu`: the one that ran then is to blame. `trouble` is
    /// that of its devices, if they had some.
    pub(crate) fn conclude(
        mut self,
        end: End,
        qemu: ExitStatus,
        trouble: Option<String>,
        mut on_end: impl FnMut(&Ended),
    ) -> Vec<Ended> {
        if let Some(running) = self.running.take() {
            let verdict = match (trouble, end) {
                (Some(trouble), _) => Verdict::Crashed(trouble),
                (None, End::Hung) => {
                    Verdict::Hung(format!("no end after {} s", self.limit.as_secs()))
                }
                (None, End::Gone) => {
                    let panic = running.panic().map(str::to_owned);
                    Verdict::Crashed(panic.unwrap_or_else(|| format!("QEMU ended ({qemu})")))
                }
            };
            self.end(running.end(verdict), &mut on_end);
        } else if let (Some(trouble), Some(last)) = (trouble, self.ended.last_mut()) {
            // Devices that are gone pass no further test.
            last.verdict = Verdict::Crashed(trouble);
            on_end(last);
        }
        self.ended
    }

    fn take(&mut self, line: &str, on_end: &mut impl FnMut(&Ended)) -> Result<()> {
        if let Some(missing) = line.strip_prefix("MARK unusable ") {
            bail!(
                "ltp/fsstress doesn't run on the guest's Debian 13: {missing}. \
                 Build xfstests on Debian 13, or in a container of it (docs/fstests.md)"
            );
        }
        if let Some(test) = line.strip_prefix("MARK begin ") {
            if let Some(running) = self.running.take() {
                let why = "its end wasn't to be read on the console";
                self.end(running.end(Verdict::Failed(why.to_owned())), on_end);
            }
            let test = test.to_owned();
            let (output, console) = (String::new(), String::new());
            self.running = Some(Running { test, began: Instant::now(), output, console });
            return Ok(());
        }
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        if let Some(status) = line.strip_prefix("MARK end ") {
            let status = status.parse().unwrap_or(-1);
            let verdict = Verdict::of_check(&running.test, &running.output, status);
            self.end(running.end(verdict), on_end);
            return Ok(());
        }
        let (text, line) = match line.strip_prefix("CHECK ") {
            Some(line) => (&mut running.output, line),
            None => (&mut running.console, line),
        };
        text.push_str(line);
        text.push('\n');
        self.running = Some(running);
        Ok(())
    }

    fn end(&mut self, ended: Ended, on_end: &mut impl FnMut(&Ended)) {
        on_end(&ended);
        self.ended.push(ended);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::sync::mpsc::channel;

    use super::*;

    /// A watch on a guest that has printed all of `text`; it lives on if `alive`.
    fn follow(text: &str, alive: bool) -> (Watch, Result<End>) {
        let (sender, lines) = channel();
        text.lines().for_each(|line| sender.send(line.to_owned()).unwrap());
        let _sender = alive.then_some(sender);
        let mut watch = Watch::new(lines, Duration::ZERO);
        let end = watch.follow(|_| ());
        (watch, end)
    }

    const FIRST: &str = "MARK boot 6.12\nMARK begin generic/001\nCHECK generic/001  1s\n\
                         CHECK Ran: generic/001\n[ 1.0] noise\nMARK end 0\n";

    /// The tests, and how they ended, of a guest that printed `text` and has ended.
    fn conclusion(text: &str, alive: bool, trouble: Option<&str>) -> String {
        let (watch, end) = follow(text, alive);
        let trouble = trouble.map(str::to_owned);
        let ended = watch.conclude(end.unwrap(), ExitStatus::from_raw(7), trouble, |_| ());
        let lines: Vec<_> =
            ended.iter().map(|ended| format!("{} {}", ended.test, ended.verdict)).collect();
        lines.join("\n")
    }

    #[test]
    fn tests_end_one_behind_another() {
        let text = format!(
            "{FIRST}MARK begin generic/002\nCHECK Failures: generic/002\nMARK end 1\nMARK done rc=0\n"
        );
        let (watch, end) = follow(&text, false);
        assert_eq!(end.unwrap(), End::Gone);
        assert!(watch.running.is_none());
        let verdicts: Vec<_> = watch.ended.iter().map(|ended| ended.verdict.word()).collect();
        assert_eq!(verdicts, ["passed", "failed"]);
        assert_eq!(watch.ended[0].output, "generic/001  1s\nRan: generic/001\n");
        assert_eq!(watch.ended[0].console, "[ 1.0] noise\n");
    }

    #[test]
    fn test_whose_end_is_garbled_failed() {
        let text = "MARK begin generic/001\nMARK [ 1.0] noise\nMARK begin generic/002\n";
        assert_eq!(
            conclusion(text, false, None),
            "generic/001 failed: its end wasn't to be read on the console\n\
             generic/002 crashed: QEMU ended (signal: 7 (SIGBUS))"
        );
    }

    #[test]
    fn guest_that_hangs_or_panics_is_blamed_on_the_test_that_ran() {
        let text = format!("{FIRST}MARK begin generic/002\n");
        let hung = "generic/001 passed\ngeneric/002 hung: no end after 0 s";
        assert_eq!(conclusion(&format!("{text}MARK hung\n"), true, None), hung);
        let panic = "[    3.1] Kernel panic - not syncing: x\n";
        let crashed = "generic/001 passed\ngeneric/002 crashed: Kernel panic - not syncing: x";
        assert_eq!(conclusion(&format!("{text}{panic}"), false, None), crashed);
    }

    #[test]
    fn devices_that_end_are_blamed_on_the_test_that_ran() {
        let text = format!("{FIRST}MARK begin generic/002\nMARK hung\n");
        assert_eq!(
            conclusion(&text, true, Some("gone")),
            "generic/001 passed\ngeneric/002 crashed: gone"
        );
        assert_eq!(conclusion(FIRST, false, Some("gone")), "generic/001 crashed: gone");
    }

    #[test]
    fn programs_that_miss_a_library_are_refused() {
        let error = follow("MARK unusable libaio.so.1 => not found\n", true).1.unwrap_err();
        assert!(error.to_string().contains("libaio.so.1 => not found. Build xfstests"), "{error}");
    }
}
