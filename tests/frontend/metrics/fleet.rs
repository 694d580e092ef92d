// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metrics of a fleet, with devices that are down.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_harness::patience;
use rustix::process::{Pid, Signal, kill_process};

use super::scrape::Metrics;
use super::{assert_same, status};
use crate::fleet::{Fleet, device, is_good};

/// A fleet of `a`, `b` and `c`; the last one has no file.
fn fleet() -> Fleet {
    let missing = "socket-path = 'c.sock'\nfile = 'c.img'".to_owned();
    let devices = BTreeMap::from([device("a"), device("b"), ("c".to_owned(), missing)]);
    let fleet = Fleet::start_with("metrics = 'unix:metrics'", &devices);
    fleet.wait_until(|line| is_good(line) || line.contains("; started again in"));
    fleet
}

#[test]
fn fleet_tells_of_all_devices_and_of_itself() {
    let fleet = fleet();
    let (mut a, mut b) = (fleet.vmm("a"), fleet.vmm("b"));
    (0..3).for_each(|_| assert_eq!(a.driver.flush(), 0));
    (0..5).for_each(|_| assert_eq!(b.driver.flush(), 0));
    let metrics = Metrics::scrape(&fleet.path("metrics"));
    let up = |device: &str| metrics.value(&format!("vhost_pmem_up{{device=\"{device}\"}}"));
    assert_eq!(["a", "b", "c"].map(up), [1.0, 1.0, 0.0]);
    let done = |device: &str| {
        metrics.value(&format!("vhost_pmem_flushes_total{{device=\"{device}\",result=\"done\"}}"))
    };
    assert_eq!(["a", "b"].map(done), [3.0, 5.0]);
    assert!(!metrics.has("vhost_pmem_flushes_total{device=\"c\",result=\"done\"}"));
    for device in status(&fleet.path("control")).as_array().unwrap() {
        let name = device["name"].as_str().unwrap();
        if name != "c" {
            assert_same(device, &metrics);
        }
        let restarts = metrics.value(&format!("vhost_pmem_restarts_total{{device=\"{name}\"}}"));
        // One that can't be served is started again and again.
        let told = device["restarts"].as_f64().unwrap();
        assert!(restarts == told || name == "c" && restarts < told, "{name}: {restarts} {told}");
    }
    // The process that keeps the others is none of them.
    assert!(metrics.value("process_open_fds") >= 3.0);
    assert!(metrics.value("process_open_fds{device=\"a\"}") >= 3.0);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(metrics.value(&format!("vhost_pmem_build_info{{version=\"{version}\"}}")), 1.0);

    // One that is killed comes again, and has done nothing yet.
    kill_process(fleet.processes()["a"], Signal::KILL).unwrap();
    drop(a);
    let deadline = Instant::now() + patience(Duration::from_secs(60));
    let metrics = loop {
        let metrics = Metrics::scrape(&fleet.path("metrics"));
        if metrics.value("vhost_pmem_restarts_total{device=\"a\"}") == 1.0
            && metrics.value("vhost_pmem_up{device=\"a\"}") == 1.0
        {
            break metrics;
        }
        assert!(Instant::now() < deadline, "{metrics:#?}");
    };
    let done = "vhost_pmem_flushes_total{device=\"a\",result=\"done\"}";
    assert_eq!(metrics.value(done), 0.0);
}

#[test]
fn device_that_hangs_is_down_and_the_others_are_told_of() {
    let fleet = fleet();
    let stopped = fleet.processes()["b"];
    kill_process(stopped, Signal::STOP).unwrap();
    let metrics = Metrics::scrape(&fleet.path("metrics"));
    let (list, _) = fleet.ask(&["list"]);
    kill_process(stopped, Signal::CONT).unwrap();
    let up = |device: &str| metrics.value(&format!("vhost_pmem_up{{device=\"{device}\"}}"));
    assert_eq!(["a", "b"].map(up), [1.0, 0.0]);
    assert!(list.contains("not answering for"), "{list}");
    fleet.wait_until(|line| is_good(line) || line.starts_with("c "));
}

#[test]
fn clients_that_wait_for_a_device_that_hangs_are_only_so_many() {
    let fleet = fleet();
    let stopped = fleet.processes()["b"];
    kill_process(stopped, Signal::STOP).unwrap();
    let threads = |of: &str| {
        let tasks = fs::read_dir(format!("/proc/{}/task", fleet.child.id())).unwrap().flatten();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        tasks.filter_map(|task| name(task).ok()).filter(|name| name.trim_end() == of).count()
    };
    let ask = |_| {
        let mut stream = UnixStream::connect(fleet.path("metrics")).unwrap();
        // One that is not wanted any more is closed.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        stream
    };
    let _clients: Vec<_> = (0..150).map(ask).collect();
    let most = (0..50).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        [threads("scrape"), threads("relay")]
    });
    let most = most.reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])]).unwrap();
    // And each device is asked once, not for each of them.
    assert!((20..=64).contains(&most[0]) && most[1] <= 3, "{most:?} threads");
    kill_process(stopped, Signal::CONT).unwrap();
    let deadline = Instant::now() + patience(Duration::from_secs(60));
    while threads("scrape") > 0 {
        assert!(Instant::now() < deadline, "they are there still");
        std::thread::sleep(Duration::from_millis(10));
    }
    Metrics::scrape(&fleet.path("metrics"));
}

#[test]
fn place_of_metrics_is_the_same_until_the_fleet_is_started_anew() {
    let fleet = fleet();
    let config = fs::read_to_string(fleet.path("config")).unwrap();
    let moved = config.replace("unix:metrics", "unix:elsewhere");
    fs::write(fleet.path("config"), moved).unwrap();
    let (_, said) = fleet.ask(&["reload"]);
    assert!(said.contains("metrics can't be had elsewhere while it runs"), "{said}");
    assert!(Metrics::scrape(&fleet.path("metrics")).has("vhost_pmem_up{device=\"a\"}"));
    let mut fleet = fleet;
    kill_process(Pid::from_child(&fleet.child), Signal::TERM).unwrap();
    fleet.child.wait().unwrap();
    assert!(!fleet.path("metrics").exists());
}
