// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask dashboard`: the dashboard for Grafana as a picture, with what Prometheus answers to its
//! own queries while a guest works.

mod panel;
mod picture;
mod prometheus;
mod unit;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_harness::{Lab, VmBuilder, patience, target_dir};

use self::panel::Dashboard;
use self::picture::Picture;
use self::prometheus::Prometheus;
use crate::process::{cargo, run as run_command};

const SOURCE: &str = "contrib/grafana/vhost-pmem.json";
const PICTURE: &str = "docs/dashboard.svg";
const MIB: u64 = 128;
const PATIENCE: Duration = Duration::from_secs(60);
/// Until Prometheus has seen what was done last, more than once.
const SEEN: Duration = Duration::from_secs(6);

/// A process that ends with this one.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn draw() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent")?;
    let dashboard = Dashboard::read(&root.join(SOURCE))?;
    run_command(&mut cargo(["build", "--quiet", "--package", "vhost-pmemd"]))?;
    let lab = Lab::open()?;
    let fleet = Fleet::start()?;
    let prometheus = Prometheus::start(&fleet.dir, fleet.port)?;
    let began = Instant::now();
    println!("a guest works, for a minute");
    work(&lab, &fleet)?;
    sleep(SEEN);
    let answers = dashboard.ask(&prometheus, began.elapsed())?;
    fs::write(root.join(PICTURE), Picture { dashboard: &dashboard, answers }.to_string())?;
    println!("{PICTURE} is drawn");
    Ok(())
}

/// Some devices, one of them not there.
struct Fleet {
    dir: PathBuf,
    port: u16,
    _process: Ends,
}

const CONFIG: &str = "
[device.web]
socket-path = 'web.sock'
file = 'web.img'

[device.db]
socket-path = 'db.sock'
file = 'base.img'
overlay = 'db.cow'

[device.mail]
socket-path = 'mail.sock'
table = 'mail.table'

[device.old]
socket-path = 'old.sock'
file = 'old.img'
";

impl Fleet {
    fn start() -> Result<Self> {
        let dir = target_dir().join("dashboard");
        // Of an earlier run, if any.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        for (name, len) in [("web.img", MIB << 20), ("base.img", MIB << 20)].into_iter().chain([
            ("one.img", MIB << 20),
            ("other.img", MIB << 20),
            ("mail.log", 8192),
        ]) {
            File::create(dir.join(name))?.set_len(len)?;
        }
        let sectors = (MIB << 20) / 512;
        let mirror = "mirror disk 3 mail.log 1024 nosync 2 one.img 0 other.img 0";
        fs::write(
            dir.join("mail.table"),
            format!("mail: 0 {sectors} {mirror}\n0 {sectors} linear mail 0\n"),
        )?;
        let port = prometheus::free_port()?;
        fs::write(dir.join("devices"), format!("metrics = '127.0.0.1:{port}'\n{CONFIG}"))?;
        let mut fleet = Command::new(program());
        fleet.current_dir(&dir).args(["--config", "devices", "--control", "control"]);
        let fleet = fleet.stdin(Stdio::null()).stderr(File::create(dir.join("log"))?).spawn()?;
        let fleet = Self { dir, port, _process: Ends(fleet) };
        fleet.wait_until_served()?;
        Ok(fleet)
    }

    fn wait_until_served(&self) -> Result<()> {
        let until = Instant::now() + patience(PATIENCE);
        let log = || fs::read_to_string(self.dir.join("log"));
        while !log()?.contains("all devices that can be are served") {
            ensure!(Instant::now() < until, "the daemon doesn't begin:\n{}", log()?);
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Has an operator do something.
    fn operate(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program());
        command.current_dir(&self.dir).args(arguments).args(["--control", "control"]);
        run_command(command.stdout(Stdio::null()))
    }
}

fn program() -> PathBuf {
    target_dir().join("debug/vhost-pmemd")
}

/// What the guest does: each device has a time of its own.
const SCRIPT: &str = "set -eu
    for disk in 0 1 2; do
        mkfs.ext4 -qF -b 4096 /dev/pmem$disk
        mkdir /mnt/$disk
        mount -o dax=always /dev/pmem$disk /mnt/$disk
    done
    now() { cut -d . -f 1 /proc/uptime; }
    work() {
        sleep $2
        end=$(($(now) + $3))
        at=0
        while [ $(now) -lt $end ]; do
            dd if=/dev/urandom of=/mnt/$1/file bs=16k count=4 seek=$at conv=notrunc,fsync status=none
            at=$(((at + 4) % 1024))
        done
    }
    echo MARK works
    work 0 0 45 &
    work 1 8 40 &
    work 2 14 30 &
    sleep 20
    echo MARK some
    sleep 12
    echo MARK more
    wait
    umount /mnt/*";

/// Has a guest work, while a snapshot is taken, and a mirror's leg fails and is mended.
fn work(lab: &Lab, fleet: &Fleet) -> Result<()> {
    let sockets = ["web.sock", "db.sock", "mail.sock"].map(|name| fleet.dir.join(name));
    let vm = sockets.iter().fold(lab.vm(), VmBuilder::vhost_user_pmem);
    let vm = vm.script(SCRIPT).boot()?;
    vm.wait_for("MARK some")?;
    fleet.operate(&["snapshot", "second.cow", "--device", "db"])?;
    let leg = File::options().write(true).open(fleet.dir.join("other.img"))?;
    leg.set_len(4096)?;
    vm.wait_for("MARK more")?;
    leg.set_len(MIB << 20)?;
    fleet.operate(&["resync", "--device", "mail"])?;
    let outcome = vm.wait()?;
    if outcome.script_status != Some(0) {
        bail!("the guest failed:\n{}", outcome.serial);
    }
    Ok(())
}
