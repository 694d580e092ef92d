// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM to be.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::accelerator::Accelerator;
use crate::cloud_hypervisor::CloudHypervisor;
use crate::console::OnLine;
use crate::initramfs;
use crate::kernel::{Kernel, KernelTree};
use crate::lab::Lab;
use crate::outcome::Outcome;
use crate::patience::patience;
use crate::vm::{Vm, VmFiles};

/// What a guest may do to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read it: any number of guests may have it at once.
    ReadOnly,
    /// Write to it as well.
    ReadWrite,
}

/// Describes a VM of one CPU and 512 MiB, which a vhost-user backend may share.
pub struct VmBuilder<'lab> {
    lab: &'lab Lab,
    kernel: Kernel,
    modules: Vec<String>,
    programs: Vec<String>,
    files: Vec<(PathBuf, String)>,
    script: String,
    memory_mib: u32,
    file_memory_mib: u32,
    unshared_memory_mib: u32,
    nodes: Vec<OsString>,
    cpus: u32,
    cpu: Option<&'static [&'static str]>,
    kernel_arguments: String,
    devices: Vec<OsString>,
    chardevs: usize,
    own_devices: usize,
    other_vmm: Option<CloudHypervisor>,
    reboots: bool,
    time_limit: Duration,
    on_line: Option<OnLine>,
}

impl<'lab> VmBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab) -> Self {
        Self {
            lab,
            kernel: Kernel::default(),
            modules: Vec::new(),
            programs: Vec::new(),
            files: Vec::new(),
            script: String::new(),
            memory_mib: 512,
            file_memory_mib: 0,
            unshared_memory_mib: 0,
            nodes: Vec::new(),
            cpus: 1,
            cpu: None,
            kernel_arguments: String::new(),
            devices: Vec::new(),
            chardevs: 0,
            own_devices: 0,
            other_vmm: None,
            reboots: false,
            time_limit: Duration::from_secs(120),
            on_line: None,
        }
    }

    /// Boots `kernel` instead of the default one; obtained at [`VmBuilder::boot`] if it is missing.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Loads the kernel module `name`, such as `xfs`, and what it needs before the script runs. The
    /// modules of virtio-pmem and ext4 are always loaded.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Gives the guest the program `name`, of the Debian package of that name, such as `fio`;
    /// obtained at [`VmBuilder::boot`] if it is missing.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        self.programs.push(name.to_owned());
        self
    }

    /// Gives the guest the host's file `path`, executable and with all it needs in itself, as `name`,
    /// such as `usr/bin/tool`.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, name: &str) -> Self {
        self.files.push((path.into(), name.to_owned()));
        self
    }

    /// Adds `argument` to the kernel's command line.
    #[must_use]
    pub fn kernel_argument(mut self, argument: &str) -> Self {
        self.kernel_arguments += &format!(" {argument}");
        self
    }

    /// Attaches the vhost-user backend that listens on `socket` as a pmem device, with the
    /// character device `c0`, `c1`, and so on.
    #[must_use]
    pub fn vhost_user_pmem(mut self, socket: impl AsRef<Path>) -> Self {
        let id = format!("c{}", self.chardevs);
        self.chardevs += 1;
        let mut chardev = OsString::from(format!("socket,id={id},path="));
        chardev.push(escaped(socket.as_ref()));
        let device = format!(
            "vhost-user-test-device-pci,virtio-id=27,num_vqs=1,config_size=16,chardev={id}"
        );
        self.qemu_args([OsStr::new("-chardev"), &chardev, "-device".as_ref(), device.as_ref()])
    }

    /// Attaches QEMU's own virtio-pmem device on the first `size` bytes of the file `path`.
    #[must_use]
    pub fn own_virtio_pmem(mut self, path: impl AsRef<Path>, size: u64) -> Self {
        let id = format!("pm{}", self.own_devices);
        self.own_devices += 1;
        let mut backend =
            OsString::from(format!("memory-backend-file,id={id},share=on,size={size},mem-path="));
        backend.push(escaped(path.as_ref()));
        let device = format!("virtio-pmem-pci,memdev={id}");
        self.qemu_args([OsStr::new("-object"), &backend, "-device".as_ref(), device.as_ref()])
    }

    /// Has the first `mib` MiB of the file `path` be memory of the guest, shared with the file, behind
    /// all that it has so far; the kernel leaves it alone. Of a guest with less than 2 GiB.
    #[must_use]
    pub fn file_memory(mut self, path: impl AsRef<Path>, mib: u32) -> Self {
        let start = self.memory_mib + self.file_memory_mib;
        let id = format!("fm{start}");
        self.file_memory_mib += mib;
        let mut backend =
            OsString::from(format!("memory-backend-file,id={id},share=on,size={mib}M,mem-path="));
        backend.push(escaped(path.as_ref()));
        let node = format!("node,memdev={id}");
        // Behind the node of the rest, which the command line has first.
        self.nodes.extend(["-object".into(), backend, "-numa".into(), node.into()]);
        self.kernel_argument(&format!("memmap={mib}M${:#x}", u64::from(start) << 20))
    }

    /// Gives the guest `mib` MiB more of memory, which vhost-user devices don't share: a NUMA node
    /// with a CPU of its own, the last one, which is offline until the script says otherwise. What
    /// runs there allocates there.
    #[must_use]
    pub fn unshared_memory(mut self, mib: u32) -> Self {
        self.unshared_memory_mib = mib;
        self.cpus += 1;
        let last = self.cpus - 1;
        self.kernel_argument(&format!("maxcpus={last}"))
    }

    /// Boots it under cloud-hypervisor, not QEMU. It has then that one's devices only, and no monitor.
    #[must_use]
    pub fn cloud_hypervisor(mut self, vmm: CloudHypervisor) -> Self {
        self.other_vmm = Some(vmm);
        self
    }

    /// Attaches the raw image `path` as a disk: `/dev/vda`, `/dev/vdb`, and so on. What the guest
    /// writes to it outlives QEMU, but not the host.
    #[must_use]
    pub fn disk(mut self, path: impl AsRef<Path>, access: Access) -> Self {
        let read_only = if access == Access::ReadOnly { "on" } else { "off" };
        let mut drive =
            OsString::from(format!("if=virtio,format=raw,cache=unsafe,readonly={read_only},file="));
        drive.push(escaped(path.as_ref()));
        if !self.modules.iter().any(|name| name == "virtio_blk") {
            self = self.module("virtio_blk");
        }
        self.qemu_args([OsStr::new("-drive"), &drive])
    }

    /// Gives the guest so much memory.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Gives the guest so many CPUs.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Gives it another CPU than the accelerator in use does, by these arguments of QEMU's.
    pub(crate) fn cpu(mut self, arguments: &'static [&'static str]) -> Self {
        self.cpu = Some(arguments);
        self
    }

    /// Adds arguments to QEMU's command line.
    #[must_use]
    pub fn qemu_args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.devices.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Lets the guest reboot, by itself or by [`Vm::system_reset`]; each boot runs the script.
    /// Without this QEMU exits instead.
    #[must_use]
    pub fn allow_reboot(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Kills the VM after this long, or later on a slow machine ([`patience`]); by default after 120
    /// seconds.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Calls `on_line` with each line the guest prints, as it comes, from a thread of the VM's.
    #[must_use]
    pub fn on_line(mut self, on_line: impl FnMut(&str) + Send + 'static) -> Self {
        self.on_line = Some(Box::new(on_line));
        self
    }

    /// What the guest runs, by dash, in `/tmp`; `/mnt` is there to mount on. The guest then powers
    /// off. [`Vm::system_powerdown`] sends SIGTERM to the script and its children.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        self.script = script.to_owned();
        self
    }

    /// Makes the initramfs's own script the kernel's first process, in place of `/init`.
    pub(crate) fn first_process(self, script: &str) -> Self {
        self.script(script).kernel_argument("rdinit=/script")
    }

    /// Starts the VM.
    ///
    /// # Errors
    ///
    /// When the kernel or a program can't be obtained, a file can't be read, the kernel has not the
    /// modules asked for, or QEMU can't be started.
    pub fn boot(self) -> Result<Vm> {
        let dir = tempfile::Builder::new().prefix("guest-").tempdir()?;
        let files = VmFiles::new(dir);
        let initramfs = files.path("initramfs");
        let kernel = self.write_initramfs(&initramfs)?;
        let accelerator = Accelerator::in_use()?;
        let limit = patience(self.time_limit);
        if let Some(vmm) = &self.other_vmm {
            let mut vmm = vmm.command(&kernel.image, &initramfs, self.memory_mib, self.cpus);
            vmm.arg("--cmdline").arg(self.kernel_command_line());
            return Vm::start(&vmm, files, limit, self.on_line);
        }
        let mut qemu = self.lab.qemu().command()?;
        self.machine(&mut qemu, accelerator);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
        qemu.arg("-append").arg(self.kernel_command_line());
        let mut monitor = OsString::from("unix:");
        monitor.push(escaped(&files.monitor()));
        monitor.push(",server=on,wait=off");
        qemu.arg("-qmp").arg(monitor);
        qemu.args(&self.devices);
        Vm::start(&qemu, files, limit, self.on_line)
    }

    /// Starts the VM and waits for its script to end well.
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::boot`], [`Vm::wait`] and [`Outcome::expect_success`].
    pub fn run(self) -> Result<Outcome> {
        self.boot()?.wait()?.expect_success()
    }

    /// Writes what it boots, for a VMM that somebody else starts: the files `kernel` and `initramfs` in
    /// `dir`. Returns the kernel's command line.
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::boot`], and when a file can't be written.
    pub fn write_boot_files(&self, dir: &Path) -> Result<String> {
        let kernel = self.write_initramfs(&dir.join("initramfs"))?;
        fs::copy(&kernel.image, dir.join("kernel"))?;
        Ok(self.kernel_command_line())
    }

    /// Makes the file `initramfs`, and returns the kernel that it is for.
    fn write_initramfs(&self, initramfs: &Path) -> Result<KernelTree> {
        let (kernel, base) = self.lab.kernel(self.kernel)?;
        fs::copy(&base, initramfs).with_context(|| format!("cannot copy {}", base.display()))?;
        let mut overlay =
            initramfs::overlay(&self.script, &self.modules, &kernel, self.lab.userland())?;
        for name in &self.programs {
            overlay.extend(initramfs::program(name, &self.lab.package(name)?)?);
        }
        for (path, name) in &self.files {
            overlay.extend(initramfs::file(name, path)?);
        }
        File::options().append(true).open(initramfs)?.write_all(&overlay)?;
        Ok(kernel)
    }

    fn machine(&self, qemu: &mut Command, accelerator: Accelerator) {
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
        qemu.args(self.cpu.unwrap_or(&accelerator.arguments()));
        qemu.args(["-M", "q35", "-smp"]).arg(self.cpus.to_string());
        let mib = self.memory_mib;
        let all = mib + self.file_memory_mib + self.unshared_memory_mib;
        qemu.arg("-m").arg(match self.own_devices {
            0 => format!("{all}M"),
            // Each takes a memory slot, which plain `-m` has none of.
            devices => format!("{all}M,slots={devices},maxmem=64G"),
        });
        qemu.arg("-object").arg(format!("memory-backend-memfd,id=mem,size={mib}M,share=on"));
        if self.unshared_memory_mib == 0 {
            qemu.args(["-numa", "node,memdev=mem"]).args(&self.nodes);
        } else {
            let (mib, last) = (self.unshared_memory_mib, self.cpus - 1);
            qemu.arg("-numa").arg(format!("node,memdev=mem,cpus=0-{}", last - 1));
            qemu.args(&self.nodes);
            qemu.arg("-object").arg(format!("memory-backend-ram,id=unshared,size={mib}M"));
            qemu.arg("-numa").arg(format!("node,memdev=unshared,cpus={last}"));
        }
        if !self.reboots {
            qemu.arg("-no-reboot");
        }
    }

    fn kernel_command_line(&self) -> String {
        // A panic ends QEMU by way of `-no-reboot`. Where the guest may reboot it would go round
        // for ever, so there it stops. Level 5 shows warnings and worse: all that tells of
        // trouble.
        let panic = if self.reboots { 0 } else { -1 };
        // Where the host is busy, a kernel that looks for the timer's ticks finds none and panics.
        // The kernel's tests of its ciphers take half a second.
        let quick = "no_timer_check cryptomgr.notests";
        let limits = kernel_limits(|limit| patience(Duration::from_secs(limit)).as_secs());
        format!("console=ttyS0 loglevel=5 {quick} {limits} panic={panic}{}", self.kernel_arguments)
    }
}

/// After how many seconds the guest's kernel reports that RCU, a CPU or a task hangs, with a stack that
/// fails the test: its defaults, as `patience` extends them up to what it takes.
fn kernel_limits(patience: impl Fn(u64) -> u64) -> String {
    format!(
        "rcupdate.rcu_cpu_stall_timeout={} watchdog_thresh={} \
         sysctl.kernel.hung_task_timeout_secs={}",
        patience(21).min(300),
        patience(10).min(60),
        patience(120),
    )
}

/// A path within an option of QEMU's, in which commas separate.
pub(crate) fn escaped(path: &Path) -> OsString {
    let parts: Vec<_> = path.as_os_str().as_bytes().split(|&byte| byte == b',').collect();
    OsString::from_vec(parts.join(&b",,"[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_kernel_are_extended_as_far_as_it_takes_them() {
        let quiet = "rcupdate.rcu_cpu_stall_timeout=21 watchdog_thresh=10 \
                     sysctl.kernel.hung_task_timeout_secs=120";
        assert_eq!(kernel_limits(|limit| limit), quiet);
        let slow = "rcupdate.rcu_cpu_stall_timeout=300 watchdog_thresh=60 \
                    sysctl.kernel.hung_task_timeout_secs=2400";
        assert_eq!(kernel_limits(|limit| 20 * limit), slow);
    }

    #[test]
    fn path_with_comma_is_escaped() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }
}
