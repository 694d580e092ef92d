// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The commands of docs/tutorial.md, run from top to bottom, in real guests, and what they print.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const TUTORIAL: &str = include_str!("../../docs/tutorial.md");

/// What a reader has done already, by the tutorial's first commands.
const PREPARED: [&str; 2] = ["cargo build --release", "PATH=\"$PWD/target/release:$PATH\""];

/// A line of a console.
enum Line<'a> {
    Host(&'a str),
    Guest(&'a str),
    Printed(&'a str),
}

/// All lines of all consoles.
fn lines() -> Vec<Line<'static>> {
    let blocks = TUTORIAL.split("```console\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    let line = |line: &'static str| match line.split_once(' ') {
        Some(("$", command)) => Line::Host(command),
        Some(("#", command)) => Line::Guest(command),
        _ => Line::Printed(line),
    };
    blocks.flat_map(str::lines).map(line).collect()
}

/// The script that a reader types: what is for a guest goes there by a pipe.
fn script(lines: &[Line<'_>]) -> String {
    let mut script = "set -meu\ntrap 'kill $(jobs -p) 2>/dev/null || :' EXIT\n".to_owned();
    script += "cargo() { shift; \"$XTASK\" \"$@\"; }\n";
    let mut in_guest = false;
    for line in lines {
        if in_guest && matches!(line, Line::Host(_)) {
            script += "END\n";
            in_guest = false;
        }
        match line {
            Line::Host(command) if PREPARED.contains(command) => {}
            Line::Host(command) if command.starts_with("cargo xtask guest") => {
                writeln!(script, "{command} <<'END'\nset -e").unwrap();
                in_guest = true;
            }
            Line::Host(command) | Line::Guest(command) => writeln!(script, "{command}").unwrap(),
            Line::Printed(_) => {}
        }
    }
    script
}

#[test]
fn tutorial_does_what_it_says() {
    let build = [env!("CARGO"), "build", "--quiet", "--package", "vhost-pmemd"];
    assert!(Command::new(build[0]).args(&build[1..]).status().unwrap().success());
    let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
    let programs = xtask.parent().unwrap().to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let lines = lines();
    let log = fs::File::create(dir.path().join("log")).unwrap();

    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script(&lines)).current_dir(&dir).stdin(Stdio::null()).env("XTASK", xtask);
    shell.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
    let output = shell.stderr(log).output().unwrap();

    let printed = String::from_utf8_lossy(&output.stdout);
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    if let Some(refusal) = log.lines().find(|line| line.contains("a served window needs")) {
        eprintln!("skipped: {refusal}");
        return;
    }
    assert!(output.status.success(), "{}\n{printed}\n{log}", output.status);
    let mut rest = printed.lines();
    for line in &lines {
        if let Line::Printed(expected) = line {
            assert!(rest.any(|line| line == *expected), "{expected:?} is missing in:\n{printed}");
        }
    }
}
