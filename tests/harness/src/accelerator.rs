// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What runs the guests' code.

use anyhow::{Result, bail};

/// Names the accelerator, where that isn't TCG.
pub(crate) const VARIABLE: &str = "VHOST_PMEM_ACCEL";

/// What runs the guests' code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU itself, which translates it.
    Tcg,
    /// The CPU, or one that is emulated: see [`KvmHost`](crate::KvmHost).
    Kvm,
}

impl Accelerator {
    /// The one that this process's guests run on.
    ///
    /// # Errors
    ///
    /// When the environment names another one than these.
    pub fn in_use() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::Tcg),
            Some(name) => Self::named(&name.to_string_lossy()),
        }
    }

    fn named(name: &str) -> Result<Self> {
        match name {
            "tcg" => Ok(Self::Tcg),
            "kvm" => Ok(Self::Kvm),
            _ => bail!("{VARIABLE}={name}: say tcg or kvm"),
        }
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Tcg => ["-accel", "tcg", "-cpu", "max"],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerator_of_unknown_name_is_refused() {
        assert_eq!(Accelerator::named("kvm").unwrap(), Accelerator::Kvm);
        let error = Accelerator::named("KVM").unwrap_err().to_string();
        assert_eq!(error, "VHOST_PMEM_ACCEL=KVM: say tcg or kvm");
    }
}
