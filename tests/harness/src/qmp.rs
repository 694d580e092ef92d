// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's monitor protocol: one command a connection.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::patience::patience;

/// How long QEMU may take to open its socket, and then for each answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `command` and returns what QEMU returns.
pub(crate) fn execute(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let stream = connect(socket).context("cannot connect to QEMU's monitor")?;
    stream.set_read_timeout(Some(patience(PATIENCE)))?;
    let mut monitor = Monitor { reader: BufReader::new(stream.try_clone()?), writer: stream };
    monitor.receive()?; // the greeting
    monitor.run("qmp_capabilities", &json!({}))?;
    monitor.run(command, arguments)
}

fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        match UnixStream::connect(socket) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
}

struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Monitor {
    fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        writeln!(self.writer, "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut message = self.receive().with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            // Anything else is an event.
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A monitor that answers the second command with `answer`.
    fn serve(listener: &UnixListener, answer: &str) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        writeln!(stream, "{{\"QMP\": {{}}}}").unwrap();
        lines.next().unwrap().unwrap();
        writeln!(stream, "{{\"return\": {{}}}}").unwrap();
        lines.next().unwrap().unwrap();
        writeln!(stream, "{answer}").unwrap();
    }

    fn execute_answered(answer: &str) -> Result<Value> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&listener, answer));
            execute(&socket, "system_reset", &json!({}))
        })
    }

    #[test]
    fn answer_after_event_is_returned() {
        let value = execute_answered("{\"event\": \"RESET\"}\n{\"return\": 7}").unwrap();
        assert_eq!(value, json!(7));
    }

    #[test]
    fn answer_that_refuses_is_error() {
        let error = execute_answered("{\"error\": {\"desc\": \"no\"}}").unwrap_err();
        assert!(error.to_string().contains("refuses system_reset"), "{error}");
    }

    #[test]
    fn monitor_that_hangs_up_is_error() {
        assert!(execute_answered("").is_err());
    }
}
