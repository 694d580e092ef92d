// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many devices from one configuration file, each with a frontend of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_harness::{Held, patience};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon, and the place of its devices' files.
pub(crate) struct Fleet {
    dir: TempDir,
    pub(crate) child: Child,
}

impl Fleet {
    /// Starts it with `devices`, by name, each a TOML table without its head.
    fn start(devices: &BTreeMap<String, String>) -> Self {
        Self::start_with("", devices)
    }

    /// The same, with keys that are no device's.
    pub(crate) fn start_with(keys: &str, devices: &BTreeMap<String, String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_config(&dir, devices);
        let config = dir.path().join("config");
        fs::write(&config, format!("{keys}\n{}", fs::read_to_string(&config).unwrap())).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(DAEMON)
            .current_dir(&dir)
            .args(["--config", "config", "--control", "control"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// Has it carry out a command; what it prints, and what it says is wrong.
    pub(crate) fn ask(&self, args: &[&str]) -> (String, String) {
        let command = &mut Command::new(DAEMON);
        let command = command.current_dir(&self.dir).args(args).args(["--control", "control"]);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    }

    /// The line of `list` for each device, once `is_so` for all of them.
    #[track_caller]
    pub(crate) fn wait_until(&self, is_so: impl Fn(&str) -> bool) -> Vec<String> {
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            let (list, _) = self.ask(&["list"]);
            let lines: Vec<_> = list.lines().skip(1).map(str::to_owned).collect();
            if !lines.is_empty() && lines.iter().all(|line| is_so(line)) {
                return lines;
            }
            assert!(Instant::now() < deadline, "{list}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn vmm(&self, device: &str) -> Vmm {
        Vmm::start(&self.path(&format!("{device}.sock")), Abilities::default())
    }

    /// The process of each device.
    pub(crate) fn processes(&self) -> BTreeMap<String, Pid> {
        let log = self.log();
        let started = log.lines().filter(|line| line.contains(" started device="));
        let word = |line: &str, key| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            word.unwrap_or_else(|| panic!("no {key} in {line}")).trim_matches('"').to_owned()
        };
        let pid = |line| Pid::from_raw(word(line, "pid=").parse().unwrap()).unwrap();
        // The last start is what counts.
        started.map(|line| (word(line, "device="), pid(line))).collect()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(dir: &TempDir, devices: &BTreeMap<String, String>) {
    let table = |(name, keys): (&String, &String)| format!("[device.{name}]\n{keys}\n");
    fs::write(dir.path().join("config"), devices.iter().map(table).collect::<String>()).unwrap();
}

pub(crate) fn device(name: &str) -> (String, String) {
    let keys = format!("socket-path = '{name}.sock'\nfile = '{name}.img'\nsize = '1M'");
    (name.to_owned(), keys)
}

pub(crate) fn is_good(line: &str) -> bool {
    line.ends_with("good")
}

#[test]
fn fleet_of_64_devices_outlives_what_befalls_one() {
    let names: Vec<_> = (0..64).map(|number| format!("vm{number}")).collect();
    let mut devices: BTreeMap<_, _> = names.iter().map(|name| device(name)).collect();
    let began = Instant::now();
    let fleet = Fleet::start(&devices);
    assert_eq!(fleet.wait_until(is_good).len(), 64);
    println!("64 devices are served after {:?}", began.elapsed());
    let before = fleet.processes();
    let shares = before.values().copied().chain([Pid::from_child(&fleet.child)]).map(share);
    let each = shares.sum::<u64>() / 64;
    println!("each takes {each} KiB of memory");
    // Half as much in a release build.
    assert!(each < 3 * 512, "{each} KiB");

    let mut vmms: BTreeMap<_, _> =
        names.iter().map(|name| (name.clone(), fleet.vmm(name))).collect();
    let flush = |vmms: &mut BTreeMap<String, Vmm>, byte| {
        for (name, vmm) in vmms {
            vmm.store(0, &[byte]);
            assert_eq!(vmm.driver.flush(), 0, "{name}");
            assert_eq!(fs::read(fleet.path(&format!("{name}.img"))).unwrap()[0], byte);
        }
    };
    flush(&mut vmms, 1);

    // A frontend goes.
    drop(vmms.remove("vm3").unwrap());
    // A store fails.
    let mut failed = vmms.remove("vm5").unwrap();
    File::options().write(true).open(fleet.path("vm5.img")).unwrap().set_len(4096).unwrap();
    assert_eq!(failed.driver.flush(), -1);
    assert!(fleet.ask(&["status", "--device", "vm5"]).0.contains("vm5.img: failed a sync"));
    // A process is killed, and comes again.
    let killed = vmms.remove("vm7").unwrap();
    kill_process(before["vm7"], Signal::KILL).unwrap();
    flush(&mut vmms, 2);
    drop(killed);
    let is_as_expected = |line: &str| is_good(line) || line.starts_with("vm5 ");
    fleet.wait_until(is_as_expected);
    assert_eq!(fleet.vmm("vm7").driver.flush(), 0);

    // Another configuration.
    devices.remove("vm9");
    let gone = vmms.remove("vm9").unwrap();
    devices.insert("vm11".to_owned(), device("vm11").1 + "\nmax-syncs = 1000");
    let changed = vmms.remove("vm11").unwrap();
    devices.extend([device("new")]);
    write_config(&fleet.dir, &devices);
    fleet.ask(&["reload"]);
    let lines = fleet.wait_until(is_as_expected);
    drop((gone, changed));
    assert_eq!(lines.len(), 64);
    assert!(!fleet.path("vm9.sock").exists());
    for name in ["new", "vm11"] {
        assert_eq!(fleet.vmm(name).driver.flush(), 0);
    }
    flush(&mut vmms, 3);
    let after = fleet.processes();
    let touched: Vec<_> = names.iter().filter(|name| before[*name] != after[*name]).collect();
    assert_eq!(touched, ["vm7", "vm11"], "the others' processes are the same");
}

#[test]
fn device_that_cannot_be_served_is_tried_again_and_holds_up_no_other() {
    let missing = "socket-path = 'b.sock'\nfile = 'b.img'".to_owned();
    let devices = BTreeMap::from([device("a"), ("b".to_owned(), missing)]);
    let fleet = Fleet::start(&devices);
    let is_settled = |line: &str| {
        is_good(line)
            || line.contains("b.img: no such file; give --size SIZE to create it; started again in")
    };
    let lines = fleet.wait_until(is_settled);
    assert!(lines[0].starts_with("a ") && is_good(&lines[0]), "{lines:?}");
    assert_eq!(fleet.vmm("a").driver.flush(), 0);
    assert!(
        fleet.log().contains("vhost-pmemd: cannot serve b.img: no such file"),
        "{}",
        fleet.log()
    );
    assert!(
        fleet
            .ask(&["resync", "--device", "b"])
            .1
            .contains("b ended: cannot serve b.img: no such file")
    );
    fs::write(fleet.path("b.img"), [0; 4096]).unwrap();
    fleet.wait_until(is_good);
    assert_eq!(fleet.vmm("b").driver.flush(), 0);
}

/// A process's memory in KiB, its share of what several have in common included where Linux tells:
/// of what is confined, root alone.
fn share(pid: Pid) -> u64 {
    let pid = pid.as_raw_nonzero().get();
    match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Held::by(pid.try_into().unwrap()).unwrap().kib
        }
        rollup => {
            let rollup = rollup.unwrap();
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
            pss.trim().strip_suffix(" kB").unwrap().parse().unwrap()
        }
    }
}

#[test]
fn fleet_is_ready_when_its_devices_are_and_a_reload_waits_for_new_ones() {
    // Its file is read first, in which time nobody is served.
    let slow = |name: &str| {
        let keys = format!(
            "socket-path = '{name}.sock'\nfile = '{name}.img'\nsize = '64M'\nprefetch = true"
        );
        (name.to_owned(), keys)
    };
    let mut devices = BTreeMap::from([slow("a"), device("b")]);
    let fleet = Fleet::start(&devices);
    fleet.wait_until(is_good);
    let deadline = Instant::now() + patience(PATIENCE);
    while !fleet.log().contains("all devices that can be are served") {
        assert!(Instant::now() < deadline, "{}", fleet.log());
    }
    let log = fleet.log();
    let (before, _) = log.split_once("all devices that can be are served").unwrap();
    assert_eq!(before.matches("waiting for a frontend").count(), 2, "{log}");

    devices.extend([slow("c")]);
    devices.remove("b");
    write_config(&fleet.dir, &devices);
    let (reloaded, said) = fleet.ask(&["reload", "--json"]);
    let reloaded: serde_json::Value = serde_json::from_str(&reloaded).expect(&said);
    let states: Vec<_> = reloaded.as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["served", "served"], "{reloaded}");
}

#[test]
fn configuration_that_is_wrong_changes_nothing() {
    let fleet = Fleet::start(&BTreeMap::from([device("a"), device("b")]));
    fleet.wait_until(is_good);
    let before = fleet.processes();
    let mut vmm = fleet.vmm("a");
    fs::write(fleet.path("config"), "[device.a]\nsocket = 'x'").unwrap();
    let (_, said) = fleet.ask(&["reload"]);
    assert!(said.contains("config:2:1: device a: unknown key \"socket\"; there are"), "{said}");
    assert_eq!(vmm.driver.flush(), 0);
    // One that is right, read because of a signal.
    write_config(&fleet.dir, &BTreeMap::from([device("a")]));
    fleet.signal(Signal::HUP);
    // Who sends it by name sends it to all.
    rustix::process::kill_process(before["a"], Signal::HUP).unwrap();
    let deadline = Instant::now() + patience(PATIENCE);
    while fleet.ask(&["list"]).0.lines().count() > 2 {
        assert!(Instant::now() < deadline, "{}", fleet.log());
    }
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(fleet.processes()["a"], before["a"]);
}

#[test]
fn command_for_one_of_several_says_which() {
    let fleet = Fleet::start(&BTreeMap::from([device("a"), device("b")]));
    fleet.wait_until(is_good);
    let refused = |args: &[&str], expected: &str| {
        let (_, said) = fleet.ask(args);
        assert_eq!(said, format!("vhost-pmemd: the daemon refuses: {expected}\n"), "{args:?}");
    };
    refused(&["resync"], "which one? Give --device; there are a, b");
    refused(&["resync", "--device", "c"], "there is no such device; there are a, b");
    refused(&["resync", "--device", "a"], "there is no mirror");
    refused(&["reload", "--device", "a"], "all devices are reloaded, or none");
}

#[test]
fn signal_ends_all_and_takes_their_sockets_away() {
    let mut fleet = Fleet::start(&BTreeMap::from([device("a"), device("b")]));
    fleet.wait_until(is_good);
    let mut vmm = fleet.vmm("a");
    assert_eq!(vmm.driver.flush(), 0);
    let processes = fleet.processes();
    fleet.signal(Signal::TERM);
    assert!(fleet.child.wait().unwrap().success());
    for (name, pid) in processes {
        assert!(!fleet.path(&format!("{name}.sock")).exists());
        assert!(rustix::process::test_kill_process(pid).is_err(), "{name} is there still");
    }
}

#[test]
fn device_that_hangs_holds_up_neither_the_status_nor_the_end_of_the_others() {
    let mut fleet = Fleet::start(&BTreeMap::from([device("a"), device("b")]));
    fleet.wait_until(is_good);
    let hung = fleet.processes()["b"];
    kill_process(hung, Signal::STOP).unwrap();
    let (list, said) = fleet.ask(&["list"]);
    let lines: Vec<_> = list.lines().skip(1).collect();
    assert!(is_good(lines[0]) && lines[1].contains("not answering for"), "{list} {said}");
    let (_, said) = fleet.ask(&["resync", "--device", "b"]);
    assert!(said.contains("b is not answering for"), "{said}");
    assert_eq!(fleet.vmm("a").driver.flush(), 0);

    // One that is stopped doesn't see that it is to end. The second signal is for those in a hurry.
    fleet.signal(Signal::TERM);
    let deadline = Instant::now() + patience(PATIENCE);
    while !fleet.log().contains("INFO ending") {
        assert!(Instant::now() < deadline, "{}", fleet.log());
    }
    fleet.signal(Signal::TERM);
    assert!(fleet.child.wait().unwrap().success());
    assert!(fleet.log().contains("does not end in time; killed device=\"b\""), "{}", fleet.log());
}

#[test]
fn devices_end_with_the_process_that_keeps_them() {
    let mut fleet = Fleet::start(&BTreeMap::from([device("a")]));
    fleet.wait_until(is_good);
    let pid = fleet.processes()["a"];
    fleet.signal(Signal::KILL);
    fleet.child.wait().unwrap();
    let deadline = Instant::now() + patience(PATIENCE);
    while rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid) {
        assert!(Instant::now() < deadline, "it is there still");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!fleet.path("a.sock").exists());
}

/// Whether nobody has collected it: the machine's first process need not.
fn is_zombie(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    status.is_ok_and(|status| status.contains("State:\tZ"))
}
