// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A running VM.
//!
//! Two threads belong to it. The *minder* starts QEMU, kills it at the time limit and collects it;
//! the *reader* takes what the guest prints. QEMU gets SIGKILL when the minder dies, thus with the
//! process.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::console::{Console, End, OnLine};
use crate::outcome::{self, Outcome};
use crate::qmp;

/// A running VM; dropping it kills it.
pub struct Vm {
    console: Arc<Console>,
    qemu: OwnedFd,
    minder: Option<JoinHandle<()>>,
    started: Instant,
    files: VmFiles,
}

impl Vm {
    pub(crate) fn start(
        qemu: &Command,
        files: VmFiles,
        time_limit: Duration,
        on_line: Option<OnLine>,
    ) -> Result<Self> {
        let started = Instant::now();
        let console = Arc::new(Console::default());
        let mut command = tied_to_thread(qemu);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(files.qemu_stderr())?);
        let (sender, receiver) = mpsc::channel();
        let minder = thread::spawn({
            let console = Arc::clone(&console);
            move || match spawn(command) {
                Ok((child, pidfd, ours)) => {
                    // The receiver waits for this.
                    let _ = sender.send(Ok(ours));
                    mind(child, &pidfd, &console, time_limit, on_line);
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            }
        });
        let qemu = receiver.recv().context("the VM's thread panicked")??;
        Ok(Self { console, qemu, minder: Some(minder), started, files })
    }

    /// Waits for the guest to print a line that contains `text`, and returns it. Lines up to the
    /// last one waited for don't count.
    ///
    /// # Errors
    ///
    /// When the VM ends without, by its time limit at the latest.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        if let Some(line) = self.console.wait_for(text) {
            return Ok(line);
        }
        let end = self.console.wait_end();
        let why = match end.status {
            Some(status) if !end.timed_out => status.to_string(),
            Some(_) => "time limit".to_owned(),
            None => "status lost".to_owned(),
        };
        bail!(
            "the VM ended ({why}) before {text:?}{}",
            outcome::tail(&self.serial(), &self.qemu_stderr())
        );
    }

    /// All the guest has printed so far.
    #[must_use]
    pub fn serial(&self) -> String {
        self.console.serial()
    }

    /// Presses the reset button; QEMU exits unless reboots are allowed.
    ///
    /// # Errors
    ///
    /// When QEMU has ended.
    pub fn system_reset(&self) -> Result<()> {
        self.qmp("system_reset", &json!({})).map(drop)
    }

    /// Presses the power button, at which the guest's script gets SIGTERM.
    ///
    /// # Errors
    ///
    /// When QEMU has ended.
    pub fn system_powerdown(&self) -> Result<()> {
        self.qmp("system_powerdown", &json!({})).map(drop)
    }

    /// Runs a command of QEMU's monitor protocol and returns what it returns.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it or has ended.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        qmp::execute(&self.files.monitor(), command, arguments)
    }

    /// Kills QEMU as a power cut would.
    ///
    /// # Errors
    ///
    /// When it can't be signalled.
    pub fn kill(self) -> Result<Outcome> {
        kill(&self.qemu)?;
        self.wait()
    }

    /// Waits for QEMU to end.
    ///
    /// # Errors
    ///
    /// When a thread of the VM's panicked.
    pub fn wait(mut self) -> Result<Outcome> {
        let End { status, timed_out } = self.console.wait_end();
        let elapsed = self.started.elapsed();
        if let Some(minder) = self.minder.take() {
            minder.join().map_err(|_| anyhow!("the VM's thread panicked"))?;
        }
        let serial = self.serial();
        Ok(Outcome {
            script_status: outcome::script_status(&serial),
            serial,
            qemu_status: status.context("QEMU's exit status is lost")?,
            qemu_stderr: self.qemu_stderr(),
            timed_out,
            elapsed,
        })
    }

    fn qemu_stderr(&self) -> String {
        let bytes = fs::read(self.files.qemu_stderr()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(minder) = self.minder.take() {
            // A drop can't report an error. After this the minder is soon through.
            let _ = kill(&self.qemu);
            let _ = minder.join();
        }
    }
}

/// The directory of a VM's own files.
pub(crate) struct VmFiles(TempDir);

impl VmFiles {
    pub(crate) fn new(dir: TempDir) -> Self {
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn monitor(&self) -> PathBuf {
        self.path("monitor")
    }

    pub(crate) fn qemu_stderr(&self) -> PathBuf {
        self.path("qemu-stderr")
    }
}

fn kill(qemu: &OwnedFd) -> Result<()> {
    match pidfd_send_signal(qemu, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot kill QEMU"),
    }
}

/// A command that runs `qemu`, and has it killed when the thread that starts it ends.
fn tied_to_thread(qemu: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(qemu.get_program()).args(qemu.get_args());
    command.envs(qemu.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Starts QEMU; the second handle of it is for the VM's owner.
fn spawn(mut command: Command) -> Result<(Child, OwnedFd, OwnedFd)> {
    let child = command.spawn().context("cannot run setpriv, of util-linux, to start QEMU")?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let ours = pidfd.try_clone()?;
    Ok((child, pidfd, ours))
}

/// Reads what the guest prints until QEMU ends, which it does at the time limit.
fn mind(
    mut child: Child,
    pidfd: &OwnedFd,
    console: &Console,
    limit: Duration,
    on_line: Option<OnLine>,
) {
    thread::scope(|scope| {
        let serial = child.stdout.take();
        let reader = scope.spawn(|| serial.map(|serial| console.read_from(serial, on_line)));
        let timed_out = !ends_within(pidfd, limit);
        if timed_out {
            // This fails only if QEMU has ended in between.
            let _ = kill(pidfd);
        }
        let status = child.wait().ok();
        let read = reader.join();
        // Whoever waits must hear of the end, also where a line's callback panicked.
        console.end(End { status, timed_out });
        if let Err(panic) = read {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ends_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}
