// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon in its sandbox, as the kernel describes it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_harness::Daemon;
use rustix::process::geteuid;
use tempfile::TempDir;

pub(crate) const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
/// Somebody who isn't root, and needs no account.
pub(crate) const SOMEBODY: u32 = 65534;

/// A daemon that serves a file through a window of `kind`, with all threads that there are; none
/// where there is no FUSE.
fn serve(dir: &TempDir, kind: &str, more: &[&str]) -> Option<Daemon> {
    let (file, control) = (dir.path().join("file"), dir.path().join("control"));
    fs::write(&file, [0; 1 << 20]).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let given = if more.contains(&"--user") { Some(SOMEBODY) } else { None };
    chown(&file, given, given).unwrap();
    chown(dir, given, given).unwrap();
    let [file, control] = [&file, &control].map(|path| path.to_str().unwrap());
    let args = ["--window", kind, "--file", file, "--control", control];
    Daemon::start_served(DAEMON, args.iter().chain(more)).unwrap()
}

/// A field of each thread's status.
pub(crate) fn of_each_thread(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let status = tasks.flat_map(|task| fs::read_to_string(task.path().join("status")));
    let value = |status: String| {
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    status.map(value).collect()
}

#[track_caller]
pub(crate) fn check(pid: u32, threads: usize, expected: &[(&str, &str)]) {
    for (field, expected) in expected {
        let values = of_each_thread(pid, field);
        assert!(values.len() >= threads, "{field}: {values:?}");
        assert!(values.iter().all(|value| value == expected), "{field}: {values:?}");
    }
}

const CONFINED: [(&str, &str); 5] = [
    ("NoNewPrivs", "1"),
    ("Seccomp", "2"),
    ("CapEff", "0000000000000000"),
    ("CapPrm", "0000000000000000"),
    ("CapInh", "0000000000000000"),
];

#[test]
fn all_threads_of_the_daemon_are_confined() {
    let dir = tempfile::tempdir().unwrap();
    let direct = serve(&dir, "direct", &[]).unwrap();
    check(direct.pid(), 3, &CONFINED);
    let dir = tempfile::tempdir().unwrap();
    let Some(served) = serve(&dir, "served", &[]) else { return };
    check(served.pid(), 7, &CONFINED);
}

#[test]
fn daemon_without_a_sandbox_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir, "direct", &["--sandbox", "none", "--seccomp", "none"]).unwrap();
    check(daemon.pid(), 3, &[("NoNewPrivs", "0"), ("Seccomp", "0")]);
}

#[test]
fn daemon_that_began_as_root_leaves_the_host() {
    if !geteuid().is_root() {
        eprintln!("skipped: it takes root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir, "direct", &[]).unwrap();
    check(daemon.pid(), 3, &[("CapBnd", "0000000000000000")]);
    for namespace in ["mnt", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&daemon.pid().to_string()), of("self"), "{namespace}");
    }
}

#[test]
fn daemon_becomes_the_user_and_takes_and_merges_snapshots_as_such() {
    if !geteuid().is_root() {
        eprintln!("skipped: it takes root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(daemon) = serve(&dir, "served", &["--user", "65534:65534"]) else { return };
    let all = "65534 65534 65534 65534";
    check(daemon.pid(), 7, &[("Uid", all), ("Gid", all), ("Groups", "")]);
    check(daemon.pid(), 7, &CONFINED);
    // Of what can't be dumped it is root's.
    let memory = fs::metadata(format!("/proc/{}/mem", daemon.pid())).unwrap();
    assert_eq!(memory.uid(), 0);
    let control = dir.path().join("control");
    for socket in [&control, daemon.socket()] {
        let metadata = fs::metadata(socket).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (SOMEBODY, SOMEBODY), "{socket:?}");
    }

    let ask = |args: &[&Path]| {
        let mut command = Command::new(DAEMON);
        let output = command.args(args).arg("--control").arg(&control).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let cow = dir.path().join("cow");
    assert_eq!(ask(&["snapshot".as_ref(), &cow]), (true, String::new()));
    assert_eq!(fs::metadata(&cow).unwrap().uid(), SOMEBODY);
    assert_eq!(ask(&["merge".as_ref()]), (true, String::new()));
    assert!(!cow.exists());

    // Where it may write, and isn't to.
    let elsewhere = tempfile::tempdir().unwrap();
    chown(&elsewhere, Some(SOMEBODY), None).unwrap();
    let (taken, said) = ask(&["snapshot".as_ref(), &elsewhere.path().join("cow")]);
    assert!(!taken && said.contains("--allow-dir"), "{said}");
}

/// What a socket replaces, while the daemon binds it, is whatever the owner of its directory likes.
#[test]
fn file_in_the_place_of_a_socket_that_is_bound_stays_its_owners() {
    if !geteuid().is_root() {
        eprintln!("skipped: it takes root");
        return;
    }
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let (secret, control) = (dir.path().join("secret"), dir.path().join("control"));
        fs::write(&secret, "root's").unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let is_bound = || fs::symlink_metadata(&control).is_ok();
                while !is_bound() && !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                fs::rename(&secret, &control).unwrap();
            });
            let daemon = serve(&dir, "direct", &["--user", "65534:65534"]);
            ended.store(true, Ordering::Relaxed);
            assert!(daemon.is_some());
        });
        let metadata = fs::symlink_metadata(&control).unwrap();
        assert!(metadata.is_file());
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
    }
}

#[test]
fn snapshots_are_made_in_a_directory_that_is_allowed() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let allowed = elsewhere.path().to_str().unwrap();
    let Some(_daemon) = serve(&dir, "served", &["--allow-dir", allowed]) else { return };
    let control = dir.path().join("control");
    let mut command = Command::new(DAEMON);
    let command = command.arg("snapshot").arg(elsewhere.path().join("cow"));
    assert!(command.arg("--control").arg(control).output().unwrap().status.success());
}
