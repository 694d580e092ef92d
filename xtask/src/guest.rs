// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask guest`: a guest to try a daemon with.

use std::io::{self, IsTerminal, Read, Stdin};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_harness::{Lab, VmBuilder, patience};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Whoever sits before it may think.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// How long a daemon may take to begin.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The sockets of daemons: the first one's device is /dev/pmem0, the next one's /dev/pmem1
    #[arg(required = true)]
    sockets: Vec<PathBuf>,
}

/// Gives whoever sits before a terminal a shell in the guest; runs what comes from elsewhere in it.
pub(crate) fn run(options: &Options) -> Result<()> {
    options.sockets.iter().try_for_each(|socket| await_daemon(socket))?;
    let lab = Lab::open()?;
    let vm = lab.vm().module("xfs").time_limit(LIMIT);
    let vm = options.sockets.iter().fold(vm, VmBuilder::vhost_user_pmem);
    let stdin = io::stdin();
    if stdin.is_terminal() { attend(vm, &stdin) } else { run_script(vm, &stdin) }
}

/// Waits a little for a daemon that was started just before.
fn await_daemon(socket: &Path) -> Result<()> {
    let is_there = || socket.metadata().is_ok_and(|meta| meta.file_type().is_socket());
    let deadline = Instant::now() + patience(PATIENCE);
    while !is_there() {
        ensure!(
            Instant::now() < deadline,
            "no daemon listens on {0}; start vhost-pmemd --socket-path {0} first",
            socket.display()
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn run_script(vm: VmBuilder<'_>, stdin: &Stdin) -> Result<()> {
    let mut script = String::new();
    stdin.lock().read_to_string(&mut script)?;
    let outcome = vm.script(&script).on_line(show).boot()?.wait()?;
    match outcome.script_status {
        Some(0) => Ok(()),
        Some(status) => bail!("the guest's commands failed: exit status {status}"),
        None => bail!("the guest ended before its commands did"),
    }
}

/// Shows what commands print, and not what the guest has to say of itself.
fn show(line: &str) {
    if !line.starts_with("MARK ") && !line.starts_with('[') {
        println!("{line}");
    }
}

fn attend(vm: VmBuilder<'_>, stdin: &Stdin) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("terminal");
    let serial = format!("unix:{},server=on,wait=off", socket.display());
    // Who opens a terminal as the first of a session has it for its own, with ^C.
    let shell = "export PS1='guest# ' TERM=vt100
        setsid sh -c 'exec sh -i </dev/ttyS1 >/dev/ttyS1 2>&1'
        exit 0";
    println!("the guest boots; its shell ends with `exit`, and the guest with it");
    let vm = vm.script(shell).qemu_args(["-serial", &serial]).boot()?;
    vm.wait_for("MARK boot")?;
    let mut terminal = UnixStream::connect(&socket).context("cannot reach the guest's shell")?;
    let raw = Raw::new(stdin)?;
    let mut typed = terminal.try_clone()?;
    // It ends with this process: what it waits for is somebody who types.
    thread::spawn(move || io::copy(&mut io::stdin(), &mut typed));
    let shown = io::copy(&mut terminal, &mut io::stdout());
    drop(raw);
    shown.context("the guest's shell is gone")?;
    vm.wait().map(drop)
}

/// A terminal that hands on each key, until this is dropped.
struct Raw<'a> {
    terminal: &'a Stdin,
    before: Termios,
}

impl<'a> Raw<'a> {
    fn new(terminal: &'a Stdin) -> Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // Nothing is to be done about a terminal that is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}
