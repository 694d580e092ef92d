// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Daemons of more than one process: who is in the sandbox, and what those outside still do.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::daemon::{DAEMON, SOMEBODY, check, of_each_thread};

/// A directory for what is served, of somebody else's.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&dir, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    dir
}

/// Starts the daemon and reads its log, until `count` lines have `what` or it ends.
fn start(mut command: Command, what: &str, count: usize) -> (Child, Vec<String>) {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = Vec::new();
    let mut left = count;
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        log.push(line.unwrap());
        left -= usize::from(log.last().unwrap().contains(what));
        if left == 0 {
            break;
        }
    }
    (child, log)
}

fn end(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("skipped: it takes root");
    }
    is_root
}

#[test]
fn window_published_by_root_is_withdrawn_by_a_daemon_that_is_not_any_more() {
    if !is_root() {
        return;
    }
    let dir = place();
    let (window, file) = (dir.path().join("window"), dir.path().join("file"));
    let mut command = Command::new(DAEMON);
    command.args(["--size", "1M", "--user", "65534:65534", "--file"]).arg(file);
    command.arg("--publish").arg(&window);
    let (daemon, log) = start(command, "published", 1);
    if !log.last().unwrap().contains("published") {
        assert!(log.concat().contains("a served window needs"), "{log:?}");
        eprintln!("skipped: {log:?}");
        return;
    }
    assert_eq!(fs::metadata(&window).unwrap().len(), 1 << 20);
    end(daemon);
    assert!(!window.exists());
}

/// Its owner could open the window, and so the disk.
#[test]
fn window_is_not_published_on_a_file_of_somebody_elses() {
    if !is_root() {
        return;
    }
    let dir = place();
    let (window, file) = (dir.path().join("window"), dir.path().join("file"));
    let publish = |more: &[&str]| {
        let mut command = Command::new(DAEMON);
        command.args(["--size", "1M", "--file"]).arg(&file).arg("--publish").arg(&window);
        command.args(more);
        start(command, "published", 1)
    };
    fs::write(&window, "").unwrap();
    chown(&window, Some(1000), Some(1000)).unwrap();
    for more in [&[][..], &["--user", "65534:65534"]] {
        let (mut daemon, log) = publish(more);
        let said = log.last().unwrap();
        assert!(said.contains("the file there belongs to user 1000"), "{log:?}");
        assert!(!daemon.wait().unwrap().success());
        assert_eq!(fs::metadata(&window).unwrap().len(), 0);
    }
    fs::hard_link(&window, dir.path().join("another")).unwrap();
    chown(&window, Some(0), Some(0)).unwrap();
    let (mut daemon, log) = publish(&[]);
    assert!(log.last().unwrap().contains("the file there has other names"), "{log:?}");
    assert!(!daemon.wait().unwrap().success());
    fs::remove_file(dir.path().join("another")).unwrap();

    // As an administrator makes it: for a group, or for the daemon's user.
    for (owner, more) in [(0, &[][..]), (SOMEBODY, &["--user", "65534:65534"])] {
        chown(&window, Some(owner), Some(1000)).unwrap();
        let (mut daemon, log) = publish(more);
        if !log.last().unwrap().contains("published") {
            assert!(log.concat().contains("a served window needs"), "{log:?}");
            eprintln!("skipped: {log:?}");
            daemon.wait().unwrap();
            return;
        }
        let metadata = fs::metadata(&window).unwrap();
        assert_eq!((metadata.len(), metadata.uid(), metadata.gid()), (1 << 20, owner, 1000));
        end(daemon);
    }
}

/// By a process that kept the right to, as the daemon has neither that nor the path any more.
#[test]
fn sockets_are_removed_from_where_they_were_bound_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let (run, file) = (dir.path().join("run"), dir.path().join("file"));
    fs::create_dir(&run).unwrap();
    let mut command = Command::new(DAEMON);
    command.args(["--size", "1M", "--file"]).arg(file).current_dir(&run);
    command.args(["--socket-path", "socket", "--control", "control", "--metrics", "unix:metrics"]);
    if geteuid().is_root() {
        // Who may not write the directory.
        command.args(["--user", "65534:65534"]);
    }
    let (daemon, log) = start(command, "waiting for a frontend", 1);
    assert_eq!(fs::read_dir(&run).unwrap().count(), 3, "{log:?}");
    // One was replaced, and the path leads elsewhere.
    fs::remove_file(run.join("control")).unwrap();
    fs::write(run.join("control"), "another's").unwrap();
    let moved = dir.path().join("moved");
    fs::rename(&run, &moved).unwrap();
    fs::create_dir(&run).unwrap();
    fs::write(run.join("socket"), "another's").unwrap();
    end(daemon);
    let left = |dir: &Path| -> Vec<_> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(left(&moved), ["control"]);
    assert_eq!(left(&run), ["socket"]);
}

#[test]
fn user_takes_root() {
    if !is_root() {
        return;
    }
    let dir = place();
    let mut command = Command::new(DAEMON);
    command.uid(SOMEBODY).args(["--user", "1:1", "--size", "1M", "--file"]);
    command.arg(dir.path().join("file")).arg("--socket-path").arg(dir.path().join("socket"));
    let (mut daemon, log) = start(command, "waiting", 1);
    assert_eq!(log, ["vhost-pmemd: --user takes root"]);
    assert!(!daemon.wait().unwrap().success());
}

#[test]
fn fleet_hands_its_sandbox_on_to_members_that_have_none_of_their_own() {
    if !is_root() {
        return;
    }
    let dir = place();
    let device = |name: &str, more: &str| {
        let path = |kind| dir.path().join(format!("{name}.{kind}")).display().to_string();
        let (socket, file) = (path("socket"), path("file"));
        format!("[device.{name}]\nsocket-path = '{socket}'\nfile = '{file}'\nsize = '1M'\n{more}\n")
    };
    let own = "sandbox = 'none'\nseccomp = 'none'\nuser = '1:1'";
    let (config, control) = (dir.path().join("config"), dir.path().join("control"));
    fs::write(&config, device("a", "") + &device("b", own)).unwrap();
    let mut command = Command::new(DAEMON);
    command.arg("--config").arg(config).arg("--control").arg(&control);
    command.args(["--user", "65534:65534"]);
    let scratch = tempfile::tempdir().unwrap();
    command.env("TMPDIR", scratch.path()).env_remove("RUNTIME_DIRECTORY");
    let (fleet, log) = start(command, "all devices that can be are served", 1);
    // Operators reach a device through the fleet alone: no process has a socket of another's.
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    let process = |name: &str| -> u32 {
        let line = log.iter().find(|line| line.contains(&format!("device=\"{name}\""))).unwrap();
        line.split_once("pid=").unwrap().1.trim().parse().unwrap()
    };
    let is = |user| format!("{user} {user} {user} {user}");
    check(process("a"), 3, &[("Uid", &is(SOMEBODY)), ("Seccomp", "2"), ("NoNewPrivs", "1")]);
    check(process("b"), 1, &[("Uid", &is(1)), ("Seccomp", "0"), ("NoNewPrivs", "0")]);

    // Of the first process, the threads that operators reach, and no other.
    let pid = fleet.id();
    let names = of_each_thread(pid, "Name");
    let confined = [("Seccomp", "2"), ("Uid", &is(SOMEBODY)), ("CapEff", "0000000000000000")];
    for (field, expected) in confined {
        for (value, name) in of_each_thread(pid, field).iter().zip(&names) {
            assert_eq!(value == expected, name == "control", "{field} of {name}");
        }
    }
    let asked = Command::new(DAEMON).arg("list").arg("--control").arg(&control).output().unwrap();
    let list = String::from_utf8(asked.stdout).unwrap();
    assert_eq!(list.lines().filter(|line| line.ends_with("good")).count(), 2, "{list}");
    // As does the end of the one, that of the others.
    end(fleet);
    assert!(!Path::new(&dir.path().join("a.socket")).exists());
}
