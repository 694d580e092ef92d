// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon does where its host is short of something, its disk hangs, or frontends storm.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tempfile::TempDir;

use crate::metrics::scrape::Metrics;
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with a file of 1 MiB, a control socket and metrics.
fn serve(dir: &TempDir) -> Daemon {
    let path = |name| dir.path().join(name);
    let metrics = format!("unix:{}", path("metrics").display());
    let (file, control) = (path("file"), path("control"));
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), "1M".as_ref()];
    let more = ["--metrics".as_ref(), metrics.as_ref(), "--control".as_ref(), control.as_os_str()];
    Daemon::start(DAEMON, args.into_iter().chain(more)).unwrap()
}

/// What a command of the daemon's prints.
fn ask(dir: &TempDir, command: &str) -> String {
    let control = dir.path().join("control");
    let output = Command::new(DAEMON).args([command, "--control"]).arg(control).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience(PATIENCE);
    while !is_so() {
        assert!(Instant::now() < deadline, "it isn't so still");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many files a process may have open: now, and at most.
fn limits(pid: u32) -> [u64; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut words = line.split_whitespace();
    [(); 2].map(|()| words.next().unwrap().parse().unwrap())
}

/// Lets a daemon have no more than `current` open.
fn limit(daemon: &Daemon, current: u64) {
    let [_, maximum] = limits(daemon.pid());
    let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap());
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

#[test]
fn frontend_that_comes_when_no_fd_is_left_is_served_when_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    // All below are taken.
    limit(&daemon, 8);
    let waiting = UnixStream::connect(daemon.socket()).unwrap();
    daemon.wait_for_log("no frontend can be served now; trying again").unwrap();
    limit(&daemon, limits(daemon.pid())[1]);
    // It was accepted, if the daemon had an fd for that, and dropped then.
    drop(waiting);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    drop(vmm);
    daemon.wait_for_log("frontends can be served again").unwrap();
}

#[test]
fn daemon_may_open_as_many_files_as_the_host_lets_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Command::new("sh")
        .current_dir(&dir)
        .args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\"", DAEMON])
        .args(["--socket-path", "socket", "--size", "2M", "--file", "file", "--log-level", "off"])
        .spawn()
        .unwrap();
    wait_until(|| dir.path().join("socket").exists());
    let [current, maximum] = limits(daemon.id());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(current, maximum);
}

#[test]
fn control_clients_that_say_nothing_are_bounded_and_keep_no_one_out() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let control = dir.path().join("control");
    let clients: Vec<_> = (0..200).map(|_| UnixStream::connect(&control).unwrap()).collect();
    let mut is_closed = clients.iter().map(|mut client| {
        client.set_read_timeout(Some(patience(Duration::from_secs(1)))).unwrap();
        matches!(client.read(&mut [0]), Ok(0))
    });
    // The oldest are evicted, before they take too long, and the last one isn't.
    assert!(is_closed.next().unwrap() && !is_closed.next_back().unwrap());
    assert!(ask(&dir, "status").contains("frontend: none"));
    drop(daemon);
}

#[test]
fn command_to_a_daemon_that_accepts_nothing_says_that_it_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let control = dir.path().join("control");
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // As clients leave it that ask, and give up.
    assert!(fill_backlog(&control) > 0);
    let output = Command::new(DAEMON).args(["status", "--control"]).arg(&control).output().unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the daemon hangs: it accepts no connection"), "{said}");
}

#[test]
fn frontends_that_storm_fill_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    for number in 0..300 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        // Some leave, and some break the protocol.
        if number % 2 == 0 {
            let _ = stream.write_all(&[0xff; 12]);
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Until it was served: a backlog is short.
        let _ = stream.read(&mut [0]);
    }
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let metrics = Metrics::scrape(&dir.path().join("metrics"));
    assert!(metrics.value("vhost_pmem_frontends_total{device=\"device\"}") >= 300.0);
    let log = daemon.log();
    // Two lines for each of a burst, and then for one in two seconds.
    assert!(log.lines().count() < 200, "{log}");
}

#[test]
fn frontend_that_waits_for_another_is_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let second = UnixStream::connect(daemon.socket()).unwrap();
    daemon.wait_for_log("another frontend waits until this one leaves").unwrap();
    let _third = UnixStream::connect(daemon.socket()).unwrap();
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(daemon.log().matches("another frontend waits").count(), 1, "{}", daemon.log());
    drop(second);
}

#[test]
fn frontend_that_asks_for_more_than_there_is_learns_what_there_is() {
    const SET_VRING_CALL: u32 = 13;
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let expected = "frontend dropped: it asked for a queue, a queue size or a feature";
    // As QEMU does with num_vqs=2: the second queue gets a call.
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let no_fd = 1u64 << 8;
    let header = [SET_VRING_CALL, 1, 8].map(u32::to_le_bytes).concat();
    stream.write_all(&[&header[..], &(1 | no_fd).to_le_bytes()].concat()).unwrap();
    let line = daemon.wait_for_log(expected).unwrap();
    for part in ["queues=1", "queue_size_max=32768", "num_vqs=1"] {
        assert!(line.contains(part), "{line}");
    }
    let vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vhost::VhostBackend::set_vring_num(&vmm.frontend, 0, 32769).unwrap_err();
    daemon.wait_for_log(expected).unwrap();
}

#[test]
fn file_that_was_removed_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let removed = "vhost_pmem_removed_stores{device=\"device\"}";
    let metrics = dir.path().join("metrics");
    assert_eq!(Metrics::scrape(&metrics).value(removed), 0.0);
    fs::remove_file(dir.path().join("file")).unwrap();
    assert_eq!(Metrics::scrape(&metrics).value(removed), 1.0);
    for command in ["status", "list"] {
        let shown = ask(&dir, command);
        assert!(shown.contains("was removed"), "{shown}");
    }
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), 0);
    }
    daemon.wait_for_log("the file was removed while it is served").unwrap();
    assert_eq!(daemon.log().matches("the file was removed").count(), 1, "{}", daemon.log());
}

#[test]
fn guest_with_little_ram_for_the_device_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    // Of its MiB of RAM Linux would need half for 32 MiB, and all for 64 MiB.
    for (size, is_warned) in [("32M", false), ("64M", true)] {
        let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), size.as_ref()];
        let daemon = Daemon::start(DAEMON, args).unwrap();
        let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
        assert_eq!(vmm.driver.flush(), 0);
        vmm.reset();
        vmm.activate();
        assert_eq!(vmm.driver.flush(), 0);
        let told = daemon.log().matches("the guest has little RAM for this device").count();
        assert_eq!(told, usize::from(is_warned), "{size}: {}", daemon.log());
    }
}

/// A disk that hangs: a file of a published window whose daemon is stopped.
#[test]
fn status_and_metrics_are_told_while_a_disk_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    fs::File::create(path("below")).unwrap().set_len(1 << 20).unwrap();
    let args = ["--file".into(), path("below"), "--publish".into(), path("file")];
    let Some(disk) = Daemon::start_served(DAEMON, args).unwrap() else { return };
    let daemon = serve(&dir);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let running = "vhost_pmem_sync_running_seconds{device=\"device\"}";
    assert_eq!(Metrics::scrape(&path("metrics")).value(running), 0.0);

    disk.signal(Signal::STOP).unwrap();
    vmm.driver.add_flush(1);
    vmm.driver.publish();
    // By hand: this process has the disk's file open, and a program that it started would wait for
    // the disk to take note that its copy is closed.
    let syncing = || status(&path("control"))["ok"][0]["syncing"].clone();
    let is_told = || Metrics::scrape(&path("metrics")).value(running) >= 2.0;
    wait_until(|| is_told() && syncing()[0]["store"].as_str().unwrap().ends_with("/file"));
    // Those that were answered have gone.
    wait_until(|| threads(&daemon, "client") == 0 && threads(&daemon, "scrape") == 0);

    disk.signal(Signal::CONT).unwrap();
    assert_eq!(vmm.driver.answer().1, 4);
    assert_eq!(vmm.driver.status(1), 0);
    assert_eq!(Metrics::scrape(&path("metrics")).value(running), 0.0);
    assert_eq!(syncing(), serde_json::json!([]));
    drop(vmm);
    drop(daemon);
    disk.terminate().unwrap();
}

/// What a control socket tells.
fn status(control: &Path) -> serde_json::Value {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(patience(PATIENCE))).unwrap();
    stream.write_all(b"{\"version\":1,\"command\":\"status\"}\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    serde_json::from_str(&reply).unwrap()
}

/// How many threads of that name there are.
fn threads(daemon: &Daemon, of: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks.filter_map(|task| name(task).ok()).filter(|name| name.trim_end() == of).count()
}

/// Fills the backlog of a socket that nobody accepts from. How many connections that took.
fn fill_backlog(socket: &Path) -> usize {
    let connect = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::connect(&stream, &SocketAddrUnix::new(socket).unwrap()).map(|()| stream)
    };
    // Each may be closed: it stays in the backlog.
    std::iter::repeat_with(connect).take(100_000).take_while(Result::is_ok).count()
}
