// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking a daemon, and showing its answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::protocol::{Command, Cow, Failure, Outcome, Reply, Request, Status, VERSION};
use crate::size::ByteSize;

/// Has the daemon that listens at `control` carry out `command`, and shows how all is then.
pub(crate) fn run(
    control: &Path,
    command: Command,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let status = ask(control, command).with_context(|| control.display().to_string())?;
    let status = status.map_err(|said| anyhow!("the daemon refuses: {said}"))?;
    match json {
        true => serde_json::to_writer_pretty(&mut *out, &status)?,
        false => show(&status, out)?,
    }
    Ok(writeln!(out)?)
}

/// The daemon's answer, or what it says is wrong.
fn ask(control: &Path, command: Command) -> anyhow::Result<Result<Status, String>> {
    let mut stream = UnixStream::connect(control).context("cannot connect")?;
    let mut line = serde_json::to_vec(&Request { version: VERSION, command })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let reply: Reply = serde_json::from_str(&line).context("not a reply of a daemon's")?;
    Ok(match reply.result {
        Outcome::Ok(status) => Ok(status),
        Outcome::Error(said) => Err(said),
    })
}

fn show(status: &Status, out: &mut impl Write) -> std::io::Result<()> {
    let Status { size, window, frontend, layers, snapshots, mirrors, failures } = status;
    let frontend = if *frontend { "connected" } else { "none" };
    write!(out, "device: {}, {window}, frontend: {frontend}", ByteSize(*size))?;
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
    Ok(())
}
