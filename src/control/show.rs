// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon's answer for people: in a terminal with colours, which whoever writes it elsewhere strips.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use indicatif::HumanBytes;

use super::measures::{Cache, Counters};
use super::protocol::{Cow, Failure, Mirror, Placement, Report, State, Status};
use crate::size::ByteSize;

const NAME: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const WORSE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Shows devices, a line each.
pub(super) fn table(reports: &[Report], out: &mut impl Write) -> io::Result<()> {
    let heads = ["NAME", "SIZE", "WINDOW", "FRONTEND"].map(str::to_owned);
    let heads = (heads, (NAME, "STATE".to_owned()));
    let rows: Vec<_> = std::iter::once(heads).chain(reports.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|(row, _)| row[column].len()).max().unwrap_or(0);
    let [a, b, c, d] = [0, 1, 2, 3].map(width);
    for ([name, size, window, frontend], (style, state)) in &rows {
        let name = styled(NAME, format_args!("{name:a$}"));
        let state = styled(*style, state);
        writeln!(out, "{name}  {size:>b$}  {window:c$}  {frontend:d$}  {state}")?;
    }
    Ok(())
}

/// A device's line: what fills columns, and its state.
fn row(Report { name, state, .. }: &Report) -> ([String; 4], (Style, String)) {
    let name = name.clone();
    let status = match state {
        State::Served(status) => status,
        State::Down { reason } => {
            let none = || "-".to_owned();
            return ([name, none(), none(), none()], (BAD, reason.clone()));
        }
    };
    let misplaced = matches!(status.placement, Some(Placement::Misplaced { .. }));
    let misplaced = misplaced.then(|| "window misplaced".to_owned());
    let failed = status.failures.iter().map(|failure| format!("{} failed", failure.store));
    let sick: Vec<_> = misplaced.into_iter().chain(failed).collect();
    let gone = status.mirrors.iter().flat_map(gone_legs);
    let stale = status.mirrors.iter().filter(|mirror| mirror.stale > 0);
    let differ = stale.map(|one| format!("mirror {} differs", one.name));
    let lesser: Vec<_> = gone.chain(differ).collect();
    let style = match (sick.is_empty(), lesser.is_empty()) {
        (false, _) => BAD,
        (true, false) => WORSE,
        (true, true) => GOOD,
    };
    let state: Vec<_> = sick.into_iter().chain(lesser).collect();
    let state = if state.is_empty() { "good".to_owned() } else { state.join(", ") };
    let frontend = if status.frontend { "connected" } else { "none" };
    let size = format!("{:#}", ByteSize(status.size));
    ([name, size, status.window.clone(), frontend.to_owned()], (style, state))
}

/// The legs that a mirror goes without.
fn gone_legs(mirror: &Mirror) -> impl Iterator<Item = String> {
    let is_gone = |(_, leg): &(usize, &String)| matches!(leg.as_str(), "failed" | "missing");
    mirror.legs.iter().enumerate().filter(is_gone).map(|(at, leg)| {
        let name = mirror.leg_names.get(at).cloned();
        format!("leg {} {leg}", name.unwrap_or_else(|| at.to_string()))
    })
}

/// Shows all of a device.
pub(super) fn device(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let name = styled(NAME, &report.name);
    match &report.state {
        State::Served(status) => served(&name, status, out),
        State::Down { reason } => writeln!(out, "{name}: {}", styled(BAD, reason)),
    }
}

fn served(name: &str, status: &Status, out: &mut impl Write) -> io::Result<()> {
    let Status { size, window, frontend, layers, snapshots, mirrors, failures, .. } = status;
    let frontend = if *frontend { styled(GOOD, "connected") } else { "none".to_owned() };
    writeln!(out, "{name}: {}, {window}, frontend: {frontend}", ByteSize(*size))?;
    match &status.placement {
        None => {}
        Some(Placement::Unknown) => {
            writeln!(out, "window: no frontend has told of its guest's memory yet")?;
        }
        Some(Placement::Found) => {
            writeln!(out, "window: {}", styled(GOOD, "found in the guest's memory"))?;
        }
        Some(Placement::Misplaced { reason }) => {
            let misplaced = styled(BAD, format_args!("every flush fails: {reason}"));
            writeln!(out, "window: {misplaced}")?;
        }
    }
    for (kind, all) in [("snapshot", snapshots), ("taken", layers)] {
        for Cow { name, chunk, used, capacity } in all {
            let (bytes, chunk) = (HumanBytes(used * chunk), ByteSize(*chunk));
            writeln!(
                out,
                "{kind} {name}: {used} of {capacity} chunks of {chunk:#} in use, {bytes}"
            )?;
        }
    }
    for mirror in mirrors {
        let legs = mirror.legs.iter().enumerate().map(|(at, leg)| {
            let name = mirror.leg_names.get(at).map(|name| format!("{name} ")).unwrap_or_default();
            format!("{name}{}", styled(leg_style(leg), leg))
        });
        let (name, legs) = (&mirror.name, legs.collect::<Vec<_>>().join(", "));
        let (stale, regions) = (mirror.stale, mirror.regions);
        writeln!(out, "mirror {name}: legs {legs}, {stale} of {regions} regions to be copied")?;
    }
    for Failure { store, reason } in failures {
        writeln!(out, "{store}: {}", styled(BAD, format_args!("failed a sync ({reason})")))?;
    }
    for Cache { store, cached, dirty, .. } in &status.caches {
        let [cached, dirty] = [cached, dirty].map(|bytes| HumanBytes(*bytes));
        writeln!(out, "page cache of {store}: {cached}, {dirty} of them dirty")?;
    }
    if let Some(Counters { flushes, refused, .. }) = &status.counters {
        write!(out, "flushes: {} done", flushes.done)?;
        let refused = refused.malformed + refused.unknown;
        for (count, what) in
            [(flushes.failed, "failed"), (flushes.unmapped, "unmapped"), (refused, "not requests")]
        {
            if count > 0 {
                write!(out, ", {}", styled(WORSE, format_args!("{count} {what}")))?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn leg_style(state: &str) -> Style {
    match state {
        "healthy" => GOOD,
        "recovering" => WORSE,
        _ => BAD,
    }
}
