// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest of cloud-hypervisor's, which the user brings: no package of Debian's has it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Names its executable.
const VARIABLE: &str = "CLOUD_HYPERVISOR";

/// A cloud-hypervisor, which needs KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudHypervisor {
    program: PathBuf,
    pmem: Vec<OsString>,
    /// Zones of memory behind that of the guest's own.
    zones: Vec<OsString>,
    vhost_user: Vec<OsString>,
}

impl CloudHypervisor {
    /// The one that the environment names.
    #[must_use]
    pub fn named() -> Option<Self> {
        std::env::var_os(VARIABLE).map(|program| Self::new(program.into()))
    }

    fn new(program: PathBuf) -> Self {
        Self { program, pmem: Vec::new(), zones: Vec::new(), vhost_user: Vec::new() }
    }

    /// The same by its absolute path, which holds in another directory, too.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn absolute(mut self) -> Result<Self> {
        let found = self.program.canonicalize();
        self.program = found.with_context(|| format!("{VARIABLE}={}", self.program.display()))?;
        Ok(self)
    }

    /// Where it is.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Sets the variable that names it for `command`.
    pub fn pass_to(&self, command: &mut Command) {
        command.env(VARIABLE, &self.program);
    }

    /// Gives its guest a pmem device of cloud-hypervisor's own on all of the file `path`, which has no
    /// comma in it.
    #[must_use]
    pub fn pmem(mut self, path: impl AsRef<Path>) -> Self {
        self.pmem.push(with_path("file=", path.as_ref(), ""));
        self
    }

    /// Has the first `mib` MiB of the file `path`, which has no comma in it, be memory of its guest,
    /// shared with the file, behind all that the guest has so far.
    #[must_use]
    pub fn file_memory(mut self, path: impl AsRef<Path>, mib: u32) -> Self {
        let zone = format!("id=zone{},size={mib}M,shared=on,file=", self.zones.len());
        self.zones.push(with_path(&zone, path.as_ref(), ""));
        self
    }

    /// Attaches the vhost-user backend that listens on `socket`, which has no comma in it, as a pmem
    /// device. Takes version 53.
    #[must_use]
    pub fn vhost_user_pmem(mut self, socket: impl AsRef<Path>) -> Self {
        let more = ",device_type=27,queue_sizes=[128]";
        self.vhost_user.push(with_path("socket=", socket.as_ref(), more));
        self
    }

    /// Starts it with a guest of so much memory and so many CPUs.
    pub(crate) fn command(&self, kernel: &Path, initramfs: &Path, mib: u32, cpus: u32) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kernel").arg(kernel).arg("--initramfs").arg(initramfs);
        command.args(["--cpus", &format!("boot={cpus}")]);
        let own = format!("size={mib}M,shared=on");
        if self.zones.is_empty() {
            command.args(["--memory", &own]);
        } else {
            command.args(["--memory", "size=0", "--memory-zone", &format!("id=own,{own}")]);
            command.args(&self.zones);
        }
        command.args(["--serial", "tty", "--console", "off"]);
        for (option, values) in [("--pmem", &self.pmem), ("--generic-vhost-user", &self.vhost_user)]
        {
            if !values.is_empty() {
                command.arg(option).args(values);
            }
        }
        command
    }
}

/// An option's value with a path in it.
fn with_path(before: &str, path: &Path, behind: &str) -> OsString {
    let mut value = OsString::from(before);
    value.push(path);
    value.push(behind);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_with_two_devices_names_both() {
        let vmm = CloudHypervisor::new("ch".into()).pmem("/a").pmem("/b");
        let expected = "--kernel /k --initramfs /i --cpus boot=1 --memory size=512M,shared=on \
                        --serial tty --console off --pmem file=/a file=/b";
        assert_eq!(shown(&vmm), expected);
    }

    /// As `docs/attach-cloud-hypervisor.md` has it.
    #[test]
    fn command_with_file_memory_has_all_memory_in_zones() {
        let vmm = CloudHypervisor::new("ch".into()).file_memory("/a", 256).vhost_user_pmem("/s");
        let expected = "--kernel /k --initramfs /i --cpus boot=1 --memory size=0 \
                        --memory-zone id=own,size=512M,shared=on \
                        id=zone0,size=256M,shared=on,file=/a --serial tty --console off \
                        --generic-vhost-user socket=/s,device_type=27,queue_sizes=[128]";
        assert_eq!(shown(&vmm), expected);
    }

    fn shown(vmm: &CloudHypervisor) -> String {
        let command = vmm.command("/k".as_ref(), "/i".as_ref(), 512, 1);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        args.join(" ")
    }
}
