// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon counts: a known number of things is done, and `status --json` and the metrics
//! must both tell it, figure by figure.

mod documents;
mod fleet;
mod guest;
mod http;
mod placement;
pub(crate) mod scrape;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};
use serde_json::Value;
use tempfile::TempDir;

use self::scrape::Metrics;
use crate::driver::{BUFFERS, NEXT, WRITE};
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a daemon is asked.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new file of `size` bytes.
    fn file(&self, name: &str, size: u64) -> PathBuf {
        File::create(self.path(name)).unwrap().set_len(size).unwrap();
        self.path(name)
    }

    /// A daemon that can be asked; none where it needs FUSE and there is none.
    fn serve(&self, args: &[&OsStr]) -> Option<Daemon> {
        let control = self.path("control");
        let metrics = format!("unix:{}", self.path("metrics").display());
        let more = ["--name", "vm", "--metrics", &metrics, "--control"].map(AsRef::as_ref);
        let args = args.iter().copied().chain(more).chain([control.as_os_str()]);
        Daemon::start_served(DAEMON, args).unwrap()
    }

    fn scrape(&self) -> Metrics {
        Metrics::scrape(&self.path("metrics"))
    }

    /// Its status, once `is_so`, and its metrics at that time.
    #[track_caller]
    fn both_when(&self, is_so: impl Fn(&Value) -> bool) -> (Value, Metrics) {
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            let (status, metrics) = (self.status(), self.scrape());
            if is_so(&status) && measured(&status) == measured(&self.status()) {
                return (status, metrics);
            }
            assert!(Instant::now() < deadline, "{status:#}");
        }
    }

    fn status(&self) -> Value {
        status(&self.path("control")).as_array().unwrap()[0].clone()
    }
}

/// What a command shows to people.
fn shown(place: &Place, command: &str) -> String {
    let mut ask = Command::new(DAEMON);
    ask.args([command, "--control"]).arg(place.path("control"));
    String::from_utf8(ask.output().unwrap().stdout).unwrap()
}

/// All devices' status.
pub(crate) fn status(control: &Path) -> Value {
    let mut command = Command::new(DAEMON);
    let output = command.args(["status", "--json", "--control"]).arg(control).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A status without what is never the same twice.
fn measured(status: &Value) -> Value {
    let mut status = status.clone();
    status["process"] = Value::Null;
    status
}

/// Checks that the metrics of a device say what its status does, by where each figure stands in it.
#[track_caller]
fn assert_same(status: &Value, metrics: &Metrics) {
    let device = status["name"].as_str().unwrap();
    let labels = format!("device=\"{device}\"");
    let plain = [
        ("vhost_pmem_region_bytes", "/size"),
        ("vhost_pmem_mapped_bytes", "/mapped"),
        ("vhost_pmem_frontends_total", "/counters/frontends"),
        ("vhost_pmem_activations_total", "/counters/activations"),
        ("vhost_pmem_activation_errors_total", "/counters/activations_failed"),
        ("vhost_pmem_queue_errors_total", "/counters/queue_errors"),
        ("vhost_pmem_batches_limited_total", "/counters/batches_limited"),
        ("vhost_pmem_sync_errors_total", "/counters/sync_errors"),
        ("vhost_pmem_batch_requests_sum", "/counters/batches/sum"),
        ("process_max_fds", "/process/fds_max"),
    ];
    let figure = |at: &str| {
        let value = status.pointer(at).unwrap_or_else(|| panic!("no {at} in {status:#}"));
        value.as_f64().unwrap_or_else(|| panic!("{at}: {value}"))
    };
    for (name, at) in plain {
        assert_eq!(metrics.value(&format!("{name}{{{labels}}}")), figure(at), "{name}");
    }
    for (result, at) in [("done", "done"), ("failed", "failed"), ("unmapped", "unmapped")] {
        let sample = format!("vhost_pmem_flushes_total{{{labels},result=\"{result}\"}}");
        assert_eq!(metrics.value(&sample), figure(&format!("/counters/flushes/{at}")), "{sample}");
    }
    for (reason, at) in [("malformed", "malformed"), ("unknown_type", "unknown")] {
        let sample = format!("vhost_pmem_requests_refused_total{{{labels},reason=\"{reason}\"}}");
        assert_eq!(metrics.value(&sample), figure(&format!("/counters/refused/{at}")), "{sample}");
    }
    for reason in ["unshared", "no_room", "queue"] {
        let sample = format!("vhost_pmem_requests_waiting{{{labels},reason=\"{reason}\"}}");
        let is_it = status["waiting"]["cause"] == reason;
        let waiting = if is_it { figure("/waiting/requests") } else { 0.0 };
        assert_eq!(metrics.value(&sample), waiting, "{sample}");
    }
    for (name, at, unit) in [
        ("vhost_pmem_batch_requests", "batches", 1.0),
        ("vhost_pmem_sync_duration_seconds", "syncs", 1e9),
    ] {
        let of = &status["counters"][at];
        let mut all = 0.0;
        let counts = of["counts"].as_array().unwrap();
        let bounds = of["bounds"].as_array().unwrap();
        assert_eq!(bounds.len() + 1, counts.len());
        for (at, count) in counts.iter().enumerate() {
            all += count.as_f64().unwrap();
            let bound = bounds
                .get(at)
                .map_or("+Inf".to_owned(), |bound| (bound.as_f64().unwrap() / unit).to_string());
            let sample = format!("{name}_bucket{{{labels},le=\"{bound}\"}}");
            assert_eq!(metrics.value(&sample), all, "{sample}");
        }
        let sum = metrics.value(&format!("{name}_sum{{{labels}}}")) * unit;
        assert!((sum - of["sum"].as_f64().unwrap()).abs() < 1.0, "{name}: {sum}");
    }
    let frontend = f64::from(u8::from(status["frontend"].as_bool().unwrap()));
    assert_eq!(metrics.value(&format!("vhost_pmem_frontends{{{labels}}}")), frontend);
    let found = format!("vhost_pmem_window_found{{{labels}}}");
    match status["placement"]["state"].as_str() {
        None | Some("unknown") => assert!(!metrics.has(&found)),
        Some(state) => {
            assert_eq!(metrics.value(&found), f64::from(u8::from(state == "found")), "{state}");
        }
    }
    let window = status["window"].as_str().unwrap();
    assert_eq!(status["placement"].is_null(), !window.starts_with("gpa="), "{status:#}");
    assert!(metrics.has(&format!("vhost_pmem_device_info{{{labels},window=\"{window}\"}}")));
    let many = |name: &str, of: &str| {
        let count = status[of].as_array().unwrap().len();
        assert_eq!(metrics.value(&format!("{name}{{{labels}}}")), count as f64, "{name}");
    };
    many("vhost_pmem_failed_stores", "failures");
    many("vhost_pmem_snapshots", "layers");
    for cache in status["caches"].as_array().unwrap() {
        for kind in ["cached", "dirty", "writeback"] {
            let store = cache["store"].as_str().unwrap();
            let sample = format!("vhost_pmem_{kind}_bytes{{{labels},store=\"{store}\"}}");
            assert_eq!(metrics.value(&sample), cache[kind].as_f64().unwrap(), "{sample}");
        }
    }
    let cows = [("taken", "layers"), ("snapshot", "snapshots")];
    for (kind, cow) in cows
        .into_iter()
        .flat_map(|(kind, at)| status[at].as_array().unwrap().iter().map(move |cow| (kind, cow)))
    {
        for figure in ["used", "capacity"] {
            let name = cow["name"].as_str().unwrap();
            let sample =
                format!("vhost_pmem_cow_{figure}_bytes{{cow=\"{name}\",{labels},kind=\"{kind}\"}}");
            let bytes = cow[figure].as_f64().unwrap() * cow["chunk"].as_f64().unwrap();
            assert_eq!(metrics.value(&sample), bytes, "{sample}");
        }
    }
    for mirror in status["mirrors"].as_array().unwrap() {
        let labels = format!("{labels},mirror=\"{}\"", mirror["name"].as_str().unwrap());
        for (name, at) in [("regions", "regions"), ("stale_regions", "stale")] {
            let sample = format!("vhost_pmem_mirror_{name}{{{labels}}}");
            assert_eq!(metrics.value(&sample), mirror[at].as_f64().unwrap(), "{sample}");
        }
        for (leg, is) in mirror["legs"].as_array().unwrap().iter().enumerate() {
            for state in ["healthy", "recovering", "failed"] {
                let (device, mirror) = labels.split_once(',').unwrap();
                let sample = format!(
                    "vhost_pmem_mirror_leg{{{device},leg=\"{leg}\",{mirror},state=\"{state}\"}}"
                );
                assert_eq!(metrics.value(&sample), f64::from(u8::from(is == state)), "{sample}");
            }
        }
    }
    assert!(metrics.value(&format!("process_resident_memory_bytes{{{labels}}}")) > 4096.0);
    assert!(metrics.value(&format!("process_threads{{{labels}}}")) >= 3.0);
    let started = metrics.value(&format!("process_start_time_seconds{{{labels}}}"));
    assert_eq!(started * 1000.0, figure("/process/started_ms"));
}

/// Flushes are published together, and so taken together.
fn flush_batch(vmm: &mut Vmm, count: u64) {
    (1..=count).for_each(|slot| _ = vmm.driver.add_flush(slot));
    vmm.driver.publish();
    (0..count).for_each(|_| _ = vmm.driver.answer());
}

#[test]
fn what_was_done_is_told_figure_by_figure() {
    let place = Place::new();
    let file = place.file("pmem \"0\"", 1 << 20);
    let daemon = place.serve(&["--file".as_ref(), file.as_os_str()]).unwrap();
    let (status, metrics) = place.both_when(|_| true);
    assert_eq!(status["counters"]["syncs"]["sum"], 0);
    assert_same(&status, &metrics);

    // One that maps nothing.
    let mut vmm = Vmm::connect(daemon.socket(), Abilities::default());
    vmm.mapper.refuse.store(true, Ordering::SeqCst);
    vmm.activate();
    flush_batch(&mut vmm, 2);
    assert_eq!(place.status()["mapped"], 0);
    drop(vmm);
    daemon.wait_for_log("frontend left").unwrap();

    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), 0);
    }
    for count in [2, 5, 33] {
        flush_batch(&mut vmm, count);
    }
    let (request, response) = (BUFFERS + 0x800, BUFFERS + 0x900);
    vmm.driver.write_u32(request, 7);
    for len in [3, 4, 4] {
        vmm.driver.add(&[(request, len, NEXT, 1), (response, 4, WRITE, 0)]);
    }
    vmm.driver.publish();
    (0..3).for_each(|_| _ = vmm.driver.answer());
    let (status, metrics) = place.both_when(|status| status["frontend"] == true);
    assert_same(&status, &metrics);
    let counters = &status["counters"];
    assert_eq!(counters["flushes"], serde_json::json!({"done": 43, "failed": 0, "unmapped": 2}));
    assert_eq!(counters["refused"], serde_json::json!({"malformed": 1, "unknown": 2}));
    // Of 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096 and 32768, and more.
    let batches = serde_json::json!([3, 2, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        (&counters["batches"]["counts"], &counters["batches"]["sum"]),
        (&batches, &48.into())
    );
    assert_eq!(syncs(counters), 6);
    assert_eq!((&counters["frontends"], &counters["activations"]), (&2.into(), &1.into()));
    assert_eq!(
        (&counters["activations_failed"], &status["mapped"]),
        (&1.into(), &(1 << 20).into())
    );

    // The file's end is cut off: what was told to be durable isn't there any more.
    File::options().write(true).open(&file).unwrap().set_len(4096).unwrap();
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), -1);
    }
    let (status, metrics) = place.both_when(|_| true);
    assert_same(&status, &metrics);
    let counters = &status["counters"];
    assert_eq!(counters["flushes"], serde_json::json!({"done": 43, "failed": 3, "unmapped": 2}));
    assert_eq!((&counters["sync_errors"], syncs(counters)), (&1.into(), 7));
    assert_eq!(status["failures"].as_array().unwrap().len(), 1);
    assert!(guest::is_recent(&status["failures"][0]["since_ms"]), "{status:#}");
    drop(vmm);
    let (status, metrics) = place.both_when(|status| status["frontend"] == false);
    assert_same(&status, &metrics);
    assert_eq!(status["mapped"], 0);
}

fn syncs(counters: &Value) -> u64 {
    counters["syncs"]["counts"].as_array().unwrap().iter().map(|one| one.as_u64().unwrap()).sum()
}

#[test]
fn cached_and_dirty_pages_are_told() {
    // On a disk: what is in memory is never dirty.
    let place = Place(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    let file = place.file("pmem", 1 << 20);
    // With it no two pages are cached as one.
    let args = ["--prefetch".as_ref(), "--file".as_ref(), file.as_os_str()];
    let daemon = place.serve(&args).unwrap();
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let cache = |status: &Value| status["caches"][0].clone();
    if cache(&place.status()) == Value::Null {
        eprintln!("skipped: this kernel has no cachestat(2), or the filesystem can't be asked");
        return;
    }
    let pages = |status: &Value| {
        let [cached, dirty, writeback] =
            ["cached", "dirty", "writeback"].map(|kind| cache(status)[kind].as_u64().unwrap());
        (cached / 4096, (dirty + writeback) / 4096)
    };
    assert_eq!(pages(&place.status()), (256, 0));
    (0..7).for_each(|page| vmm.store(page * 4096, &[2; 4096]));
    let (status, metrics) = place.both_when(|_| true);
    // The kernel may write some before anyone asks it to.
    assert!(matches!(pages(&status), (256, 1..=7)), "{status:#}");
    assert_same(&status, &metrics);
    assert_eq!(vmm.driver.flush(), 0);
    assert_eq!(pages(&place.status()), (256, 0));
}

#[test]
fn overlay_and_snapshot_are_told_as_they_fill() {
    let place = Place::new();
    let (base, overlay) = (place.file("base", 1 << 20), place.path("overlay"));
    let args = ["--file".as_ref(), base.as_os_str(), "--overlay".as_ref(), overlay.as_os_str()];
    let Some(daemon) = place.serve(&args) else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    // Chunks are of 16 KiB.
    [0, 1 << 14, 5 << 14].into_iter().for_each(|at| vmm.store(at, &[1]));
    assert_eq!(vmm.driver.flush(), 0);
    let (status, metrics) = place.both_when(|_| true);
    assert_eq!((&status["snapshots"][0]["used"], &status["window"]), (&3.into(), &"served".into()));
    assert_same(&status, &metrics);
    let cow = place.path("taken");
    let mut command = Command::new(DAEMON);
    let command = command.arg("snapshot").arg(&cow).arg("--control").arg(place.path("control"));
    assert!(command.output().unwrap().status.success());
    vmm.store(7 << 14, &[1]);
    assert_eq!(vmm.driver.flush(), 0);
    let (status, metrics) = place.both_when(|_| true);
    let used = |at: &str| status[at][0]["used"].clone();
    assert_eq!((used("snapshots"), used("layers")), (3.into(), 1.into()));
    assert_same(&status, &metrics);
    assert_eq!(metrics.value("vhost_pmem_snapshots{device=\"vm\"}"), 1.0);
}

#[test]
fn leg_that_is_lost_is_told() {
    let place = Place::new();
    let (a, b) = (place.file("a", 1 << 20), place.file("b", 1 << 20));
    let (table, log) = (place.path("table"), place.file("log", 1 << 20));
    let [a, b, log] = [&a, &b, &log].map(|path| path.display());
    let line = format!("0 2048 mirror disk 2 {log} 128 2 {a} 0 {b} 0\n");
    fs::write(&table, line).unwrap();
    let Some(daemon) = place.serve(&["--table".as_ref(), table.as_os_str()]) else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let legs = |status: &Value| status["mirrors"][0]["legs"].clone();
    let whole = serde_json::json!(["healthy", "healthy"]);
    let (status, metrics) = place.both_when(|status| legs(status) == whole);
    assert_same(&status, &metrics);
    File::options().write(true).open(place.path("b")).unwrap().set_len(4096).unwrap();
    vmm.store(1 << 19, &[1]);
    assert_eq!(vmm.driver.flush(), 0);
    let lost = serde_json::json!(["healthy", "failed"]);
    let (status, metrics) = place.both_when(|status| legs(status) == lost);
    assert_same(&status, &metrics);
    assert!(status["mirrors"][0]["stale"].as_u64().unwrap() > 0, "{status:#}");
}

#[test]
fn batch_that_waits_for_its_turn_is_told() {
    let place = Place::new();
    let file = place.file("pmem", 1 << 20);
    let args = ["--max-syncs".as_ref(), "2".as_ref(), "--file".as_ref(), file.as_os_str()];
    let daemon = place.serve(&args).unwrap();
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    let limited = |status: &Value| status["counters"]["batches_limited"].as_u64().unwrap();
    // One that comes late, on a machine that is busy, need not wait.
    let mut flushes = 0;
    while limited(&place.status()) == 0 {
        assert!(flushes < 40, "no flush has waited");
        (0..3).for_each(|_| assert_eq!(vmm.driver.flush(), 0));
        flushes += 3;
    }
    let (status, metrics) = place.both_when(|_| true);
    // The first one found the bucket full.
    assert!(limited(&status) < flushes, "{status:#}");
    assert_same(&status, &metrics);
}
