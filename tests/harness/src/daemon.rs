// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A `vhost-pmemd` to attach guests to.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::console::{Console, End};
use crate::held::Held;
use crate::patience::patience;

/// A running daemon on a socket of its own; dropping it kills it.
pub struct Daemon {
    child: Child,
    console: Arc<Console>,
    reader: Option<JoinHandle<()>>,
    socket: PathBuf,
    _dir: TempDir,
}

impl Daemon {
    /// Starts the executable `program` with `args` and a socket, and waits until frontends may
    /// connect.
    ///
    /// # Errors
    ///
    /// When it ends before; with what it said.
    pub fn start(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("daemon-").tempdir()?;
        let socket = dir.path().join("socket");
        let program = program.as_ref();
        let mut child = Command::new(program)
            .arg("--socket-path")
            .arg(&socket)
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let console = Arc::new(Console::default());
        let stderr = child.stderr.take();
        let reader = thread::spawn({
            let console = Arc::clone(&console);
            move || {
                if let Some(stderr) = stderr {
                    console.read_from(stderr, None);
                }
                console.end(End { status: None, timed_out: false });
            }
        });
        let daemon = Self { child, console, reader: Some(reader), socket, _dir: dir };
        daemon.wait_for_log("waiting for a frontend")?;
        Ok(daemon)
    }

    /// The same, for what needs a served window; `None`, and a word on why, where this machine lets
    /// nobody have one.
    ///
    /// # Errors
    ///
    /// As [`Daemon::start`], for any other reason.
    pub fn start_served(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Option<Self>> {
        match Self::start(program, args) {
            Err(error) if format!("{error:#}").contains("a served window needs") => {
                eprintln!("skipped: {error:#}");
                Ok(None)
            }
            daemon => daemon.map(Some),
        }
    }

    /// The socket it listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.console.serial()
    }

    /// Waits for it to log a line that contains `text`, among those after the last one waited for.
    ///
    /// # Errors
    ///
    /// When it ends without.
    pub fn wait_for_log(&self, text: &str) -> Result<String> {
        match self.console.wait_for(text) {
            Some(line) => Ok(line),
            None => bail!("the daemon ended before {text:?}:\n{}", self.log()),
        }
    }

    /// Waits for it to have logged a line that contains `text`, at any time.
    ///
    /// # Errors
    ///
    /// When it ends without.
    pub fn wait_until_logged(&self, text: &str) -> Result<()> {
        match self.log().contains(text) {
            true => Ok(()),
            // It may have come meanwhile: that is behind the last one waited for, too.
            false => self.wait_for_log(text).map(drop),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended by itself.
    ///
    /// # Errors
    ///
    /// When it can't be collected.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// When it has ended, or Linux doesn't tell.
    pub fn held(&self) -> Result<Held> {
        Held::by(self.pid())
    }

    /// Sends it `signal`.
    ///
    /// # Errors
    ///
    /// When it was collected already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Kills it, and waits for it to be gone, for at most `limit` on a quiet machine.
    ///
    /// # Errors
    ///
    /// If it can't be killed, or is there still.
    pub fn kill(mut self, limit: Duration) -> Result<()> {
        self.signal(Signal::KILL)?;
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "killed, and there still after {limit:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Has it end in order, by SIGTERM, and returns its exit status and all it logged.
    ///
    /// # Errors
    ///
    /// When it was collected already.
    pub fn terminate(mut self) -> Result<(ExitStatus, String)> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            // It ends with the pipe; a panic of its would only mean a shorter log.
            let _ = reader.join();
        }
        Ok((status, self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the daemon's log:\n{}", self.log().trim_end());
        }
    }
}
