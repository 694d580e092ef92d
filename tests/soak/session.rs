// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A QEMU on a device, from its start to its end.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_harness::{Lab, Random, Vm, patience};
use tempfile::TempDir;

use crate::device::Device;
use crate::event::Event;
use crate::filesystem::Filesystem;
use crate::progress::Progress;

const ID: &str = "pmem";
const LIFE: &str = include_str!("guest.sh");
/// What a script that SIGTERM ends returns.
const TERMINATED: i32 = 128 + 15;
/// A session takes about a minute, and much longer where the machine is busy.
const LIMIT: Duration = Duration::from_secs(600);
/// How long QEMU may take to map the pages, on a quiet machine.
const MAPPED: Duration = Duration::from_secs(9);

pub(crate) struct Session<'a> {
    device: &'a mut Device,
    progress: &'a Progress,
    /// There until its end.
    vm: Option<Vm>,
    orders: UnixStream,
    _dir: TempDir,
}

impl<'a> Session<'a> {
    /// Boots a guest that finds all that was synced, and syncs more for ever.
    pub(crate) fn boot(lab: &Lab, device: &'a mut Device, progress: &'a Progress) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let orders = dir.path().join("orders");
        let chardev = format!("socket,id=orders,path={},server=on,wait=off", orders.display());
        let mut vm = lab.vm();
        if device.filesystem == Filesystem::Xfs {
            vm = vm.module("xfs");
        }
        // One a second.
        let attempts = patience(MAPPED).as_secs();
        let life = format!("ATTEMPTS={attempts}\n{LIFE}");
        let vm = vm
            .pluggable_vhost_user_pmem(ID, device.daemon.socket())
            .qemu_args(["-chardev", &chardev, "-serial", "chardev:orders"])
            .allow_reboot()
            .time_limit(LIMIT)
            .script(&device.filesystem.script(&life))
            .on_line(device.listener())
            .boot()
            .unwrap();
        vm.wait_for("MARK boot").unwrap();
        let orders = UnixStream::connect(orders).unwrap();
        Self { device, progress, vm: Some(vm), orders, _dir: dir }
    }

    /// Has `event` happen, after which the session is over or its guest has found all it has synced.
    pub(crate) fn happen(&mut self, event: Event, random: &mut Random) {
        match event {
            Event::Reboot => {
                self.order("reboot");
                self.wait_for("MARK reboots");
                self.wait_for("MARK boot");
            }
            Event::Reset => {
                self.at_any_moment(random);
                self.vm().system_reset().unwrap();
                self.wait_for("MARK boot");
            }
            Event::Flood => {
                self.order("flood");
                self.wait_for("MARK flooding");
            }
            Event::Replug => self.replug(),
            Event::PowerOff => {
                self.wait_for("MARK synced");
                self.at_any_moment(random);
                self.power_off();
            }
            Event::Kill => {
                self.at_any_moment(random);
                self.kill();
            }
        }
        let intact = self.device.intact();
        self.progress.happened(event, self.device.name, &intact);
    }

    /// Has the guest unmount the device, and ends it.
    pub(crate) fn end_in_order(mut self) {
        self.order("end");
        let vm = self.vm.take().expect("a session that isn't over");
        vm.wait().unwrap().expect_success().unwrap();
        self.device.wait_until_free();
        drop(self.device.intact());
    }

    fn vm(&self) -> &Vm {
        self.vm.as_ref().expect("a session that isn't over")
    }

    fn wait_for(&self, line: &str) {
        self.vm().wait_for(line).unwrap();
    }

    /// Tells the guest, which has checked everything and is at work.
    fn order(&mut self, order: &str) {
        self.wait_for("MARK synced");
        writeln!(self.orders, "{order}").unwrap();
    }

    /// Waits until the guest boots, checks, or is at work: the last event didn't.
    fn at_any_moment(&self, random: &mut Random) {
        if !random.one_in(3) {
            self.wait_for("MARK synced");
        }
        std::thread::sleep(Duration::from_millis(random.below(1500)));
    }

    fn replug(&mut self) {
        self.order("replug");
        self.wait_for("MARK unmounted");
        let vm = self.vm();
        vm.unplug(ID).unwrap();
        vm.remove_chardev(ID).unwrap();
        self.device.wait_until_free();
        let vm = self.vm();
        vm.add_chardev(ID, self.device.daemon.socket()).unwrap();
        vm.plug_vhost_user_pmem(ID).unwrap();
        self.wait_for("MARK checked");
    }

    /// Presses the power button, which ends the script where it is.
    fn power_off(&mut self) {
        let vm = self.vm.take().expect("a session that isn't over");
        vm.system_powerdown().unwrap();
        let outcome = vm.wait().unwrap();
        if outcome.script_status != Some(TERMINATED) || !outcome.qemu_status.success() {
            outcome.expect_success().unwrap();
            panic!("the guest's script ended before it was told to");
        }
        self.device.wait_until_free();
    }

    fn kill(&mut self) {
        let vm = self.vm.take().expect("a session that isn't over");
        let serial = vm.kill().unwrap().serial;
        assert!(!serial.contains("MARK done"), "the guest failed:\n{serial}");
        self.device.wait_until_free();
    }
}
