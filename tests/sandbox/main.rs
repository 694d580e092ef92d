// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sandbox from inside: each role tries what it must not be able to, in a process that has entered
//! it as the daemon's threads do; and the daemon from outside, as the kernel describes it.

mod attempt;
mod daemon;
mod processes;
#[allow(dead_code, unused_imports, reason = "the daemon's own, of which it uses more")]
#[path = "../../src/sandbox/mod.rs"]
mod sandbox;
#[path = "../../src/user.rs"]
mod user;

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use self::attempt::{ATTEMPTS, Outcome};
use self::sandbox::{Options, Role, Sandbox, Violation};

const ROLES: [Role; 9] = [
    Role::Device,
    Role::Worker,
    Role::Layers,
    Role::Relay,
    Role::Operator,
    Role::Metrics,
    Role::Signals,
    Role::Resync,
    Role::Fleet,
];

/// What the child that tries something is told by.
const TRY: &str = "SANDBOX_TRY";

/// The child's part: enters the sandbox, tries one thing, and ends as that went.
#[test]
#[ignore = "run by the other tests"]
fn child() {
    let line = std::env::var(TRY).unwrap();
    let [role, violation, name, dir]: [&str; 4] =
        line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let role = ROLES[role.parse::<usize>().unwrap()];
    let (_, try_it) = ATTEMPTS.iter().find(|(known, _)| *known == name).unwrap();
    let violation = match violation {
        "kill" => Some(Violation::Kill),
        "log" => Some(Violation::Log),
        _ => None,
    };
    let dir = Path::new(dir);
    let mut sandbox = Sandbox::new(Options { violation, ..Options::default() });
    sandbox.allow(&dir.join("files")).unwrap();
    let prepared = attempt::Prepared::new(dir);
    sandbox.leave_the_host();
    sandbox.enter(role);
    std::process::exit(match try_it(&prepared) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    });
}

/// How `role` fares with the attempt `name`.
#[track_caller]
fn outcome(role: Role, violation: &str, name: &str) -> Outcome {
    outcome_with(role, violation, name, &[])
}

#[track_caller]
fn outcome_with(role: Role, violation: &str, name: &str, env: &[(&str, String)]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let address = SocketAddr::from_abstract_name(dir.path().as_os_str().as_bytes()).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    for made in ["files", "outside"] {
        fs::create_dir(dir.path().join(made)).unwrap();
        fs::write(dir.path().join(made).join("file"), b"x").unwrap();
    }
    let index = ROLES.iter().position(|one| *one == role).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(TRY, format!("{index} {violation} {name} {}", dir.path().display()))
        .env("RUST_BACKTRACE", "1")
        .envs(env.iter().map(|(key, value)| (key, value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) => Outcome::Done,
        (Some(errno), _) => Outcome::Refused(errno),
        (None, Some(libc::SIGSYS)) => {
            assert!(said.contains("the sandbox ends the process"), "{role:?} {name}: {said}");
            Outcome::Killed
        }
        other => panic!("{role:?} {name}: {other:?}: {said}"),
    }
}

#[test]
fn no_role_can_do_what_only_an_intruder_would() {
    let names = [
        "unix-socket",
        "inet-socket",
        "connect",
        "execute",
        "fork",
        "ptrace",
        "mount",
        "unshare",
        "become-root",
        "run-memory",
        "make-memory-runnable",
        "terminal",
        "signal-another",
        "signal-another-thread",
        "own-fd-by-another",
        "choose-signal-of-fd",
        "begin-signals-of-fd",
        "begin-signals-by-ioctl",
        "own-fd-by-ioctl",
        "lease",
        "limit-of-another",
        "set-limit",
        "filter-socket",
        "send-to-another",
        "thread-in-namespace",
        "dump-memory",
        "io-uring",
        "chmod",
        "rename",
    ];
    for role in ROLES {
        for name in names {
            assert_eq!(outcome(role, "kill", name), Outcome::Killed, "{role:?} {name}");
        }
        assert_eq!(
            outcome(role, "kill", "read-outside"),
            Outcome::Refused(libc::EACCES),
            "{role:?} read-outside"
        );
    }
}

#[test]
fn every_role_can_do_what_any_program_does() {
    for role in ROLES {
        for name in ["thread", "allocate", "panic", "log", "fd-flags", "send-to-peer"] {
            assert_eq!(outcome(role, "kill", name), Outcome::Done, "{role:?} {name}");
        }
    }
}

#[test]
fn roles_have_what_is_theirs_and_no_more() {
    use Outcome::{Done, Killed, Refused};
    const ACCES: Outcome = Refused(libc::EACCES);
    // In the order of the roles.
    let table = [
        ("make-file", [ACCES, ACCES, Done, ACCES, Done, ACCES, ACCES, ACCES, ACCES]),
        ("remove-file", [Killed, Killed, Done, Killed, Done, Killed, Killed, Killed, Killed]),
        ("remove-outside", [Killed, Killed, ACCES, Killed, ACCES, Killed, Killed, Killed, Killed]),
        ("socket-pair", [Killed, Killed, Killed, Killed, Killed, Killed, Killed, Killed, Done]),
        ("sync", [Done, Done, Done, Killed, Done, Done, Done, Done, Killed]),
        ("read-limit", [Killed, Killed, Killed, Killed, Done, Done, Killed, Killed, Done]),
        ("listen", [Killed; 9]),
    ];
    for (name, expected) in table {
        for (role, expected) in ROLES.into_iter().zip(expected) {
            assert_eq!(outcome(role, "kill", name), expected, "{role:?} {name}");
        }
    }
}

/// What one part lets pass the others still stop.
#[test]
fn files_and_rights_are_gone_without_a_filter_too() {
    for role in [Role::Device, Role::Operator] {
        for name in ["read-outside", "remove-outside", "tcp-connect"] {
            let refused = Outcome::Refused(libc::EACCES);
            assert_eq!(outcome(role, "none", name), refused, "{role:?} {name}");
        }
        let refused = Outcome::Refused(libc::EPERM);
        assert_eq!(outcome(role, "none", "mount"), refused, "{role:?}");
        assert_eq!(outcome(role, "none", "unshare"), refused, "{role:?}");
    }
}

/// Landlock's scopes, of Linux 6.12 and later.
#[test]
fn signals_and_abstract_sockets_are_out_of_reach_without_a_filter_too() {
    if attempt::landlock_version() < 6 {
        eprintln!("skipped: this kernel's Landlock has no scopes");
        return;
    }
    for role in [Role::Device, Role::Operator] {
        let refused = Outcome::Refused(libc::EPERM);
        assert_eq!(outcome(role, "none", "signal-another"), refused, "{role:?}");
        // Of what the kernel would signal it is told, and the signal isn't sent.
        let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
        let env = [(attempt::VICTIM, victim.id().to_string())];
        assert_eq!(outcome_with(role, "none", "kill-by-fd", &env), Outcome::Done, "{role:?}");
        kill_process(Pid::from_child(&victim), Signal::TERM).unwrap();
        assert_eq!(victim.wait().unwrap().signal(), Some(libc::SIGTERM), "{role:?}");
        assert_ne!(outcome(role, "none", "abstract-socket"), Outcome::Done, "{role:?}");
    }
}

#[test]
fn violation_that_is_but_logged_passes() {
    assert_eq!(outcome(Role::Relay, "log", "sync"), Outcome::Done);
    assert_eq!(outcome(Role::Relay, "log", "unix-socket"), Outcome::Done);
}
