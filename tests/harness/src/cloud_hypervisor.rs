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
    pmem: Vec<PathBuf>,
}

impl CloudHypervisor {
    /// The one that the environment names.
    #[must_use]
    pub fn named() -> Option<Self> {
        std::env::var_os(VARIABLE).map(|program| Self { program: program.into(), pmem: Vec::new() })
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
    pub fn pmem(mut self, path: impl Into<PathBuf>) -> Self {
        self.pmem.push(path.into());
        self
    }

    /// Starts it with a guest of so much memory and so many CPUs.
    pub(crate) fn command(&self, kernel: &Path, initramfs: &Path, mib: u32, cpus: u32) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kernel").arg(kernel).arg("--initramfs").arg(initramfs);
        command.args(["--cpus", &format!("boot={cpus}")]);
        command.args(["--memory", &format!("size={mib}M,shared=on")]);
        command.args(["--serial", "tty", "--console", "off"]);
        if !self.pmem.is_empty() {
            command.arg("--pmem");
        }
        for path in &self.pmem {
            let mut file = OsString::from("file=");
            file.push(path);
            command.arg(file);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_with_two_devices_names_both() {
        let vmm = CloudHypervisor { program: "ch".into(), pmem: Vec::new() };
        let command = vmm.pmem("/a").pmem("/b").command("/k".as_ref(), "/i".as_ref(), 512, 1);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        let expected = "--kernel /k --initramfs /i --cpus boot=1 --memory size=512M,shared=on \
                        --serial tty --console off --pmem file=/a file=/b";
        assert_eq!(args.join(" "), expected);
    }
}
