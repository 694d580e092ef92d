// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Follows what a guest prints, from test to test.

use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use guest_harness::patience;

use super::interrupt::Interrupt;
use super::verdict::{Ended, Verdict};

/// How long a guest may take to boot, and from one test to the next.
const BETWEEN_TESTS: Duration = Duration::from_secs(300);
/// How long the guest, which watches a test's time too, may take to tell what it hangs on.
const GRACE: Duration = Duration::from_secs(20);

/// How often to look for an interruption.
const LOOK: Duration = Duration::from_millis(200);

/// Follows one guest.
pub(crate) struct Watch<'a> {
    lines: Receiver<String>,
    interrupt: &'a Interrupt,
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
    /// The user wants no more.
    Interrupted,
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

impl<'a> Watch<'a> {
    /// Follows the guest that prints `lines`, and gives each test as long as `limit`.
    pub(crate) fn new(lines: Receiver<String>, limit: Duration, interrupt: &'a Interrupt) -> Self {
        Self { lines, interrupt, limit, running: None, ended: Vec::new() }
    }

    /// Reads to the end of the guest, or until it hangs. Hands each test that ended to `on_end`.
    pub(crate) fn follow(&mut self, mut on_end: impl FnMut(&Ended)) -> Result<End> {
        let mut last = Instant::now();
        loop {
            let left = match &self.running {
                Some(running) => {
                    (self.limit + patience(GRACE)).saturating_sub(running.began.elapsed())
                }
                None => patience(BETWEEN_TESTS).saturating_sub(last.elapsed()),
            };
            match self.lines.recv_timeout(left.min(LOOK)) {
                _ if self.interrupt.came() => return Ok(End::Interrupted),
                Err(RecvTimeoutError::Timeout) if left > LOOK => continue,
                Err(RecvTimeoutError::Timeout) => return Ok(End::Hung),
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Gone),
                Ok(line) if line == "MARK hung" && self.running.is_some() => return Ok(End::Hung),
                Ok(line) => self.take(&line, &mut on_end)?,
            }
            last = Instant::now();
        }
    }

    /// All tests, once the guest has ended with `qemu`: the one that ran then is to blame. `trouble` is
    /// that of its devices, if they had some. An interruption is no one's fault: what ends a terminal's
    /// programs ends QEMU and the daemons as well, and the test that ran has no verdict.
    pub(crate) fn conclude(
        mut self,
        end: End,
        qemu: ExitStatus,
        trouble: Option<String>,
        mut on_end: impl FnMut(&Ended),
    ) -> Vec<Ended> {
        if end == End::Interrupted || self.interrupt.came() {
            return self.ended;
        }
        if let Some(running) = self.running.take() {
            let verdict = match (trouble, end) {
                (Some(trouble), _) => Verdict::Crashed(trouble),
                (None, End::Hung) => {
                    Verdict::Hung(format!("no end after {} s", self.limit.as_secs()))
                }
                (None, _) => {
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
        let check = line.strip_prefix("CHECK ");
        if let Some((head, test)) = check.and_then(|line| line.split_once("MARK begin ")) {
            self.end_running(on_end);
            let (test, output) = (test.to_owned(), head.to_owned());
            let console = String::new();
            self.running = Some(Running { test, began: Instant::now(), output, console });
        } else if line.starts_with("MARK end ") {
            let output = self.end_running(on_end);
            self.compare_with(&output, on_end);
        } else if let Some(running) = &mut self.running {
            let (text, line) = match check {
                Some(line) => (&mut running.output, line),
                None => (&mut running.console, line),
            };
            text.push_str(line);
            text.push('\n');
        }
        Ok(())
    }

    /// Ends the test that runs, if one does, and returns what `check` has printed since it began.
    fn end_running(&mut self, on_end: &mut impl FnMut(&Ended)) -> String {
        let Some(running) = self.running.take() else { return String::new() };
        let output = running.output.clone();
        let verdict = Verdict::of_check(&running.test, &output);
        self.end(running.end(verdict), on_end);
        output
    }

    /// Compares the verdicts with what `check` says at its end, lest one that failed passes here.
    fn compare_with(&mut self, output: &str, on_end: &mut impl FnMut(&Ended)) {
        for test in Verdict::failures(output) {
            let ended = self.ended.iter_mut().find(|ended| ended.test == test);
            if let Some(ended) = ended.filter(|ended| !ended.verdict.is_bad()) {
                ended.verdict = Verdict::Failed("it is among check's failures".to_owned());
                on_end(ended);
            }
        }
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

    /// How a guest ends that prints all of `text`, by its watch; it lives on if `alive`.
    fn follow<'a>(text: &str, alive: bool, interrupt: &'a Interrupt) -> (Watch<'a>, Result<End>) {
        let (sender, lines) = channel();
        text.lines().for_each(|line| sender.send(line.to_owned()).unwrap());
        let _sender = alive.then_some(sender);
        let mut watch = Watch::new(lines, Duration::ZERO, interrupt);
        let end = watch.follow(|_| ());
        (watch, end)
    }

    const FIRST: &str = "MARK boot 6.12\nCHECK FSTYP -- ext4\n\
                         CHECK generic/001       MARK begin generic/001\n\
                         [ 1.0] noise\nCHECK  1s\n";
    const SECOND: &str = "CHECK generic/002       MARK begin generic/002\n";

    /// The tests, and how they ended, of a guest that printed `text` and has ended.
    fn conclusion(text: &str, alive: bool, trouble: Option<&str>) -> String {
        let interrupt = Interrupt::default();
        let (watch, end) = follow(text, alive, &interrupt);
        let trouble = trouble.map(str::to_owned);
        let ended = watch.conclude(end.unwrap(), ExitStatus::from_raw(7), trouble, |_| ());
        let lines: Vec<_> =
            ended.iter().map(|ended| format!("{} {}", ended.test, ended.verdict)).collect();
        lines.join("\n")
    }

    #[test]
    fn tests_end_where_the_next_begins_or_check_ends() {
        let text = format!(
            "{FIRST}{SECOND}CHECK - output mismatch (see /r)\nCHECK Ran: generic/001 generic/002\n\
             CHECK Failures: generic/002\nMARK end 1\nMARK done rc=0\n"
        );
        let interrupt = Interrupt::default();
        let (watch, end) = follow(&text, false, &interrupt);
        assert_eq!(end.unwrap(), End::Gone);
        assert!(watch.running.is_none());
        let verdicts: Vec<_> = watch.ended.iter().map(|ended| ended.verdict.word()).collect();
        assert_eq!(verdicts, ["passed", "failed"]);
        assert_eq!(watch.ended[0].output, "generic/001        1s\n");
        assert_eq!(watch.ended[0].console, "[ 1.0] noise\n");
    }

    #[test]
    fn test_that_check_says_failed_does_not_pass() {
        let text = format!("{FIRST}{SECOND}CHECK  1s\nCHECK Failures: generic/001\nMARK end 1\n");
        assert_eq!(
            conclusion(&text, false, None),
            "generic/001 failed: it is among check's failures\ngeneric/002 passed"
        );
    }

    #[test]
    fn check_that_gives_up_passes_no_test() {
        let text =
            format!("{FIRST}{SECOND}CHECK Interrupted!\nCHECK Passed all 1 tests\nMARK end 1\n");
        assert_eq!(
            conclusion(&text, false, None),
            "generic/001 passed\ngeneric/002 failed: check doesn't say why"
        );
    }

    #[test]
    fn guest_that_hangs_or_panics_is_blamed_on_the_test_that_ran() {
        let text = format!("{FIRST}{SECOND}");
        let hung = "generic/001 passed\ngeneric/002 hung: no end after 0 s";
        assert_eq!(conclusion(&format!("{text}MARK hung\n"), true, None), hung);
        let panic = "[    3.1] Kernel panic - not syncing: x\n";
        let crashed = "generic/001 passed\ngeneric/002 crashed: Kernel panic - not syncing: x";
        assert_eq!(conclusion(&format!("{text}{panic}"), false, None), crashed);
        let gone = "generic/001 passed\ngeneric/002 crashed: QEMU ended (signal: 7 (SIGBUS))";
        assert_eq!(conclusion(&text, false, None), gone);
    }

    #[test]
    fn devices_that_end_are_blamed_on_the_test_that_ran() {
        let text = format!("{FIRST}{SECOND}MARK hung\n");
        assert_eq!(
            conclusion(&text, true, Some("gone")),
            "generic/001 passed\ngeneric/002 crashed: gone"
        );
        let all = format!("{FIRST}MARK end 0\n");
        assert_eq!(conclusion(&all, false, Some("gone")), "generic/001 crashed: gone");
    }

    #[test]
    fn test_that_is_interrupted_has_no_verdict() {
        let interrupt = Interrupt::default();
        let (mut watch, end) = follow(&format!("{FIRST}{SECOND}"), false, &interrupt);
        assert_eq!(end.unwrap(), End::Gone);
        interrupt.come();
        assert_eq!(watch.follow(|_| ()).unwrap(), End::Interrupted);
        let gone = Some("gone".to_owned());
        let ended = watch.conclude(End::Gone, ExitStatus::from_raw(7), gone, |_| ());
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].verdict, Verdict::Passed);
    }

    #[test]
    fn programs_that_miss_a_library_are_refused() {
        let interrupt = Interrupt::default();
        let text = "MARK unusable libaio.so.1 => not found\n";
        let error = follow(text, true, &interrupt).1.unwrap_err();
        assert!(error.to_string().contains("libaio.so.1 => not found. Build xfstests"), "{error}");
    }
}
