// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest prints on its serial line, as it comes, and how its QEMU ended.

use std::io::{BufRead, BufReader, Read};
use std::process::ExitStatus;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Takes each line a guest prints.
pub(crate) type OnLine = Box<dyn FnMut(&str) + Send>;

/// Shared by the thread that reads, the one that minds QEMU and those that wait.
#[derive(Default)]
pub(crate) struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    serial: String,
    /// Where in `serial` the next [`Console::wait_for`] begins.
    cursor: usize,
    end: Option<End>,
}

/// How QEMU ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// `None` if the process couldn't be collected.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) timed_out: bool,
}

impl Console {
    /// Reads until the other end is closed.
    pub(crate) fn read_from(&self, serial: impl Read, mut on_line: Option<OnLine>) {
        let mut reader = BufReader::new(serial);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let line = plain_line(&bytes);
            if let Some(on_line) = &mut on_line {
                on_line(&line);
            }
            self.update(|state| {
                state.serial.push_str(&line);
                state.serial.push('\n');
            });
            bytes.clear();
        }
    }

    /// Says that QEMU has ended.
    pub(crate) fn end(&self, end: End) {
        self.update(|state| state.end = Some(end));
    }

    /// Waits for a line that contains `text`, among those after the last one waited for; none will
    /// come any more if this returns `None`.
    pub(crate) fn wait_for(&self, text: &str) -> Option<String> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.next_line_with(text) {
                return Some(line);
            }
            if state.end.is_some() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until QEMU has ended.
    pub(crate) fn wait_end(&self) -> End {
        let mut state = self.lock();
        loop {
            if let Some(end) = state.end {
                return end;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All that has been printed so far.
    pub(crate) fn serial(&self) -> String {
        self.lock().serial.clone()
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_line_with(&mut self, text: &str) -> Option<String> {
        let mut position = self.cursor;
        for line in self.serial[self.cursor..].split_inclusive('\n') {
            position += line.len();
            if line.contains(text) {
                let line = line.trim_end_matches('\n').to_owned();
                self.cursor = position;
                return Some(line);
            }
        }
        // What has been looked at may still be what the next call waits for.
        None
    }
}

/// A line without its end, which is one or more CRs and an LF.
fn plain_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches(['\r', '\n']).to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn console(bytes: &[u8]) -> Console {
        let console = Console::default();
        console.read_from(bytes, None);
        console.end(End { status: Some(ExitStatus::from_raw(0)), timed_out: false });
        console
    }

    #[test]
    fn serial_with_carriage_returns_is_normalised() {
        assert_eq!(console(b"a\r\nb\r\r\n\nlast").serial(), "a\nb\n\nlast\n");
    }

    #[test]
    fn serial_that_is_no_text_is_kept_readable() {
        assert_eq!(console(b"\xff a\n").serial(), "\u{fffd} a\n");
    }

    #[test]
    fn wait_for_repeated_line_goes_forward() {
        let console = console(b"MARK up 1\nx\nMARK up 2\n");
        assert_eq!(console.wait_for("MARK up").as_deref(), Some("MARK up 1"));
        assert_eq!(console.wait_for("MARK up").as_deref(), Some("MARK up 2"));
        assert_eq!(console.wait_for("MARK up"), None);
    }

    #[test]
    fn wait_for_missing_line_skips_nothing() {
        let console = console(b"a\nb\n");
        assert_eq!(console.wait_for("c"), None);
        assert_eq!(console.wait_for("a").as_deref(), Some("a"));
    }

    #[test]
    fn line_as_it_comes_is_passed_on() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let send: OnLine = Box::new(move |line: &str| sender.send(line.to_owned()).unwrap());
        Console::default().read_from(b"a\r\nb\n".as_slice(), Some(send));
        assert_eq!(receiver.iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
