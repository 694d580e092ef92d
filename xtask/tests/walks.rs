// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The commands of the pages that are walks, run from top to bottom, in a shell and in real guests,
//! and what they print.
//!
//! A line that begins with `$` is typed in the shell, one that begins with `#` in the guest that
//! `cargo xtask guest` has booted last, at its terminal. All other lines of a console are what the
//! command before them prints, among other things.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::{Lab, host_program};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// What a page has that is a walk.
const WALK: &str = "<!-- A walk: xtask/tests/walks.rs runs it. -->";

/// What a reader has done already, by the tutorial's first commands.
const PREPARED: [&str; 2] = ["cargo build --release", "PATH=\"$PWD/target/release:$PATH\""];

/// What a daemon logs when it is there.
const READY: [&str; 2] = ["waiting for a frontend", "published"];

/// How long one command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Follows what a command has printed, with its exit status. The shells have it in two parts, so that
/// a terminal's echo of it is another text.
const DONE: &str = "COMMAND-DONE ";

/// A command, and lines that it prints.
#[derive(Default)]
struct Step<'a> {
    is_guests: bool,
    command: &'a str,
    printed: Vec<&'a str>,
}

/// All commands of all consoles.
fn steps(page: &str) -> Vec<Step<'_>> {
    let blocks = page.split("```console\n").skip(1);
    let mut steps: Vec<Step<'_>> = Vec::new();
    for line in blocks.flat_map(|block| block.split("```").next().unwrap().lines()) {
        let is_guests = match line.split_once(' ') {
            Some(("$", _)) => false,
            Some(("#", _)) => true,
            _ => {
                steps.last_mut().expect("a command comes first").printed.push(line);
                continue;
            }
        };
        steps.push(Step { is_guests, command: &line[2..], printed: Vec::new() });
    }
    steps
}

/// Where commands are typed, and what they print.
struct Shell {
    child: Child,
    /// Until it is to end.
    typed: Option<Box<dyn Write>>,
    printed: Receiver<Vec<u8>>,
    /// What has been printed and not been looked at.
    rest: String,
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The host's ends its daemons then.
        drop(self.typed.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Shell {
    fn new(
        child: Child,
        typed: impl Write + 'static,
        mut reader: impl Read + Send + 'static,
    ) -> Self {
        let (sender, printed) = mpsc::channel();
        // A terminal whose other side is closed can't be read any more: that is an end.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, typed: Some(Box::new(typed)), printed, rest: String::new() }
    }

    fn type_line(&mut self, line: &str) {
        let typed = self.typed.as_mut().expect("it isn't to end yet");
        typed.write_all(format!("{line}\n").as_bytes()).unwrap();
        typed.flush().unwrap();
    }

    /// What is printed up to `text`, which is taken also; none if that doesn't come in time.
    fn up_to(&mut self, text: &str, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.rest.find(text) {
                let after = self.rest.split_off(at + text.len());
                return Some(std::mem::replace(&mut self.rest, after));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Also none if the shell has ended.
            let bytes = self.printed.recv_timeout(left).ok()?;
            self.rest += &String::from_utf8_lossy(&bytes).replace('\r', "");
        }
    }

    /// Runs a command, and returns what it prints.
    fn run(&mut self, command: &str) -> Result<String, String> {
        let (one, other) = DONE.split_at(4);
        self.type_line(command);
        // Where nothing looks at jobs that have ended, they keep their numbers.
        self.type_line(&format!("echo {one}''\"{other}$?\"; jobs >/dev/null"));
        let Some(printed) = self.up_to(DONE, PATIENCE) else {
            return Err(format!("it doesn't end: {:?}", self.rest));
        };
        let status = self.up_to("\n", PATIENCE).unwrap_or_default();
        match status.trim() {
            "0" => Ok(printed),
            status => Err(format!("exit status {status}\n{printed}")),
        }
    }
}

/// A shell of the host's, in `dir`, with `programs` first in its path.
fn host(dir: &Path, programs: &[&Path], log: &Path) -> Shell {
    let mut bash = Command::new("bash");
    let paths: Vec<_> = programs.iter().map(|path| path.to_str().unwrap()).collect();
    bash.env("PATH", format!("{}:{}", paths.join(":"), std::env::var("PATH").unwrap()));
    bash.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = bash.stderr(File::create(log).unwrap()).spawn().unwrap();
    let (stdin, stdout): (ChildStdin, _) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shell = Shell::new(child, stdin, stdout);
    // It ends with its input, also where this process is killed.
    shell.type_line("set -mu; trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT");
    shell
}

/// A shell in a guest on `sockets`, at a terminal, as a reader has it.
fn guest(dir: &Path, sockets: &str) -> Shell {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal: OwnedFd = rustix::fs::open(name, flags, Mode::empty()).unwrap();
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.arg("guest").args(sockets.split(' ')).current_dir(dir);
    xtask.stdin(terminal.try_clone().unwrap()).stdout(terminal);
    let child = xtask.spawn().unwrap();
    let typed = File::from(master);
    let mut shell = Shell::new(child, typed.try_clone().unwrap(), typed);
    // What is typed before there is a shell may be lost.
    let deadline = Instant::now() + PATIENCE;
    while shell.up_to("guest# ", Duration::from_millis(300)).is_none() {
        let ended = shell.child.try_wait().unwrap();
        assert!(ended.is_none(), "the guest: {ended:?}: {}", shell.rest);
        assert!(Instant::now() < deadline, "no prompt of the guest's: {:?}", shell.rest);
        shell.type_line("");
    }
    shell.run(":").unwrap();
    shell
}

/// Puts programs that a page needs, and that the host may lack, into `dir`.
fn provide(dir: &Path, page: &str) {
    fs::create_dir(dir).unwrap();
    let lab = Lab::open().unwrap();
    let of_userland = |name: &str| lab.host_tool(name).unwrap();
    let mut programs: Vec<(&str, Command)> =
        ["mkfs.ext4", "e2fsck", "debugfs"].map(|name| (name, of_userland(name))).into();
    let is_there = Command::new("qemu-img").arg("--version").output().is_ok();
    if page.contains("$ qemu-img ") && !is_there {
        programs.push(("qemu-img", host_program("qemu-utils", "qemu-img").unwrap()));
    }
    for (name, command) in programs {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let envs = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let envs: String = envs
            .map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap()))
            .map(|(name, value)| format!("export {name}='{value}'\n"))
            .collect();
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{envs}exec {} \"$@\"\n", words.join(" "))).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Waits for a daemon to begin that writes to `log`, from byte `start` on. Whether it does: not where it
/// takes FUSE, and there is none.
fn await_daemon(command: &str, log: &Path, start: usize) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(log).unwrap();
        let new = &text[start..];
        if READY.iter().any(|ready| new.contains(ready)) {
            return true;
        }
        let is_refusal =
            |line: &&str| line.starts_with("vhost-pmemd: ") || line.starts_with("error: ");
        if let Some(refusal) = new.lines().find(is_refusal) {
            assert!(refusal.contains("a served window needs"), "{command}: {refusal}");
            eprintln!("skipped: {refusal}");
            return false;
        }
        assert!(Instant::now() < deadline, "{command}: no daemon\n{text}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Walks along a page.
fn walk(page: &str) {
    assert!(page.contains(WALK));
    let build = [env!("CARGO"), "build", "--quiet", "--package", "vhost-pmemd"];
    assert!(Command::new(build[0]).args(&build[1..]).status().unwrap().success());
    let built = Path::new(env!("CARGO_BIN_EXE_xtask")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [log, tools, place] = ["log", "tools", "place"].map(|name| dir.path().join(name));
    provide(&tools, page);
    fs::create_dir(&place).unwrap();
    let mut host = host(&place, &[built, &tools], &log);
    let mut guest_shell: Option<Shell> = None;
    let steps = steps(page);
    assert!(steps.len() > 5);
    for step in &steps {
        let Step { is_guests, command, printed } = step;
        let log_text = || fs::read_to_string(&log).unwrap();
        let expect = |result: Result<String, String>| {
            result.unwrap_or_else(|error| panic!("{command}: {error}\n{}", log_text()))
        };
        let said = if let Some(sockets) = command.strip_prefix("cargo xtask guest ") {
            guest_shell = Some(guest(&place, sockets));
            String::new()
        } else if *is_guests && *command == "exit" {
            let mut shell = guest_shell.take().expect("there is a guest");
            shell.type_line("exit");
            let status = shell.child.wait().unwrap();
            assert!(status.success(), "the guest: {status}");
            String::new()
        } else if *is_guests {
            expect(guest_shell.as_mut().expect("there is a guest").run(command))
        } else if PREPARED.contains(command) {
            String::new()
        } else {
            let start = log_text().len();
            let said = expect(host.run(command));
            let is_daemon = command.starts_with("vhost-pmemd ") && command.ends_with('&');
            if is_daemon && !await_daemon(command, &log, start) {
                return;
            }
            said
        };
        let mut rest = said.lines();
        for expected in printed {
            assert!(rest.any(|line| line == *expected), "{command}: no {expected:?} in:\n{said}");
        }
    }
    assert!(guest_shell.is_none(), "the last guest isn't ended");
}

#[test]
fn tutorial_does_what_it_says() {
    walk(include_str!("../../docs/tutorial.md"));
}

#[test]
fn images_go_in_and_out_are_backed_up_restored_and_grown_as_the_page_says() {
    walk(include_str!("../../docs/images.md"));
}

#[test]
fn each_walk_is_taken() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let pages = fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
    let mut walks: Vec<PathBuf> = pages
        .filter(|path| path.is_file())
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(WALK)))
        .collect();
    walks.sort();
    let names: Vec<_> =
        walks.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["images.md", "tutorial.md"]);
}
