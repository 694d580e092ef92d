// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The commands of the daemon that the pages show, run as they stand there, one after another. Those of
//! walks, such as the tutorial, are typed by a test of their own, `xtask/tests/walks.rs`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::{DAEMON, Place};

/// Directories of the pages; a test has its own in their place.
const ROOTS: [&str; 4] = ["/srv/", "/run/", "/etc/", "/tmp/"];
/// What a daemon logs when it is there.
const READY: [&str; 3] =
    ["waiting for a frontend", "published", "all devices that can be are served"];

/// The pages that there are.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let is_walk = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("<!-- A walk: ");
    let docs = docs.filter(is_page).filter(|path| !is_walk(path));
    docs.chain([root.join("README.md")]).collect()
}

/// What a page has one do.
enum Step {
    /// What follows the daemon's name in a command of its own.
    Run(Vec<String>),
    /// A line that makes files.
    Make(String),
    /// A table, which the next daemon that needs one is given.
    Table(String),
}

/// The steps of a page, in order.
fn steps(page: &Path) -> Vec<Step> {
    let text = fs::read_to_string(page).unwrap().replace("\\\n", " ");
    let mut steps = Vec::new();
    for block in text.split("```").skip(1).step_by(2) {
        let Some(console) = block.strip_prefix("console\n") else {
            let is_table = block.starts_with("\n0 ") && block.contains(" /srv/");
            steps.extend(is_table.then(|| Step::Table(block.trim_start().to_owned())));
            continue;
        };
        steps.extend(console.lines().filter_map(|line| {
            let line = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "))?;
            let mut words = line.split_whitespace().take_while(|word| !matches!(*word, "#" | "&"));
            match words.next()?.rsplit('/').next()? {
                "vhost-pmemd" => Some(Step::Run(words.map(str::to_owned).collect())),
                "truncate" => Some(Step::Make(line.to_owned())),
                _ => None,
            }
        }));
    }
    steps
}

/// A daemon of a page's, and the directories that the page's commands name.
struct Page {
    place: Place,
    daemon: Option<Child>,
    /// The last one that the page has shown.
    table: String,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.end();
    }
}

impl Page {
    fn new() -> Self {
        let place = Place::new();
        for root in ROOTS {
            fs::create_dir_all(place.path(&root[1..])).unwrap();
        }
        Self { place, daemon: None, table: String::new() }
    }

    /// Makes files, as the shell does.
    fn make(&self, line: &str) {
        let words: Vec<_> = line.split_whitespace().map(|word| self.here(word)).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &words.join(" ")]).current_dir(self.place.path("srv"));
        assert!(shell.status().unwrap().success(), "{line}");
    }

    /// The daemon, with words of which each is where the page has it, but below our place.
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(DAEMON);
        // The files that have no directory in the pages are in one that snapshots go to, too.
        command.current_dir(self.place.path("srv")).stdin(Stdio::null());
        command.args(words.iter().map(|word| self.here(word)));
        command
    }

    fn here(&self, word: &str) -> String {
        let is_below = ROOTS.iter().any(|root| word.starts_with(root));
        let word = if is_below { self.place.expand(&format!("@{word}")) } else { word.to_owned() };
        // Someone may listen there.
        word.replace("127.0.0.1:9187", "127.0.0.1:0")
    }

    /// The path behind an option.
    fn path(&self, words: &[String], option: &str) -> Option<PathBuf> {
        let at = words.iter().position(|word| word == option)?;
        Some(self.place.path("srv").join(self.here(&words[at + 1])))
    }

    /// Ends the daemon that there is, and starts one. Whether that is there; not where it takes FUSE, and
    /// there is none.
    fn serve(&mut self, words: &[String]) -> bool {
        self.end();
        if let Some(file) = self.path(words, "--file").filter(|file| !file.exists()) {
            let has = |option| words.iter().any(|word| word == option);
            if !has("--size") || has("--overlay") {
                File::create(file).unwrap().set_len(4 << 20).unwrap();
            }
        }
        if let Some(table) = self.path(words, "--table") {
            fs::write(table, self.table.replace("/srv/", &self.here("/srv/"))).unwrap();
        }
        if let Some(config) = self.path(words, "--config") {
            let device = "[device.vm1]\nsocket-path = 'vm1.sock'\nfile = 'vm1.img'\nsize = '1M'\n";
            fs::write(config, device).unwrap();
        }
        let mut child = self.command(words).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        self.daemon = Some(child);
        let mut log = String::new();
        for line in lines {
            log += &(line.unwrap() + "\n");
            if READY.iter().any(|ready| log.contains(ready)) {
                return true;
            }
        }
        assert!(log.contains("a served window needs"), "{words:?}:\n{log}");
        eprintln!("skipped: {log}");
        false
    }

    fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself.
            let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
            let _ = daemon.wait();
        }
    }

    /// Runs a command that doesn't serve; with a daemon to ask, if it asks one.
    fn operate(&mut self, words: &[String]) -> bool {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let value = |option| words.iter().skip_while(|word| *word != option).nth(1);
        if let (Some(file), Some(overlay)) = (value("--file"), value("--overlay")) {
            // An overlay that nobody serves.
            let serve = ["--socket-path", "/run/own", "--file", file, "--overlay", overlay];
            if !self.serve(&own(&serve)) {
                return false;
            }
            self.end();
        } else if words[0] == "unmark" {
            // Of what nobody serves.
            self.end();
        } else if self.daemon.is_none() {
            let control = value("--control").unwrap();
            fs::create_dir_all(Path::new(&self.here(control)).parent().unwrap()).unwrap();
            assert!(self.serve(&own(&["--config", "/etc/own", "--control", control])));
        }
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        true
    }
}

#[test]
fn commands_that_the_pages_show_do_what_they_are_to() {
    let mut count = 0;
    for path in pages() {
        let mut page = Page::new();
        // Made for the daemon that comes next.
        let (mut made, mut table) = (Vec::new(), String::new());
        for step in steps(&path) {
            let words = match step {
                Step::Run(words) => words,
                Step::Table(shown) => {
                    table = shown;
                    continue;
                }
                Step::Make(line) => {
                    made.push(line);
                    continue;
                }
            };
            let is_daemon = words[0].starts_with("--");
            if is_daemon {
                // Its files are its own example's.
                page = Page::new();
                page.table.clone_from(&table);
            }
            made.drain(..).for_each(|line| page.make(&line));
            let done = if is_daemon { page.serve(&words) } else { page.operate(&words) };
            if !done {
                return;
            }
            count += 1;
        }
    }
    assert!(count > 15, "only {count} commands");
}
