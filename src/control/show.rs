// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon's answer for people: in a terminal with colours, which whoever writes it elsewhere strips.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use indicatif::{HumanBytes, HumanDuration};

use super::measures::{Cache, Counters};
use super::protocol::{Cow, Failure, Mirror, Pages, Report, State, Status, Waiting};
use crate::size::ByteSize;

/// A sync that has taken so long is told of.
const SLOW: Duration = Duration::from_secs(2);

const NAME: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const WORSE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Shows devices, a line each.
pub(super) fn table(reports: &[Report], out: &mut impl Write) -> io::Result<()> {
    let heads = ["NAME", "SIZE", "WINDOW", "FRONTEND", "PAGES"].map(str::to_owned);
    let heads = (heads, (NAME, "STATE".to_owned()));
    let rows: Vec<_> = std::iter::once(heads).chain(reports.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|(row, _)| row[column].len()).max().unwrap_or(0);
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(width);
    for ([name, size, window, frontend, pages], (style, state)) in &rows {
        let name = styled(NAME, format_args!("{name:a$}"));
        let state = styled(*style, state);
        writeln!(out, "{name}  {size:>b$}  {window:c$}  {frontend:d$}  {pages:e$}  {state}")?;
    }
    Ok(())
}

/// A device's line: what fills columns, and its state.
fn row(Report { name, state, .. }: &Report) -> ([String; 5], (Style, String)) {
    let name = name.clone();
    let status = match state {
        State::Served(status) => status,
        State::Down { reason } => {
            let none = || "-".to_owned();
            return ([name, none(), none(), none(), none()], (BAD, reason.clone()));
        }
    };
    let (frontend, pages) = match (status.frontend, status.mapped > 0) {
        (false, _) => ("none", "-"),
        (true, true) => ("connected", "mapped"),
        (true, false) => ("connected", "not mapped"),
    };
    let size = format!("{:#}", ByteSize(status.size));
    let columns = [name, size, status.window.clone(), frontend.to_owned(), pages.to_owned()];
    (columns, condition(status))
}

/// What is wrong with a device that is served, in a few words; `good` if nothing is.
fn condition(status: &Status) -> (Style, String) {
    let mut bad = Vec::new();
    if let Some(Pages::Unmapped { .. }) = status.pages {
        bad.push("every flush fails".to_owned());
    }
    if status.waiting.is_some() {
        bad.push("flushes wait".to_owned());
    }
    bad.extend(status.removed.iter().map(|store| format!("{store} was removed")));
    bad.extend(slow(status).map(|(store, age)| format!("{store} syncing for {age}")));
    bad.extend(status.failures.iter().map(|failure| format!("{} failed", failure.store)));
    let stale = status.mirrors.iter().filter(|mirror| mirror.stale > 0);
    let differ = stale.map(|one| format!("mirror {} differs", one.name));
    let worse: Vec<_> = status.mirrors.iter().flat_map(gone_legs).chain(differ).collect();
    match (bad.is_empty(), worse.is_empty()) {
        (false, _) => (BAD, [bad, worse].concat().join(", ")),
        (true, false) => (WORSE, worse.join(", ")),
        (true, true) if status.frontend && status.mapped == 0 => {
            (Style::new(), "waiting for the guest".to_owned())
        }
        (true, true) => (GOOD, "good".to_owned()),
    }
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
    guest(status, out)?;
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
    for Failure { store, reason, since_ms } in failures {
        let when = since_ms.map_or_else(String::new, |since| format!(" {} ago", age(since)));
        writeln!(out, "{store}: {}", styled(BAD, format!("failed a sync{when} ({reason})")))?;
    }
    for (store, age) in slow(status) {
        writeln!(out, "{store}: {}", styled(BAD, format!("syncing for {age}")))?;
    }
    for store in &status.removed {
        let what = "the file was removed: what is flushed is lost when the daemon ends";
        writeln!(out, "{store}: {}", styled(BAD, what))?;
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

/// Whether the guest has its pages, and what else keeps it from going on.
fn guest(status: &Status, out: &mut impl Write) -> io::Result<()> {
    match &status.pages {
        Some(Pages::Mapped) => writeln!(out, "pages: {}", styled(GOOD, "mapped"))?,
        Some(Pages::Unmapped { reason, since_ms }) => {
            let age = age(*since_ms);
            let bad = format!("not mapped, every flush fails for {age}: {reason}");
            writeln!(out, "pages: {}", styled(BAD, bad))?;
        }
        Some(Pages::Idle) if status.frontend => {
            writeln!(out, "pages: not mapped, as the guest has not activated the device")?;
        }
        Some(Pages::Idle) | None => {}
    }
    if let Some(Waiting { requests, reason, since_ms, .. }) = &status.waiting {
        let bad = format!("{requests} can't be answered for {}: {reason}", age(*since_ms));
        writeln!(out, "requests: {}", styled(BAD, bad))?;
    }
    Ok(())
}

/// The stores whose sync takes long, and how long it has taken.
fn slow(status: &Status) -> impl Iterator<Item = (&str, HumanDuration)> {
    let syncing = status.syncing.iter().map(|one| (one.store.as_str(), age(one.since_ms)));
    syncing.filter(|(_, age)| age.0 >= SLOW)
}

/// How long something has been so that began at `since_ms` of Unix time.
fn age(since_ms: u64) -> HumanDuration {
    let began = UNIX_EPOCH + Duration::from_millis(since_ms);
    // A clock that was set back makes it nothing.
    HumanDuration(SystemTime::now().duration_since(began).unwrap_or_default())
}

fn leg_style(state: &str) -> Style {
    match state {
        "healthy" => GOOD,
        "recovering" => WORSE,
        _ => BAD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(changes: &serde_json::Value) -> [String; 2] {
        let mut report = serde_json::json!({
            "name": "vm", "state": "served", "size": 1 << 21, "window": "direct", "frontend": false,
            "layers": [], "snapshots": [], "mirrors": [], "failures": [],
        });
        report.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let report: Report = serde_json::from_value(report).unwrap();
        let [mut text, mut list] = [Vec::new(), Vec::new()];
        device(&report, &mut text).unwrap();
        table(&[report], &mut list).unwrap();
        [text, list].map(|bytes| {
            anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string()
        })
    }

    #[test]
    fn sync_is_told_of_once_it_takes_long() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let since = |age: u64| {
            let since_ms = u64::try_from(now.as_millis()).unwrap() - age * 1000;
            serde_json::json!({ "syncing": [{ "store": "a", "since_ms": since_ms }] })
        };
        let [text, list] = shown(&since(3600));
        assert!(text.contains("\na: syncing for 60 minutes\n"), "{text}");
        assert!(list.ends_with("a syncing for 60 minutes\n"), "{list}");
        // A clock that was set back is no reason to be alarmed.
        let ahead = serde_json::json!({ "syncing": [{ "store": "a", "since_ms": u64::MAX }] });
        let [text, list] = shown(&ahead);
        assert!(!text.contains("syncing") && list.ends_with("good\n"), "{text}{list}");
    }

    #[test]
    fn store_that_was_removed_is_told_of() {
        let [text, list] = shown(&serde_json::json!({ "removed": ["a"] }));
        assert!(text.contains("\na: the file was removed"), "{text}");
        assert!(list.ends_with("a was removed\n"), "{list}");
    }
}
