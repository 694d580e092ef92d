// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking for metrics, and reading them as strictly as Prometheus' text format is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guest_harness::patience;

/// No scrape takes as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was scraped.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// What kind each metric is.
    pub(crate) kinds: BTreeMap<String, String>,
    /// The values, by name and labels, these sorted: `name{a="x",b="y"}`.
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Asks at a Unix socket.
    pub(crate) fn scrape(socket: &Path) -> Self {
        let response = ask(socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        Self::parse(body)
    }

    /// The value of a sample.
    #[track_caller]
    pub(crate) fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {self:#?}"))
    }

    /// Whether there is such a sample.
    pub(crate) fn has(&self, sample: &str) -> bool {
        self.samples.contains_key(sample)
    }

    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut metrics = Self { kinds: BTreeMap::new(), samples: BTreeMap::new() };
        let mut current = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(is_name(name) && help.ends_with('.'), "{line}");
                let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} "));
                let kind = kind.unwrap_or_else(|| panic!("no type behind {line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
                let is_info = name.ends_with("_info");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
                assert!(!is_info || kind == "gauge");
                let before = metrics.kinds.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} comes twice");
                name.clone_into(&mut current);
                continue;
            }
            let (name, labels, value) = sample(line);
            let suffixes: &[&str] = match metrics.kinds[&current].as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let suffix = name.strip_prefix(&current);
            assert!(suffix.is_some_and(|one| suffixes.contains(&one)), "{line} behind {current}");
            let labels: Vec<_> =
                labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
            let key = match labels.is_empty() {
                true => name.clone(),
                false => format!("{name}{{{}}}", labels.join(",")),
            };
            assert_eq!(metrics.samples.insert(key, value), None, "{line} comes twice");
        }
        metrics.check_histograms(text);
        metrics
    }

    /// Checks that classes count up, to the count, in the order in which they are told.
    fn check_histograms(&self, text: &str) {
        let mut before: Option<(String, f64, f64)> = None;
        for line in text.lines().filter(|line| line.contains("_bucket{")) {
            let (name, mut labels, count) = sample(line);
            let bound = labels.remove("le").unwrap();
            let bound: f64 = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            let series = format!("{name}{labels:?}");
            if let Some((last, least, counted)) = before.filter(|(last, ..)| *last == series) {
                assert!(least < bound && counted <= count, "{last}: {line}");
            }
            if bound.is_infinite() {
                let of: Vec<_> =
                    labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
                let metric = name.strip_suffix("_bucket").unwrap();
                assert_eq!(self.value(&format!("{metric}_count{{{}}}", of.join(","))), count);
                assert!(self.has(&format!("{metric}_sum{{{}}}", of.join(","))));
            }
            before = Some((series, bound, count));
        }
    }
}

/// Sends `request` to a Unix socket, and reads until the end.
pub(crate) fn ask(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(patience(PATIENCE))).unwrap();
    // Of one that is too long the daemon may read a part.
    let _ = stream.write_all(request);
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(is_letter)
        && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

/// A sample's name, its labels and its value.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    let mut seen = BTreeSet::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap();
            assert!(is_name(label) && seen.insert(label.to_owned()), "{line}");
            let (value, behind) = quoted(value);
            assert!(!value.is_empty(), "an empty label is none: {line}");
            labels.insert(label.to_owned(), value);
            match behind.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = behind.strip_prefix('}').unwrap();
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    assert!(value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{line}");
    (name.to_owned(), labels, value.parse().unwrap())
}

/// What stands before the next quote, without its escapes, and what comes behind.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().unwrap().1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                other => panic!("no escape: {other}"),
            },
            char => value.push(char),
        }
    }
    panic!("no quote in {text}");
}
