// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking away what is left at the end, by a process that kept the right to.
//!
//! The daemon mounts what it publishes where others see it, and binds sockets in directories of the
//! host; it gives up all rights to either before a guest comes, so that nobody who takes it over has
//! them. A second process is left behind, which waits to be told to tidy up, and listens to nothing
//! else. If the daemon dies without a word it ends, and leaves all as it is, as the daemon itself
//! would.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::bail;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing::warn;
use vhost_pmem::Device;

use crate::log::Log;
use crate::service;
use crate::socket::Bound;

/// What the daemon leaves behind unless it takes it away, once, or has it taken away: at the latest
/// when this is dropped.
pub(crate) struct Leavings(Mutex<Option<Tidying>>);

/// Who tidies up.
enum Tidying {
    /// This process, which keeps its rights. What is published its device takes back.
    Ourselves(Vec<Bound>),
    Janitor(ChildStdin, ChildStdout),
}

impl Leavings {
    /// Leaves all to this process.
    pub(crate) fn to_ourselves(sockets: Vec<Bound>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Tidying::Ourselves(sockets)))))
    }

    /// Leaves sockets, and what `device` has published, to a process of its own.
    pub(crate) fn to_janitor(sockets: Vec<Bound>, device: &Device) -> io::Result<Arc<Self>> {
        let published = device.published();
        if sockets.is_empty() && published.is_none() {
            return Ok(Self::to_ourselves(sockets));
        }
        let leavings = match start(&sockets, published.clone()) {
            Ok((asking, answer)) => Tidying::Janitor(asking, answer),
            // The next daemon replaces a socket that is left behind.
            Err(error) if published.is_none() => {
                warn!(%error, "no process to remove the sockets; they will be left behind");
                return Ok(Self::to_ourselves(Vec::new()));
            }
            Err(error) => {
                sockets.iter().for_each(Bound::remove);
                return Err(error);
            }
        };
        let leavings = Arc::new(Self(Mutex::new(Some(leavings))));
        device.leave_withdrawal_to(leavings.tidying());
        Ok(leavings)
    }

    /// What tidies up, for as long as this is there.
    pub(crate) fn tidying(self: &Arc<Self>) -> impl FnOnce() + Send + 'static + use<> {
        let leavings = Arc::downgrade(self);
        move || leavings.upgrade().iter().for_each(|leavings| leavings.tidy())
    }

    /// Takes all away, if that wasn't done yet.
    fn tidy(&self) {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Tidying::Ourselves(sockets)) => sockets.iter().for_each(Bound::remove),
            Some(Tidying::Janitor(asking, answer)) => {
                if let Err(error) = ask(asking, answer) {
                    warn!(%error, "what was published, and the sockets, can't be removed");
                }
            }
            None => {}
        }
    }
}

impl Drop for Leavings {
    fn drop(&mut self) {
        self.tidy();
    }
}

/// The first argument of the process. What follows are its tasks: `socket=INODE:PATH` to remove,
/// `window=PATH` to unmount, and `file=PATH` to unmount and remove.
///
/// All that it needs to know is there, and nothing is told to it later. It isn't parsed with the
/// options: each device has such a process, and the parser takes a third of its memory.
const JANITOR: &str = "--janitor";

/// The tasks on the command line, if this is that process.
pub(crate) fn tasks() -> Option<impl Iterator<Item = OsString>> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == JANITOR).then_some(arguments)
}

/// Starts the process.
fn start(
    sockets: &[Bound],
    published: Option<(PathBuf, bool)>,
) -> io::Result<(ChildStdin, ChildStdout)> {
    let mut command = Command::new("/proc/self/exe");
    service::ENVIRONMENT.into_iter().for_each(|variable| _ = command.env_remove(variable));
    let task = |what: &str, value: OsString| {
        let mut task = OsString::from(what);
        task.push(value);
        task
    };
    command.arg(JANITOR).args(sockets.iter().map(|one| task("socket=", one.argument())));
    if let Some((path, made)) = published {
        command.arg(task(if made { "file=" } else { "window=" }, path.into()));
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(asking), Some(answer)) => Ok((asking, answer)),
        _ => Err(io::Error::other("the process has no pipes")),
    }
}

/// Has it done, and waits until it is.
fn ask(mut asking: ChildStdin, mut answer: ChildStdout) -> io::Result<()> {
    asking.write_all(b"\n")?;
    // It says nothing, and hangs up when it is done.
    answer.read_to_end(&mut Vec::new()).map(drop)
}

/// Tidies up when it is told to, on standard input.
pub(crate) fn run(tasks: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    Log::PLAIN.begin(None);
    // These are for the daemon, which says when; they come to all of a terminal's or a unit's.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let (mut sockets, mut windows) = (Vec::new(), Vec::new());
    for task in tasks {
        let task = task.as_bytes();
        let value = |what: &[u8]| task.strip_prefix(what).map(OsStr::from_bytes);
        match (value(b"socket="), value(b"window="), value(b"file=")) {
            (Some(socket), ..) => sockets.push(Bound::parse(socket)?),
            (_, Some(path), _) => windows.push((PathBuf::from(path), false)),
            (.., Some(path)) => windows.push((PathBuf::from(path), true)),
            _ => bail!("no task: {}", String::from_utf8_lossy(task)),
        }
    }
    let mut told = [0];
    match io::stdin().read_exact(&mut told) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        read => read?,
    }
    windows.iter().for_each(|(path, made)| vhost_pmem::unpublish(path, *made));
    sockets.iter().for_each(Bound::remove);
    Ok(())
}
