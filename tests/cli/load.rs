// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A published window that another process maps, as a VMM does, and dirties as fast as it can: where
//! memory is short, and until a signal ends the daemon.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::Signal;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::Place;
use crate::publish::Publisher;

const SIZE: usize = 64 << 20;
const PAGE: usize = 4096;
const SERVE: &str = "--publish @/window --file @/base --overlay @/cow";
/// Tells the test below which file it is to write.
const WINDOW: &str = "VHOST_PMEM_TEST_WINDOW";

/// No test, but the process that maps the window: stores the round's number in all pages, syncs, and
/// says so, round after round.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(WINDOW) else { return };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mapped = MmapRegion::<()>::from_file(FileOffset::new(file.try_clone().unwrap(), 0), SIZE);
    let mapped = mapped.unwrap();
    let memory = mapped.as_volatile_slice();
    for round in 1..u64::MAX {
        for page in (0..SIZE).step_by(PAGE) {
            memory.write_obj(round, page).unwrap();
        }
        file.sync_data().unwrap();
        println!("synced {round}");
    }
}

/// A process that writes. It is killed in the end, or by the window's.
struct Writer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Writer {
    fn start(place: &Place, group: Option<&Group>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["load::writer", "--exact", "--nocapture"]);
        command.env(WINDOW, place.path("window")).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = in_group(command, group).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Waits for so many rounds.
    fn wait_for(&mut self, round: u64) {
        while self.synced().expect("the writer has ended") < round {}
    }

    /// The next round that was synced; none if there will be none any more.
    fn synced(&mut self) -> Option<u64> {
        let lines = self.output.by_ref().lines().map_while(Result::ok);
        let mut rounds = lines.filter_map(|line| line.split_once("synced ")?.1.parse().ok());
        rounds.next()
    }

    /// The last round that was synced.
    fn end(mut self) -> u64 {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.synced()).last().unwrap_or_default()
    }
}

/// A control group whose processes have little memory; only root can make one.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("vhost-pmem-test-{}", std::process::id());
        [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
            .into_iter()
            .find_map(|(root, limit)| {
                let path = Path::new(root).join(&name);
                fs::create_dir(&path).ok()?;
                let group = Self(path);
                // Less than the window, which both sides have to do with.
                fs::write(group.0.join(limit), (SIZE / 2).to_string()).ok()?;
                Some(group)
            })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// `command`, run in `group`.
fn in_group(command: Command, group: Option<&Group>) -> Command {
    let Some(group) = group else { return command };
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > $0 && exec \"$@\""]).arg(group.0.join("cgroup.procs"));
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).arg0("sh");
    shell
}

/// What the overlay holds: the round's number of each page.
fn rounds(place: &Place) -> Vec<u64> {
    let _daemon = Publisher::start(place, SERVE).unwrap();
    let window = File::open(place.path("window")).unwrap();
    let mut bytes = [0; 8];
    let mut round = |page: usize| {
        window.read_exact_at(&mut bytes, page as u64).unwrap();
        u64::from_le_bytes(bytes)
    };
    (0..SIZE).step_by(PAGE).map(&mut round).collect()
}

fn base(place: &Place) {
    File::create(place.path("base")).unwrap().set_len(SIZE as u64).unwrap();
}

#[test]
fn window_larger_than_memory_is_written_and_synced() {
    let place = Place::new();
    base(&place);
    let Some(group) = Group::new() else {
        eprintln!("skipped: cannot limit memory; run as root, with a memory controller");
        return;
    };
    let command = in_group(place.command(SERVE), Some(&group));
    let Some(mut daemon) = Publisher::spawn(command) else { return };
    let mut writer = Writer::start(&place, Some(&group));
    writer.wait_for(3);
    let last = writer.end().max(3);
    assert!(daemon.signal(Signal::TERM));
    assert!(rounds(&place).into_iter().all(|round| round >= last));
}

#[test]
fn signal_while_pages_are_dirtied_ends_the_daemon_and_loses_nothing_synced() {
    let place = Place::new();
    base(&place);
    let Some(mut daemon) = Publisher::start(&place, SERVE) else { return };
    let mut writer = Writer::start(&place, None);
    writer.wait_for(2);
    assert!(daemon.signal(Signal::TERM));
    assert!(!place.path("window").exists());
    let last = writer.end().max(2);
    assert!(rounds(&place).into_iter().all(|round| round >= last));
}
