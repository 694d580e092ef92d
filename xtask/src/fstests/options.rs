// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command's options.

use std::path::PathBuf;

use clap::ValueEnum;

/// The command's options.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A built xfstests: the directory with `check` in it
    #[arg(long, value_name = "DIR")]
    pub(crate) xfstests: PathBuf,
    /// The file system of both devices
    #[arg(long, default_value = "ext4")]
    pub(crate) fs: Filesystem,
    /// The guest's kernel: Debian 13's own or the one of its backports
    #[arg(long, default_value = "trixie")]
    pub(crate) kernel: Kernel,
    /// Mount both devices with this mode of DAX
    #[arg(long, default_value = "always")]
    pub(crate) dax: Dax,
    /// Run the tests of these groups, such as quick or xfs/quick; auto, if no test is named either
    #[arg(long, value_delimiter = ',')]
    pub(crate) group: Vec<String>,
    /// Leave out these tests, ranges and groups
    #[arg(long, value_delimiter = ',')]
    pub(crate) exclude: Vec<String>,
    /// Run the tests on QEMU's own device as well, and excuse what ends in the same way there
    #[arg(long)]
    pub(crate) baseline: bool,
    /// The window of our devices
    #[arg(long, default_value = "auto")]
    pub(crate) window: Window,
    /// Serve each of our devices from this table; a file {dir}/NAME in it is made, with --mib MiB
    #[arg(long, value_name = "FILE")]
    pub(crate) table: Option<PathBuf>,
    /// Write the results to this file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Kill the guest when a test takes longer, in seconds on a quiet machine
    #[arg(long, value_name = "SECS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout_per_test: u64,
    /// The size of each device in MiB, a power of two
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = power_of_two)]
    pub(crate) mib: u64,
    /// List the tests that would run, and run none
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Run these tests, such as generic/001 or generic/001-010, besides those of the groups
    #[arg(value_name = "TEST")]
    pub(crate) tests: Vec<String>,
}

/// What the devices are formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    /// As xfstests names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// The kernels that have shared memory regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    Trixie,
    Backports,
}

impl Kernel {
    pub(crate) fn of_harness(self) -> guest_harness::Kernel {
        match self {
            Self::Trixie => guest_harness::Kernel::Trixie,
            Self::Backports => guest_harness::Kernel::Backports,
        }
    }

    /// The name of the root file system that has its modules.
    pub(crate) fn root_disk(self) -> &'static str {
        match self {
            Self::Trixie => "fstests-root",
            Self::Backports => "fstests-root-backports",
        }
    }
}

/// The mount option `dax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dax {
    Always,
    Never,
}

impl Dax {
    pub(crate) fn mount_option(self) -> &'static str {
        match self {
            Self::Always => "dax=always",
            Self::Never => "dax=never",
        }
    }
}

/// The window of our devices. One in guest memory would take another guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Window {
    Auto,
    Direct,
    Served,
}

impl Window {
    /// As `vhost-pmemd --window` takes it.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Served => "served",
        }
    }
}

fn power_of_two(text: &str) -> Result<u64, String> {
    let mib: u64 = text.parse().map_err(|error| format!("{error}"))?;
    // Smaller ones hold no XFS.
    if mib.is_power_of_two() && mib >= 512 {
        Ok(mib)
    } else {
        Err("a power of two from 512 on is needed".into())
    }
}
