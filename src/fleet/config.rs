// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration file: devices by name, each with the command line's own options.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use anyhow::{Context, anyhow};
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::address::Address;
use crate::cli::Cli;

/// What each device is started with.
pub(crate) type Devices = BTreeMap<String, Vec<String>>;

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Where metrics of all are to be had.
    pub(super) metrics: Option<Address>,
    pub(super) devices: Devices,
}

/// Options of the command line that are no device's.
const NOT_A_DEVICES: [&str; 10] = [
    "config",
    "control",
    "end-with-parent",
    "fd",
    "help",
    "log-format",
    "log-level",
    "metrics",
    "name",
    "print-capabilities",
];

/// A name is a file's, too: that of a socket.
const NAME_MAX: usize = 64;

/// Reads the file at `path`.
pub(super) fn read(path: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).map_err(|error| anyhow!("{}:{error}", path.display()))
}

/// What is wrong with the file, and where.
#[derive(Debug)]
struct InvalidConfig {
    line: usize,
    column: usize,
    what: String,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

impl InvalidConfig {
    /// At the byte `at` of `text`.
    fn new(text: &str, at: usize, what: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|char| *char != '\n').count() + 1;
        Self { line, column, what: what.into() }
    }
}

type Table<'a> = DeTable<'a>;

fn parse(text: &str) -> Result<Config, InvalidConfig> {
    let error = |at: usize, what: String| InvalidConfig::new(text, at, what);
    let root = Table::parse(text).map_err(|invalid| {
        error(invalid.span().unwrap_or_default().start, invalid.message().into())
    })?;
    let Config { mut metrics, mut devices } = Config::default();
    let mut places = HashMap::new();
    for (key, value) in root.get_ref() {
        let at = key.span().start;
        if key.get_ref() == "metrics" {
            let at = value.span().start;
            let text = value.get_ref().as_str();
            let text = text.ok_or_else(|| error(at, "metrics is not a text".to_owned()))?;
            let address = text.parse::<Address>();
            metrics = Some(address.map_err(|invalid| error(at, format!("metrics: {invalid}")))?);
            continue;
        }
        if key.get_ref() != "device" {
            let what =
                format!("unknown key \"{}\"; a device begins with [device.NAME]", key.get_ref());
            return Err(error(at, what));
        }
        for (name, device) in table(value).ok_or_else(|| error(at, "not a table".to_owned()))? {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            if !is_name(name) {
                let what = format!(
                    "\"{name}\" can't be a device's name; use up to {NAME_MAX} letters, digits, \"-\", \"_\" and \".\""
                );
                return Err(error(at, what));
            }
            let named = |(at, what): (usize, String)| error(at, format!("device {name}: {what}"));
            let device = table(device).ok_or_else(|| named((at, "not a table".to_owned())))?;
            let args = arguments(device).map_err(named)?;
            check(&args, device).map_err(|(place, what)| named((place.unwrap_or(at), what)))?;
            for key in ["socket-path", "publish"] {
                let Some((place, path)) = string(device, key) else { continue };
                if let Some(other) = places.insert(path, name.to_owned()) {
                    return Err(named((place, format!("{path} is device {other}'s already"))));
                }
            }
            devices.insert(name.to_owned(), args);
        }
    }
    Ok(Config { metrics, devices })
}

fn table<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Option<&'a Table<'i>> {
    value.get_ref().as_table()
}

fn string<'a>(table: &'a Table<'_>, key: &str) -> Option<(usize, &'a str)> {
    let value = table.get(key)?;
    Some((value.span().start, value.get_ref().as_str()?))
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('.') && name.bytes().all(fits)
}

/// A device's keys as options of the command line; or what is wrong, and where.
fn arguments(device: &Table<'_>) -> Result<Vec<String>, (usize, String)> {
    let mut args = Vec::new();
    for (key, value) in device {
        let name = key.get_ref().as_ref();
        if !options().any(|option| option == name) {
            let known: Vec<_> = options().collect();
            let what = format!("unknown key \"{name}\"; there are {}", known.join(", "));
            return Err((key.span().start, what));
        }
        match value.get_ref() {
            DeValue::Boolean(true) => args.push(format!("--{name}")),
            DeValue::Boolean(false) => {}
            DeValue::String(text) => args.push(format!("--{name}={text}")),
            DeValue::Integer(number) if number.radix() == 10 => {
                args.push(format!("--{name}={}", number.as_str()));
            }
            other => {
                let what = format!("{name} can't be a {}", other.type_str());
                return Err((value.span().start, what));
            }
        }
    }
    Ok(args)
}

/// The options that a device may have.
fn options() -> impl Iterator<Item = String> {
    let all: Vec<_> =
        Cli::command().get_arguments().map(|one| one.get_long().map(str::to_owned)).collect();
    all.into_iter().flatten().filter(|long| !NOT_A_DEVICES.contains(&long.as_str()))
}

/// Checks that the command line would take `args`; or says what it says, and which key it speaks of.
fn check(args: &[String], device: &Table<'_>) -> Result<(), (Option<usize>, String)> {
    let line = std::iter::once("vhost-pmemd").chain(args.iter().map(String::as_str));
    let Err(error) = Cli::try_parse_from(line) else { return Ok(()) };
    let said = error.to_string();
    // What comes behind an empty line is how to use the command line.
    let what = said.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let what: Vec<_> = what.lines().map(str::trim).collect();
    let place = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => device.iter().find(|(key, _)| {
            option.strip_prefix("--").is_some_and(|option| {
                option.split([' ', '=']).next() == Some(key.get_ref().as_ref())
            })
        }),
        _ => None,
    };
    Err((place.map(|(key, _)| key.span().start), what.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_has_the_command_lines_options() {
        let devices = parse(
            "[device.b]\nsocket-path = \"/b\"\nfile = \"/f\"\nsize = \"4M\"\nmax-syncs = 10\nprefetch = true\n\
             [device.a-1]\npublish = \"/p\"\ntable = \"/t\"\nread-only = false\n",
        )
        .unwrap()
        .devices;
        assert_eq!(
            devices["b"],
            ["--file=/f", "--max-syncs=10", "--prefetch", "--size=4M", "--socket-path=/b"]
        );
        assert_eq!(devices["a-1"], ["--publish=/p", "--table=/t"]);
    }

    #[test]
    fn metrics_are_the_whole_files() {
        let config =
            parse("metrics = 'unix:/m'\n[device.a]\npublish = '/p'\nfile = '/f'\n").unwrap();
        assert_eq!(config.metrics, Some(Address::Unix("/m".into())));
        assert_eq!(config.devices.len(), 1);
    }

    #[test]
    fn error_says_where_and_what() {
        let cases = [
            ("x = 1", "1:1: unknown key \"x\"; a device begins with [device.NAME]"),
            ("metrics = 1", "1:11: metrics is not a text"),
            ("metrics = '[::]:9'", "1:11: metrics: [::]:9 can be reached from other hosts"),
            ("[device.a]\nmetrics = 'unix:m'", "2:1: device a: unknown key \"metrics\"; there are"),
            ("\n[device.a]\nfile = 'f'\nfile = 'g'", "4:1: duplicate key"),
            ("[device]\na = 1", "2:1: device a: not a table"),
            ("device = 1", "1:1: not a table"),
            ("[device.\"a/b\"]", "1:9: \"a/b\" can't be a device's name"),
            ("[device.a]\ncontrol = 'x'", "2:1: device a: unknown key \"control\"; there are"),
            ("[device.a]\nfile = [1]", "2:8: device a: file can't be a array"),
            (
                "[device.a]\nfile = 'f'",
                "1:9: device a: the following required arguments were not provided: --socket-path <PATH>",
            ),
            (
                "[device.a]\nsocket-path='s'\nfile = 'f'\nsize = 'many'",
                "4:1: device a: invalid value 'many' for '--size <SIZE>'",
            ),
            (
                "[device.a]\nsocket-path='s'\nfile = 'f'\nread-only = 'yes'",
                "4:1: device a: unexpected value 'yes' for '--read-only'",
            ),
            (
                "[device.a]\nsocket-path='s'\nfile = 'f'\nsize = 'M'\n[device.b]\nsocket-path='s'",
                "4:1:",
            ),
            (
                "[device.a]\nsocket-path='s'\nfile='f'\n[device.b]\nsocket-path='s'\nfile='g'",
                "5:13: device b: s is device a's already",
            ),
        ];
        for (text, expected) in cases {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{text:?}: {said}");
        }
    }
}
