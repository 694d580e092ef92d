// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The dashboard as SVG: its panels where they are in the grid.

use std::fmt;

use super::panel::{Dashboard, Kind, Line, Panel};
use super::unit::shown;
use crate::plot::{COLOURS, escaped};

pub(super) struct Picture<'a> {
    pub(super) dashboard: &'a Dashboard,
    /// The lines of each panel.
    pub(super) answers: Vec<Vec<Line>>,
}

/// Of a column and of a row of the grid.
const COLUMN: f64 = 46.0;
const ROW: f64 = 30.0;
/// Around panels.
const GAP: f64 = 5.0;
const TOP: f64 = 44.0;
const COLUMNS: f64 = 24.0;
/// Inside a panel: where its plot is, from its edges.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 14.0;
const HEAD: f64 = 34.0;
const X_LABELS: f64 = 22.0;
const LEGEND_LINE: f64 = 16.0;
const LEGEND_LINES: f64 = 4.0;
/// What a letter takes, about.
const LETTER: f64 = 6.1;
/// How many parts the axis of the numbers has, at most.
const TICKS: f64 = 5.0;

/// Where a panel is.
#[derive(Clone, Copy)]
struct Frame {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl fmt::Display for Picture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let panels = &self.dashboard.panels;
        let rows = panels.iter().map(|panel| panel.place.y + panel.place.h).fold(0.0, f64::max);
        let (width, height) = (COLUMNS * COLUMN + 2.0 * GAP, TOP + rows * ROW + 2.0 * GAP);
        let title = escaped(&self.dashboard.title);
        writeln!(
            f,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">"#
        )?;
        writeln!(f, "<title>The dashboard {title}</title>")?;
        style(f)?;
        writeln!(f, r#"<rect class="back" width="100%" height="100%" rx="6"/>"#)?;
        text(f, 3.0 * GAP, 29.0, "title", &self.dashboard.title)?;
        for (panel, lines) in panels.iter().zip(&self.answers) {
            let place = panel.place;
            let frame = Frame {
                x: GAP + place.x * COLUMN + GAP,
                y: TOP + place.y * ROW + GAP,
                width: place.w * COLUMN - 2.0 * GAP,
                height: place.h * ROW - 2.0 * GAP,
            };
            match panel.kind {
                Kind::Row => text(f, frame.x, frame.y + 15.0, "strong", &panel.title)?,
                Kind::Stat => stat(f, frame, panel, lines)?,
                Kind::Timeseries => series(f, frame, panel, lines)?,
            }
        }
        f.write_str("</svg>\n")
    }
}

/// A panel with one number: the last one.
fn stat(f: &mut fmt::Formatter<'_>, frame: Frame, panel: &Panel, lines: &[Line]) -> fmt::Result {
    border(f, frame, panel)?;
    let last = lines.first().and_then(|line| line.points.last());
    let Some(&(_, number)) = last else { return Ok(()) };
    let middle = frame.x + frame.width / 2.0;
    let class = format!("number {}", panel.colour(number));
    text(f, middle, frame.y + frame.height / 2.0 + 22.0, &class, &shown(number, panel.unit()))
}

/// A panel with lines over time.
fn series(f: &mut fmt::Formatter<'_>, frame: Frame, panel: &Panel, lines: &[Line]) -> fmt::Result {
    border(f, frame, panel)?;
    let legend = legend(frame, lines);
    let legend_height = legend.last().map_or(0.0, |(_, y)| y + LEGEND_LINE);
    let (left, right) = (frame.x + LEFT, frame.x + frame.width - RIGHT);
    let top = frame.y + HEAD;
    let bottom = frame.y + frame.height - legend_height - X_LABELS - GAP;

    let points = || lines.iter().flat_map(|line| &line.points);
    let step = step(points().map(|(_, value)| *value).fold(0.0, f64::max), panel.unit());
    let most = points().map(|(_, value)| (value / step).ceil() * step).fold(step, f64::max);
    let y = |value: f64| bottom - (bottom - top) * value / most;
    let mut tick = 0.0;
    while tick <= most * 1.001 {
        writeln!(f, r#"<path class="grid" d="M{left:.1} {:.1}H{right:.1}"/>"#, y(tick))?;
        text(f, left - 7.0, y(tick) + 4.0, "faint end", &shown(tick, panel.unit()))?;
        tick += step;
    }
    let duration = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let x = |at: f64| left + (right - left) * at / duration;
    for at in (0..).map(|number| f64::from(number) * 15.0).take_while(|at| *at <= duration) {
        text(f, x(at), bottom + 15.0, "faint middle", &format!("{at:.0} s"))?;
    }
    for (look, line) in lines.iter().enumerate() {
        let mut path = String::new();
        let mut before = f64::NEG_INFINITY;
        for (at, value) in &line.points {
            // Where there was no number is a gap.
            let to = if at - before > 1.5 { 'M' } else { 'L' };
            path += &format!("{to}{:.1} {:.1}", x(*at), y(*value));
            before = *at;
        }
        writeln!(f, r#"<path class="line {}" d="{path}"/>"#, look_of(look))?;
    }
    let legend_top = frame.y + frame.height - legend_height;
    for ((look, line), (at, below)) in lines.iter().enumerate().zip(legend) {
        let (x, y) = (frame.x + at, legend_top + below);
        writeln!(f, r#"<path class="line {}" d="M{x:.1} {y:.1}h12"/>"#, look_of(look))?;
        text(f, x + 17.0, y + 4.0, "small", &line.name)?;
    }
    Ok(())
}

/// A line's colour, and its dashes where all colours are taken.
fn look_of(look: usize) -> String {
    format!("stroke{} dash{}", look % COLOURS.len(), look / COLOURS.len())
}

/// Where in its panel each line has its name: one after another, and below each other, as long as there
/// is room.
fn legend(frame: Frame, lines: &[Line]) -> Vec<(f64, f64)> {
    let (mut x, mut y) = (12.0, 0.0);
    let place = |line: &Line| {
        let width = 17.0 + line.name.chars().count() as f64 * LETTER + 14.0;
        if x > 12.0 && x + width > frame.width {
            (x, y) = (12.0, y + LEGEND_LINE);
        }
        let at = (x, y);
        x += width;
        at
    };
    lines.iter().map(place).take_while(|(_, y)| *y < LEGEND_LINES * LEGEND_LINE).collect()
}

/// From one number on the axis to the next.
fn step(most: f64, unit: &str) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    // 1, 2 or 5 of what the unit is shown in.
    let base: f64 = if unit == "bytes" { 2.0 } else { 10.0 };
    let least = most / TICKS;
    let power = base.powf(least.log(base).floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    steps.into_iter().find(|step| *step >= least).unwrap_or(power * base)
}

fn border(f: &mut fmt::Formatter<'_>, frame: Frame, panel: &Panel) -> fmt::Result {
    let Frame { x, y, width, height } = frame;
    writeln!(
        f,
        r#"<rect class="panel" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="3"/>"#
    )?;
    text(f, x + 12.0, y + 20.0, "strong", &panel.title)
}

fn text(f: &mut fmt::Formatter<'_>, x: f64, y: f64, class: &str, text: &str) -> fmt::Result {
    writeln!(f, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escaped(text))
}

/// On light, and on dark.
fn style(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "<style>\n\
         text { font: 12px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }\n\
         .title { font-size: 18px; font-weight: 600 } .strong { font-weight: 600 } .small { font-size: 11px }\n\
         .number { font-size: 34px; font-weight: 600; text-anchor: middle }\n\
         .middle { text-anchor: middle } .end { text-anchor: end }\n\
         .line { fill: none; stroke-width: 1.6 } .grid { stroke-width: 1 }\n\
         .dash1 { stroke-dasharray: 6 2 } .dash2 { stroke-dasharray: 2 2 }\n",
    )?;
    let light = ["#f4f5f5", "#ffffff", "#dfe1e4", "#1f2328", "#59636e", "#1a7f37", "#cf222e"];
    theme(f, light, |(light, _)| light)?;
    f.write_str("@media (prefers-color-scheme: dark) {\n")?;
    let dark = ["#0d1117", "#161b22", "#2b3138", "#e6edf3", "#9198a1", "#4ac26b", "#ff7b72"];
    theme(f, dark, |(_, dark)| dark)?;
    f.write_str("}\n</style>\n")
}

fn theme(
    f: &mut fmt::Formatter<'_>,
    [back, panel, grid, ink, faint, green, red]: [&str; 7],
    colour: fn((&'static str, &'static str)) -> &'static str,
) -> fmt::Result {
    writeln!(
        f,
        ".back {{ fill: {back} }} .panel {{ fill: {panel}; stroke: {grid} }} .grid {{ stroke: {grid} }}\n\
         text {{ fill: {ink} }} .faint {{ fill: {faint} }} .green {{ fill: {green} }} .red {{ fill: {red} }}"
    )?;
    for (look, colours) in COLOURS.into_iter().enumerate() {
        writeln!(f, ".stroke{look} {{ stroke: {} }}", colour(colours))?;
    }
    Ok(())
}
