// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots real Linux guests for the tests and the demo.
//!
//! # Purpose
//!
//! A test says which kernel and devices it wants and hands over a shell script; it gets back what
//! the guest printed, the script's exit status and QEMU's. Everything a guest is made of comes from
//! Debian packages, so that a checkout and a Debian machine are all it takes: no root, no KVM,
//! nothing installed on the host.
//!
//! # Model
//!
//! - [`Lab::open`] obtains what is missing – QEMU, the guest's userland, a kernel – into `guest/`
//!   under the cargo target directory, where it stays. One process at a time does so; a warm lab
//!   needs no network. What few VMs want, a VM asks for: [`VmBuilder::program`].
//! - [`Lab::vm`] describes a VM, [`VmBuilder::boot`] starts it, [`Vm::wait`] ends with an
//!   [`Outcome`].
//! - What is too large for an initramfs goes onto a disk: [`Lab::root_disk`], [`Lab::disk_of`].
//! - The guest is an initramfs. Its `/init` loads modules, runs the script and prints `MARK done
//!   rc=N`.
//! - Guests run under TCG: a `/dev/kvm` that exists isn't always one that boots these kernels. For
//!   KVM there is [`KvmHost`], a guest that is a machine with it.
//!
//! # Invariants
//!
//! - Every package is verified by apt against Debian's archive keyring.
//! - A part of the cache is complete or absent, and is rebuilt when its recipe changes.
//! - Time limits are those of a quiet machine, and longer where it is slower: [`patience()`].
//! - A VM ends by its time limit at the latest, with its [`Vm`], and with the process that started
//!   it.
//!
//! # Errors
//!
//! [`anyhow::Error`] everywhere: a failing test prints the chain. What the guest does is no error
//! of the harness; [`Outcome::expect_success`] is for tests to which it is.
//!
//! # Environment
//!
//! `VHOST_PMEM_DEBIAN_MIRROR` names the Debian mirror to use instead of the one in the machine's
//! apt sources. `VHOST_PMEM_ACCEL` is `tcg` or `kvm`, see [`Accelerator`]. `CLOUD_HYPERVISOR` is the path
//! of an executable, see [`CloudHypervisor`].
//!
//! # Catalogue
//!
//! | Part | What it does |
//! |---|---|
//! | [`Lab`] | what guests are made of, and tools from the guest's userland on the host |
//! | [`VmBuilder`] | a VM to be |
//! | [`Access`] | what a guest may do to a disk |
//! | [`Vm`] | a running VM: wait for a line, reset, power off, kill, unplug and plug devices |
//! | [`Outcome`] | how it ended |
//! | [`Daemon`] | a `vhost-pmemd` to attach guests to |
//! | [`VolatileDisks`] | disks that lose what was not synced when their power is cut |
//! | [`patience()`] | a time limit that suits the machine |
//! | [`start_again`] | a process of the test's own |
//! | [`Rounds`], [`Random`] | chance that can be repeated |
//! | [`host_program`] | a program of a Debian package, to be run on the host |
//! | [`own_program`] | a program of this workspace, to be run in a guest |
//! | [`crate_program()`] | the program of a crate, to be run in a guest |
//! | [`Qemu`] | the QEMU in use |
//! | [`Accelerator`] | what it runs guests with |
//! | [`CloudHypervisor`] | another VMM |
//! | [`KvmHost`] | a machine with KVM, made of this one's files |
//! | [`InstalledKvmHost`] | one that can be booted |
//! | [`Kernel`] | the kernels on offer |
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use guest_harness::Lab;
//!
//! let lab = Lab::open()?;
//! lab.vm()
//!     .vhost_user_pmem("/run/pmem.sock")
//!     .script("mkfs.ext4 -qF /dev/pmem0 && mount -o dax=always /dev/pmem0 /mnt")
//!     .boot()?
//!     .wait()?
//!     .expect_success()?;
//! # Ok(())
//! # }
//! ```

mod accelerator;
mod again;
mod apt;
mod builder;
mod cloud_hypervisor;
mod console;
mod crate_program;
mod daemon;
mod debian;
mod disk;
mod held;
mod hot_plug;
mod initramfs;
mod kernel;
mod kvm_host;
mod lab;
mod modules;
mod outcome;
mod patience;
mod progress;
mod qemu;
mod qmp;
mod random;
mod run;
mod store;
mod tree;
mod vm;
mod vmlinux;
mod volatile;
mod workspace;

pub use accelerator::Accelerator;
pub use again::{start_again, started_again};
pub use builder::{Access, VmBuilder};
pub use cloud_hypervisor::CloudHypervisor;
pub use crate_program::{CRATE_PROGRAMS, crate_program};
pub use daemon::Daemon;
pub use held::{Held, fds};
pub use kernel::Kernel;
pub use kvm_host::{InstalledKvmHost, KvmHost};
pub use lab::{Lab, host_program};
pub use outcome::Outcome;
pub use patience::patience;
pub use qemu::{Qemu, Version};
pub use random::{Random, Rounds};
pub use store::target_dir;
pub use vm::Vm;
pub use volatile::{Fault, VolatileDisks, serve_volatile_disks};
pub use workspace::own_program;
