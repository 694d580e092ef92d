// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A chart as SVG: panels side by side, of lines through points with whiskers, both axes logarithmic.

use std::fmt;

use crate::plot::axis::Axis;

pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) subtitle: &'a str,
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    /// With one y axis. Series of one name look the same in all.
    pub(crate) panels: Vec<Panel>,
}

pub(crate) struct Panel {
    pub(crate) name: String,
    pub(crate) series: Vec<Series>,
}

pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

const WIDTH: f64 = 880.0;
const PANEL_HEIGHT: f64 = 290.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = TOP + PANEL_HEIGHT;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 18.0;
/// Between panels.
const GAP: f64 = 26.0;
/// From a panel's edges to its first and last points.
const INSET: f64 = 28.0;
const LEGEND_TOP: f64 = BOTTOM + 72.0;
const LEGEND_LINE: f64 = 22.0;
const LEGEND_COLUMNS: usize = 3;
/// By so much are series apart at one x, so that whiskers don't hide each other.
const APART: f64 = 5.0;

/// For a light background and for a dark one; further series begin anew.
pub(crate) const COLOURS: [(&str, &str); 6] = [
    ("#0969da", "#58a6ff"),
    ("#cf4a00", "#ff9d5c"),
    ("#1a7f37", "#4ac26b"),
    ("#8250df", "#c297ff"),
    ("#bf3989", "#ff80c8"),
    ("#57606a", "#adbac7"),
];

/// A series' symbol around the origin: circle, square, triangle, diamond.
const SYMBOLS: [&str; 4] = [
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5l5 9h-10z",
    "M0 -5.5l5 5.5l-5 5.5l-5 -5.5z",
];

impl Chart<'_> {
    /// The series' names, in the order in which they come up first.
    fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series) {
            if !names.contains(&series.name.as_str()) {
                names.push(&series.name);
            }
        }
        names
    }

    fn points(&self) -> impl Iterator<Item = &Point> + Clone {
        let series = self.panels.iter().flat_map(|panel| &panel.series);
        series.flat_map(|series| &series.points)
    }

    fn panel(&self, f: &mut fmt::Formatter<'_>, number: usize, y: &Axis) -> fmt::Result {
        let count = self.panels.len() as f64;
        let width = (WIDTH - LEFT - RIGHT - GAP * (count - 1.0)) / count;
        let left = LEFT + (width + GAP) * number as f64;
        let (middle, right) = (left + width / 2.0, left + width);
        let Panel { name, series } = &self.panels[number];
        text(f, middle, TOP - 12.0, "middle strong", name)?;
        for tick in y.ticks() {
            let at = y.at(tick);
            writeln!(f, r#"<path class="grid" d="M{left:.1} {at:.1}H{right:.1}"/>"#)?;
            if number == 0 {
                text(f, left - 8.0, at + 4.0, "end", &grouped(tick))?;
            }
        }
        let xs = self.points().map(|point| point.x);
        let x = Axis::exact(xs.clone(), left + INSET, right - INSET);
        let mut ticks: Vec<_> = xs.collect();
        ticks.sort_unstable_by(f64::total_cmp);
        ticks.dedup();
        for tick in ticks {
            let at = x.at(tick);
            writeln!(f, r#"<path class="axis" d="M{at:.1} {BOTTOM}v5"/>"#)?;
            text(f, at, BOTTOM + 20.0, "middle", &grouped(tick))?;
        }
        writeln!(f, r#"<path class="axis" d="M{left:.1} {TOP}V{BOTTOM}H{right:.1}"/>"#)?;
        text(f, middle, BOTTOM + 42.0, "middle", self.x_label)?;
        let names = self.names();
        for Series { name, points } in series {
            let look = names.iter().position(|known| known == name).unwrap_or_default();
            let shift = APART * (look as f64 - (names.len() - 1) as f64 / 2.0);
            let at = |point: &Point, value| (x.at(point.x) + shift, y.at(value));
            let mut line = String::new();
            for point in points {
                let (x, median) = at(point, point.median);
                let (least, most) = (y.at(point.least), y.at(point.most));
                line += &format!("{}{x:.1} {median:.1}", if line.is_empty() { 'M' } else { 'L' });
                writeln!(
                    f,
                    r#"<path class="whisker stroke{look}" d="M{x:.1} {least:.1}V{most:.1}m-3 0h6M{:.1} {least:.1}h6"/>"#,
                    x - 3.0
                )?;
            }
            writeln!(f, r#"<path class="line stroke{look}" d="{line}"/>"#)?;
            for point in points {
                let (x, median) = at(point, point.median);
                symbol(f, look, x, median)?;
            }
        }
        Ok(())
    }

    fn legend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS as f64;
        for (look, name) in self.names().into_iter().enumerate() {
            let x = LEFT + column * (look % LEGEND_COLUMNS) as f64;
            let y = LEGEND_TOP + LEGEND_LINE * (look / LEGEND_COLUMNS) as f64;
            writeln!(f, r#"<path class="line stroke{look}" d="M{x:.1} {y:.1}h26"/>"#)?;
            symbol(f, look, x + 13.0, y)?;
            text(f, x + 34.0, y + 4.0, "start", name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Chart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names().len();
        let height = LEGEND_TOP + LEGEND_LINE * names.div_ceil(LEGEND_COLUMNS) as f64;
        let [title, subtitle] = [self.title, self.subtitle].map(escaped);
        writeln!(
            f,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">"#
        )?;
        writeln!(f, "<title>{title}: {} by {}</title>", self.y_label, self.x_label)?;
        style(f, names)?;
        writeln!(f, r#"<rect class="back" width="100%" height="100%" rx="6"/>"#)?;
        writeln!(f, r#"<text class="title" x="{LEFT}" y="32">{title}</text>"#)?;
        writeln!(f, r#"<text class="faint" x="{LEFT}" y="52">{subtitle}</text>"#)?;
        let middle = (TOP + BOTTOM) / 2.0;
        writeln!(
            f,
            r#"<text class="middle" transform="translate(20 {middle}) rotate(-90)">{}</text>"#,
            escaped(self.y_label)
        )?;
        let values = self.points().flat_map(|point| [point.least, point.most]);
        let y = Axis::around(values, BOTTOM, TOP);
        for number in 0..self.panels.len() {
            self.panel(f, number, &y)?;
        }
        self.legend(f)?;
        f.write_str("</svg>\n")
    }
}

/// Of what has no colour of its own, and of `series` series: on light, and on dark.
fn style(f: &mut fmt::Formatter<'_>, series: usize) -> fmt::Result {
    f.write_str(
        "<style>\n\
         text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }\n\
         .title { font-size: 18px; font-weight: 600 } .strong { font-weight: 600 }\n\
         .middle { text-anchor: middle } .end { text-anchor: end }\n\
         .line { fill: none; stroke-width: 2 } .whisker { fill: none; stroke-width: 1.2 }\n\
         .grid { fill: none; stroke-width: 1 } .axis { fill: none; stroke-width: 1.2 }\n",
    )?;
    theme(f, ["#ffffff", "#1f2328", "#59636e", "#e3e7eb"], series, |(light, _)| light)?;
    f.write_str("@media (prefers-color-scheme: dark) {\n")?;
    theme(f, ["#0d1117", "#e6edf3", "#9198a1", "#2b3138"], series, |(_, dark)| dark)?;
    f.write_str("}\n</style>\n")
}

fn theme(
    f: &mut fmt::Formatter<'_>,
    [back, ink, faint, grid]: [&str; 4],
    series: usize,
    colour: fn((&'static str, &'static str)) -> &'static str,
) -> fmt::Result {
    writeln!(
        f,
        ".back {{ fill: {back} }} text {{ fill: {ink} }} .faint {{ fill: {faint} }}\n\
         .axis {{ stroke: {faint} }} .grid {{ stroke: {grid} }}"
    )?;
    for look in 0..series {
        let colour = colour(COLOURS[look % COLOURS.len()]);
        writeln!(f, ".stroke{look} {{ stroke: {colour} }} .fill{look} {{ fill: {colour} }}")?;
    }
    Ok(())
}

fn symbol(f: &mut fmt::Formatter<'_>, look: usize, x: f64, y: f64) -> fmt::Result {
    let shape = SYMBOLS[look % SYMBOLS.len()];
    writeln!(f, r#"<path class="fill{look}" transform="translate({x:.1} {y:.1})" d="{shape}"/>"#)
}

fn text(f: &mut fmt::Formatter<'_>, x: f64, y: f64, class: &str, text: &str) -> fmt::Result {
    writeln!(f, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escaped(text))
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// A number with its thousands apart.
fn grouped(number: f64) -> String {
    let digits = number.to_string();
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        let point = |&(x, median): &(f64, f64)| Point { x, median, least: median, most: median };
        Series { name: name.to_owned(), points: points.iter().map(point).collect() }
    }

    #[test]
    fn series_of_one_name_look_the_same_in_all_panels_and_are_in_the_legend_once() {
        let panel = |name: &str, series| Panel { name: name.to_owned(), series };
        let chart = Chart {
            title: "a < b",
            subtitle: "",
            x_label: "jobs",
            y_label: "a second",
            panels: vec![
                panel("left", vec![series("one", &[(1.0, 10.0), (8.0, 20.0)])]),
                panel("right", vec![series("two", &[(1.0, 5.0)]), series("one", &[(1.0, 9.0)])]),
            ],
        };
        let svg = chart.to_string();
        assert!(svg.contains(">a &lt; b</text>"), "{svg}");
        // A line in each panel, and one in the legend.
        assert_eq!(svg.matches(r#""line stroke0""#).count(), 3, "{svg}");
        assert_eq!(svg.matches(r#""line stroke1""#).count(), 2, "{svg}");
        assert_eq!((svg.matches(">one</text>").count(), svg.matches("NaN").count()), (1, 0));
    }

    #[test]
    fn number_has_its_thousands_apart() {
        let numbers = [0.5, 200.0, 1000.0, 1e6].map(grouped);
        assert_eq!(numbers, ["0.5", "200", "1,000", "1,000,000"]);
    }
}
