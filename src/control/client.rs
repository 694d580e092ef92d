// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking a daemon, and showing its answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::channel::Channel;
use super::protocol::{Command, Outcome, Reply, Report, Request, State, VERSION};
use super::show;
use super::work::Work;
use crate::cli::ControlArgs;
use crate::printable::printable_value;

/// No reply is longer: a daemon that was taken over may say anything.
const REPLY_MAX: u64 = 64 << 20;
/// How long a daemon may take to be connected to, and to take a request.
const CONNECTING: Duration = Duration::from_secs(3);
/// How often to look how far work has come.
const LOOK: Duration = Duration::from_millis(250);

/// Has the daemon that listens at `control` carry out `command`, and shows how all is then.
pub(crate) fn run(
    args: &ControlArgs,
    command: Command,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let reports = reports(args, command)?;
    if args.json {
        return print_json(&reports, out);
    }
    Ok(for_people(&reports)?.iter().try_for_each(|report| show::device(report, out))?)
}

/// Shows all devices of the daemon that listens there, a line each.
pub(crate) fn list(args: &ControlArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let reports = reports(args, Command::Status)?;
    if args.json {
        return print_json(&reports, out);
    }
    Ok(show::table(&for_people(&reports)?, out)?)
}

/// The same reports, with all of their text fit for a terminal.
fn for_people(reports: &[Report]) -> serde_json::Result<Vec<Report>> {
    serde_json::from_value(printable_value(serde_json::to_value(reports)?))
}

fn print_json(reports: &[Report], out: &mut impl Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, reports)?;
    Ok(writeln!(out)?)
}

fn reports(args: &ControlArgs, command: Command) -> anyhow::Result<Vec<Report>> {
    let ControlArgs { control, device, .. } = args;
    let answer = match Work::of(&command) {
        None => ask(control, device.clone(), command, None),
        Some(work) => std::thread::scope(|scope| {
            // Hung up when the answer is there.
            let (_answered, is_answered) = channel::<()>();
            let watch = move || watch(control, device.as_ref(), work, &is_answered);
            // Without a thread there is nothing to be seen of it.
            let _ = std::thread::Builder::new().spawn_scoped(scope, watch);
            ask(control, device.clone(), command, None)
        }),
    };
    let reports = answer.with_context(|| control.display().to_string())?;
    reports.map_err(|said| anyhow!("the daemon refuses: {said}"))
}

/// Shows how far the daemon has come with what it was asked for, until it is answered. Nobody else
/// tells but its status: that of one that is asked on another connection meanwhile.
fn watch(control: &Path, device: Option<&String>, work: Work, is_answered: &Receiver<()>) {
    let mut progress = None;
    while is_answered.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let Ok(Ok(reports)) = ask(control, device.cloned(), Command::Status, Some(LOOK)) else {
            continue;
        };
        if let [Report { state: State::Served(status), .. }] = &reports[..] {
            progress.get_or_insert_with(|| work.begin()).left(work.left(status));
        }
    }
}

/// Whether a daemon is there that said nothing in time.
pub(crate) fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

/// Connects to a daemon. One that hangs accepts no connection, and once as many wait for it as the
/// system keeps for it, a further one would wait indefinitely.
fn connect(control: &Path) -> io::Result<UnixStream> {
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let stream = UnixStream::from(stream);
    // Linux has it limit connecting also.
    stream.set_write_timeout(Some(CONNECTING))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(control)?)?;
    Ok(stream)
}

/// The daemon's answer, or what it says is wrong; an error if that takes longer than `patience`.
fn ask(
    control: &Path,
    device: Option<String>,
    command: Command,
    patience: Option<Duration>,
) -> anyhow::Result<Result<Vec<Report>, String>> {
    let stream = connect(control).map_err(|error| {
        let hangs = error.kind() == io::ErrorKind::WouldBlock;
        let what =
            if hangs { "the daemon hangs: it accepts no connection" } else { "cannot connect" };
        anyhow!(error).context(what)
    })?;
    converse(stream, device, command, patience)
}

/// The same of a member of a fleet.
pub(crate) fn ask_over(
    channel: &Channel,
    command: Command,
    patience: Option<Duration>,
) -> anyhow::Result<Result<Vec<Report>, String>> {
    converse(channel.connect()?, None, command, patience)
}

fn converse(
    mut stream: UnixStream,
    device: Option<String>,
    command: Command,
    patience: Option<Duration>,
) -> anyhow::Result<Result<Vec<Report>, String>> {
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_vec(&Request { version: VERSION, device, command })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut line = String::new();
    BufReader::new(stream.take(REPLY_MAX)).read_line(&mut line)?;
    let reply: Reply = serde_json::from_str(&line).context("not a reply of a daemon's")?;
    Ok(match reply.result {
        Outcome::Ok(reports) => Ok(reports),
        Outcome::Error(said) => Err(said),
    })
}
