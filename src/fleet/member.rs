// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One device of a fleet: a process that is to run, and does or doesn't.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGHUP;
use tracing::{error, info, warn};

use crate::control::Channel;
use crate::log::Log;
use crate::service;
use crate::shutdown::PARENT_DIED;

/// How long to wait before a process that ended is started again; twice as long each time.
const DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// How long one may take to accept a request, and to say how it is.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// How long a process that was told to end may take before it is killed: it writes back what the guest
/// has stored. Less than systemd gives the units, which then kills them all.
const ENDING: Duration = Duration::from_secs(240);
/// The same, once it was told again.
const HURRYING: Duration = Duration::from_secs(5);

/// A process that ends by itself says no more than this about it.
const REASON_MAX: u64 = 4096;

/// How to start processes.
pub(super) struct Launcher {
    pub(super) log: Log,
    /// How they are confined, where they don't say so themselves.
    pub(super) sandbox: Vec<String>,
}

impl Launcher {
    /// Starts a device's process, which takes requests over `channel`.
    fn start(&self, name: &str, args: &[String], channel: OwnedFd) -> io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        service::ENVIRONMENT.into_iter().for_each(|variable| _ = command.env_remove(variable));
        let key = |argument: &String| argument.split('=').next().map(str::to_owned);
        let is_said = |argument: &&String| !args.iter().any(|own| key(own) == key(argument));
        command
            .args(args)
            .args(self.sandbox.iter().filter(is_said))
            .args(["--end-with-parent", "--name", name])
            .args(self.log.options())
            .stdin(Stdio::from(channel))
            .stdout(Stdio::piped())
            .spawn()
    }
}

/// A process, and what it was started with.
struct Process {
    child: Child,
    args: Vec<String>,
    since: Instant,
    /// Where it takes requests.
    channel: Arc<Channel>,
    /// Where it tells that it has begun, or why it ends.
    stdout: Option<ChildStdout>,
    begun: bool,
    /// Whether it was told to end, and when it is killed if it hasn't.
    told: Option<Instant>,
}

/// How a device stands with the process that keeps it.
pub(super) struct Standing {
    /// Why it is not there; nothing if it is.
    pub(super) down: Option<String>,
    /// How often it ended by itself and was started again.
    pub(super) restarts: u64,
    /// Where it takes requests, if its process has begun.
    pub(super) channel: Option<Arc<Channel>>,
    /// Whether it is there as it is wanted, or can't be.
    pub(super) settled: bool,
}

/// A device.
pub(super) struct Member {
    name: String,
    /// What it is to run with; nothing if it is to be gone.
    wanted: Option<Vec<String>>,
    process: Option<Process>,
    /// When to start it again, after it ended by itself, and how long that was to wait.
    again: Option<(Instant, Duration)>,
    /// How it ended.
    end: String,
    /// How often it ended by itself and was started again.
    restarts: u64,
}

impl Member {
    pub(super) fn new(name: &str) -> Self {
        let (name, end) = (name.to_owned(), String::new());
        Self { name, wanted: None, process: None, again: None, end, restarts: 0 }
    }

    /// What it is to run with from now on.
    pub(super) fn want(&mut self, args: Option<Vec<String>>) {
        self.wanted = args;
        // Whoever reads a configuration again wants it tried again.
        self.again = None;
    }

    /// Whether it is as it is wanted.
    pub(super) fn has(&self, args: &[String]) -> bool {
        self.wanted.as_deref() == Some(args) && self.process.is_some()
    }

    /// Whether frontends may connect to what is wanted, or it has ended.
    pub(super) fn is_settled(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.begun && process.told.is_none())
    }

    /// Whether there is nothing to be done any more.
    pub(super) fn is_gone(&self) -> bool {
        self.wanted.is_none() && self.process.is_none()
    }

    /// How it stands.
    pub(super) fn standing(&mut self) -> Standing {
        self.listen();
        let begun = self.process.as_ref().filter(|process| process.begun);
        let channel = begun.map(|process| Arc::clone(&process.channel));
        let (down, restarts, settled) = (self.down(), self.restarts, self.is_settled());
        Standing { down, restarts, channel, settled }
    }

    fn down(&self) -> Option<String> {
        match (&self.process, self.again) {
            (Some(_), _) => None,
            (None, None) => Some(self.end.clone()),
            (None, Some((when, _))) => {
                let left = when.saturating_duration_since(Instant::now()).as_secs();
                Some(format!("{}; started again in {left} s", self.end))
            }
        }
    }

    /// Does what is to be done now, and says when there is more, if no process ends.
    pub(super) fn settle(&mut self, launcher: &Launcher) -> Option<Instant> {
        self.reap();
        self.listen();
        match (&mut self.process, &self.wanted) {
            (Some(process), wanted) if wanted.as_ref() != Some(&process.args) => {
                return Some(process.end(&self.name));
            }
            (None, Some(args)) => match self.again {
                Some((when, _)) if when > Instant::now() => return Some(when),
                again => {
                    self.restarts += u64::from(again.is_some());
                    self.start(args.clone(), launcher);
                }
            },
            _ => {}
        }
        self.again.map(|(when, _)| when).filter(|_| self.process.is_none() && self.wanted.is_some())
    }

    /// Has it end at once.
    pub(super) fn hurry(&mut self) {
        if let Some(process) = &mut self.process {
            tell(&process.child, Signal::TERM);
            let soon = Instant::now() + HURRYING;
            process.told = Some(process.told.map_or(soon, |when| when.min(soon)));
        }
    }

    fn start(&mut self, args: Vec<String>, launcher: &Launcher) {
        let start = || {
            let (ours, theirs) = Channel::pair(PATIENCE)?;
            Ok((launcher.start(&self.name, &args, theirs)?, ours))
        };
        let started: io::Result<_> = start();
        match started {
            Ok((mut child, channel)) => {
                let pid = child.id();
                info!(device = self.name, pid, "started");
                let (stdout, since) = (child.stdout.take(), Instant::now());
                let (begun, told) = (false, None);
                let channel = Arc::new(channel);
                self.process = Some(Process { child, args, since, channel, stdout, begun, told });
            }
            Err(error) => self.ended(&format!("cannot be started: {error}"), None),
        }
    }

    /// Hears whether the process has begun.
    fn listen(&mut self) {
        if let Some(Process { stdout: Some(stdout), begun, .. }) = &mut self.process {
            *begun = ioctl_fionread(stdout).is_ok_and(|bytes| bytes > 0);
        }
    }

    /// Collects the process, if it has ended.
    fn reap(&mut self) {
        let Some(process) = &mut self.process else { return };
        let end = match process.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => match process.reason() {
                Some(reason) => format!("ended: {reason}"),
                None => format!("ended with {status}"),
            },
            Err(error) => format!("is lost: {error}"),
        };
        let (told, lived) = (process.told.is_some(), process.since.elapsed());
        self.process = None;
        if told {
            info!(device = self.name, "ended");
        } else {
            self.ended(&end, Some(lived));
        }
    }

    /// It ended by itself, after having lived so long.
    fn ended(&mut self, end: &str, lived: Option<Duration>) {
        let [least, most] = DELAYS;
        let delay = match self.again {
            Some((_, delay)) if lived.is_none_or(|lived| lived < most) => (delay * 2).min(most),
            _ => least,
        };
        error!(device = self.name, again_in = ?delay, "{end}");
        self.again = Some((Instant::now() + delay, delay));
        end.clone_into(&mut self.end);
    }
}

impl Process {
    /// Has it end: tells it to, once, and kills it if it doesn't. When to look again.
    fn end(&mut self, name: &str) -> Instant {
        let when = *self.told.get_or_insert_with(|| {
            tell(&self.child, Signal::TERM);
            Instant::now() + ENDING
        });
        if when > Instant::now() {
            return when;
        }
        warn!(device = name, pid = self.child.id(), "does not end in time; killed");
        tell(&self.child, Signal::KILL);
        // One whose disk hangs may not end for that either.
        let again = Instant::now() + ENDING;
        self.told = Some(again);
        again
    }

    /// Why it ended, if it has said so. Doesn't wait: another process may still have its output.
    fn reason(&mut self) -> Option<String> {
        let stdout = self.stdout.as_mut()?;
        let len = ioctl_fionread(&*stdout).ok()?.min(REASON_MAX);
        let mut said = Vec::new();
        stdout.take(len).read_to_end(&mut said).ok()?;
        let said = String::from_utf8_lossy(&said);
        // It may name files that others have named.
        let plain = |one: char| if one.is_control() { ' ' } else { one };
        let reason: String = said.chars().map(plain).collect();
        let reason = reason.trim_start_matches(BEGUN);
        (!reason.is_empty()).then(|| reason.to_owned())
    }
}

fn tell(child: &Child, signal: Signal) {
    if let Err(error) = kill_process(Pid::from_child(child), signal) {
        warn!(%error, "cannot signal a device's process");
    }
}

/// What a process says once frontends may connect.
const BEGUN: char = '+';

/// Tells the process that started this one that frontends may connect. Besides this, a device's process
/// says on its standard output why it ends.
pub(crate) fn tell_begun() -> io::Result<()> {
    say(&String::from(BEGUN))
}

/// Tells the process that started this one why it ends.
pub(crate) fn tell_why(why: &anyhow::Error) -> io::Result<()> {
    say(&format!("{why:#}"))
}

fn say(what: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(what.as_bytes())?;
    stdout.flush()
}

/// Has this process end when the one that started it does, and not on a SIGHUP: that is for the one
/// that started it, and who sends it by name sends it to all.
pub(crate) fn end_with_parent() -> io::Result<()> {
    signal_hook::flag::register(SIGHUP, Arc::new(AtomicBool::new(false)))?;
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(PARENT_DIED))?;
    // It may have ended before.
    if rustix::process::getppid() != parent || parent.is_none_or(Pid::is_init) {
        return Err(io::Error::other("the process that started this one is gone"));
    }
    Ok(())
}

/// Where a device's process takes the requests of the one that started it: its standard input.
pub(crate) fn inherited_channel() -> io::Result<Channel> {
    io::stdin().as_fd().try_clone_to_owned().map(Channel::new)
}
