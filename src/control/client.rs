// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking a daemon, and showing its answer.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::protocol::{
    Command, Cow, Failure, Outcome, Reply, Report, Request, State, Status, VERSION,
};
use crate::cli::ControlArgs;
use crate::size::ByteSize;

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
    for Report { name, state, .. } in &reports {
        match state {
            State::Served(status) => show(name, status, out)?,
            State::Down { reason } => writeln!(out, "{name}: {reason}")?,
        }
    }
    Ok(())
}

/// Shows all devices of the daemon that listens there, a line each.
pub(crate) fn list(args: &ControlArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let reports = reports(args, Command::Status)?;
    if args.json {
        return print_json(&reports, out);
    }
    let heads = ["NAME", "SIZE", "WINDOW", "FRONTEND", "STATE"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(heads).chain(reports.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    for [name, size, window, frontend, state] in &rows {
        let [a, b, c, d] = widths;
        writeln!(out, "{name:a$}  {size:>b$}  {window:c$}  {frontend:d$}  {state}")?;
    }
    Ok(())
}

fn row(Report { name, state, .. }: &Report) -> [String; 5] {
    let name = name.clone();
    let status = match state {
        State::Served(status) => status,
        State::Down { reason } => {
            let none = || "-".to_owned();
            return [name, none(), none(), none(), reason.clone()];
        }
    };
    let sick = status.failures.iter().map(|failure| format!("{} failed", failure.store));
    let stale = status.mirrors.iter().filter(|mirror| mirror.stale > 0);
    let state: Vec<_> =
        sick.chain(stale.map(|one| format!("mirror {} differs", one.name))).collect();
    let state = if state.is_empty() { "good".to_owned() } else { state.join(", ") };
    let frontend = if status.frontend { "connected" } else { "none" };
    [
        name,
        format!("{:#}", ByteSize(status.size)),
        status.window.clone(),
        frontend.to_owned(),
        state,
    ]
}

fn print_json(reports: &[Report], out: &mut impl Write) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, reports)?;
    Ok(writeln!(out)?)
}

fn reports(args: &ControlArgs, command: Command) -> anyhow::Result<Vec<Report>> {
    let ControlArgs { control, device, .. } = args;
    let reports = ask(control, device.clone(), command, None);
    let reports = reports.with_context(|| control.display().to_string())?;
    reports.map_err(|said| anyhow!("the daemon refuses: {said}"))
}

/// Whether a daemon is there that said nothing in time.
pub(crate) fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

/// The daemon's answer, or what it says is wrong; an error if that takes longer than `patience`.
pub(crate) fn ask(
    control: &Path,
    device: Option<String>,
    command: Command,
    patience: Option<Duration>,
) -> anyhow::Result<Result<Vec<Report>, String>> {
    let mut stream = UnixStream::connect(control).context("cannot connect")?;
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_vec(&Request { version: VERSION, device, command })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let reply: Reply = serde_json::from_str(&line).context("not a reply of a daemon's")?;
    Ok(match reply.result {
        Outcome::Ok(reports) => Ok(reports),
        Outcome::Error(said) => Err(said),
    })
}

fn show(name: &str, status: &Status, out: &mut impl Write) -> std::io::Result<()> {
    let Status { size, window, frontend, layers, snapshots, mirrors, failures, .. } = status;
    let frontend = if *frontend { "connected" } else { "none" };
    write!(out, "{name}: {}, {window}, frontend: {frontend}", ByteSize(*size))?;
    for (kind, all) in [("snapshot", snapshots), ("taken", layers)] {
        for Cow { name, chunk, used, capacity } in all {
            let chunk = ByteSize(*chunk);
            write!(out, "\n{kind} {name}: {used} of {capacity} chunks of {chunk} in use")?;
        }
    }
    for mirror in mirrors {
        let legs = mirror.legs.join(", ");
        let (stale, regions) = (mirror.stale, mirror.regions);
        write!(
            out,
            "\nmirror {}: legs {legs}, {stale} of {regions} regions to be copied",
            mirror.name
        )?;
    }
    for Failure { store, reason } in failures {
        write!(out, "\n{store}: failed a sync ({reason})")?;
    }
    writeln!(out)
}
