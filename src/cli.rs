// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::num::NonZeroU32;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;
use vhost_pmem::WindowChoice;

use crate::address::Address;
use crate::size::ByteSize;
use crate::user::User;

/// Serves files as a virtio-pmem device to a vhost-user frontend such as QEMU, so that a guest
/// mounts them with DAX.
///
/// Runs in the foreground, serves one frontend after another, and ends on SIGTERM, SIGINT or SIGHUP.
#[derive(Debug, Parser)]
#[command(
    name = "vhost-pmemd",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Serve the devices of this TOML file, each in a process of its own. Each is a table [device.NAME],
    /// whose keys are the options of this command line. SIGHUP has it read again
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["EndpointArgs", "BackingArgs", "poll_us", "max_syncs", "name", "metrics"]
    )]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,

    #[command(flatten)]
    pub(crate) backing: BackingArgs,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,

    /// Print what this backend can do, as JSON, and exit; other options are ignored
    #[arg(long)]
    print_capabilities: bool,

    /// Look for requests for so many microseconds before sleeping, while they come that often: flushes
    /// are answered sooner, and a processor is busy
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub(crate) poll_us: u32,

    /// Sync at most so often a second; flushes that come meanwhile are answered together
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_syncs: Option<NonZeroU32>,

    /// Listen on this Unix socket for "vhost-pmemd status", "snapshot" and so on; for the daemon's user
    /// alone
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,

    /// Answer "GET /metrics", as Prometheus asks, on a Unix socket, unix:PATH, or a port that only this
    /// host reaches, 127.0.0.1:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<Address>,

    /// The device's name, in the log and in what "status" shows
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Serve a device of the fleet that started this process: end when it does, and take its requests
    /// on standard input
    #[arg(long, hide = true)]
    pub(crate) end_with_parent: bool,

    /// How much to log to standard error: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LevelFilter,

    /// What a line of the log looks like: text; json, an object each; or journald, with a priority before
    /// it and no time, for a standard error that journald reads
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what a table makes – its stack, its extents, and whether and how it can be served –
    /// without serving it
    Check {
        /// The table
        #[arg(long, value_name = "FILE")]
        table: PathBuf,

        /// The window that is asked for: auto, direct, served or gpa=ADDR
        #[arg(long, value_name = "WINDOW", default_value = "auto")]
        window: WindowArg,
    },
    /// Show the devices that are being served, a line each
    List {
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Show how a device is that is being served, or how all are
    Status {
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Take a snapshot of a served window, while its guest runs: what was made durable so far stays as
    /// it is, where it is, to be copied; what the guest flushes from then on is kept in COW, until it
    /// is merged or dropped
    Snapshot {
        #[command(flatten)]
        control: ControlArgs,

        /// A new file
        cow: PathBuf,
    },
    /// Merge what was written since the last snapshot into what is beneath, while the guest runs, and
    /// remove its COW file. Or, while nobody serves them, an overlay into its file
    Merge {
        #[command(flatten)]
        at: MergeArgs,

        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget what was written since the last snapshot, with its COW file: the device is as it was then.
    /// Not while a guest runs
    Drop {
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Let flushes succeed again after a sync failed, once the storage is mended: if all can be synced
    /// now. What the guest wrote before and didn't get flushed may be lost
    ClearFailure {
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Read the configuration file again: add what is new, end what is gone, start anew what has
    /// changed. What has not isn't touched
    Reload {
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Make a file one of its own, while no daemon serves it. Of a file that a snapshot was taken of, or
    /// a copy of one, the mark is removed: what was written since the snapshot is given up. Of others, as
    /// of a mirror's leg, all that says that they belong together: it is to be copied to
    Unmark {
        /// The file
        file: PathBuf,
    },
    /// Bring up the legs of mirrors that failed, were missing or may differ, while the guest runs. A
    /// leg whose path names another file by now is replaced by that file
    Resync {
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Replace a mirror's leg by another file, and copy to it, while the guest runs
    Replace {
        #[command(flatten)]
        control: ControlArgs,

        /// The leg, as the table names it
        leg: String,

        /// The file that takes its place, of the leg's size
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,

    /// Which device, of several that --config has
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,

    /// Print the answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", required_unless_present = "file")]
    pub(crate) control: Option<PathBuf>,

    /// Which device, of several that --config has
    #[arg(long, value_name = "NAME", requires = "control")]
    pub(crate) device: Option<String>,

    /// The overlay's base, or the overlay beneath it; other overlays of it are refused afterwards
    #[arg(long, value_name = "PATH", requires = "overlay", conflicts_with_all = ["control", "json"])]
    pub(crate) file: Option<PathBuf>,

    /// The overlay
    #[arg(long, value_name = "PATH", requires = "file")]
    pub(crate) overlay: Option<PathBuf>,

    /// Merge into the file as it is now, though it isn't what the overlay was made for
    #[arg(long, requires = "file")]
    pub(crate) accept_base: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Become this user, by name or number, with this group or else the user's, once all is open that
    /// takes more; only as root. Its are the sockets then
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<User>,

    /// What the daemon gives up once it has begun. auto: capabilities, files but its own, and the
    /// host's mounts and network, as far as the kernel lets it. none: nothing
    #[arg(long, value_name = "SANDBOX", value_enum, default_value_t)]
    pub(crate) sandbox: SandboxArg,

    /// What becomes of a system call that the daemon has no use for. kill: it ends the daemon, which
    /// says which it was. log: it is made, and noted in the kernel's log. none: it is made
    #[arg(long, value_name = "ACTION", value_enum, default_value_t)]
    pub(crate) seccomp: SeccompArg,

    /// Let "vhost-pmemd snapshot" make files in this directory, and in those beneath it, too, and not
    /// in those alone that have the files of a served window. May be given more than once
    #[arg(long, value_name = "DIR")]
    pub(crate) allow_dir: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum SandboxArg {
    #[default]
    Auto,
    None,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum SeccompArg {
    #[default]
    Kill,
    Log,
    None,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct EndpointArgs {
    /// Listen on this Unix socket; one that a dead process left behind is replaced
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "publish", "config"])]
    pub(crate) socket_path: Option<PathBuf>,

    /// Use this inherited file descriptor: a Unix socket that listens, or one that is connected to a
    /// frontend, in which case the daemon ends with it
    #[arg(long, value_name = "FDNUM")]
    pub(crate) fd: Option<RawFd>,
}

#[derive(Debug, Args)]
pub(crate) struct BackingArgs {
    /// Serve this file or block device
    #[arg(long, value_name = "PATH", required_unless_present_any = ["table", "config"], conflicts_with = "table")]
    pub(crate) file: Option<PathBuf>,

    /// Create the file with this size, or grow it; new space is sparse, and the file is never truncated.
    /// With --overlay, the size that the guest sees, which the overlay keeps: zeroes follow the file's
    /// end, and can be written. In bytes, or with a suffix: K, M, G or T, powers of 1024
    #[arg(long, value_name = "SIZE", conflicts_with = "table")]
    pub(crate) size: Option<ByteSize>,

    /// Keep what the guest writes apart from the file, in this one, which is created where there is
    /// none; or in memory, until the daemon ends, if it is "memory". The file is only read, and any
    /// number of daemons may share it
    #[arg(long, value_name = "PATH", requires = "file", conflicts_with = "table")]
    pub(crate) overlay: Option<PathBuf>,

    /// Only read the file: what the guest writes to it fails at its next flush
    #[arg(long, requires = "file", conflicts_with_all = ["size", "overlay", "table"])]
    pub(crate) read_only: bool,

    /// Use an overlay, or a table's snapshots, over files that are not, or not any more, what they were
    /// made for; that is what they are for from then on
    #[arg(long)]
    pub(crate) accept_base: bool,

    /// Serve what this table describes, in dmsetup's grammar, one target a line, such as
    /// "0 524288 linear PATH 0", in 512-byte sectors; "vhost-pmemd check" tells whether it can be served
    #[arg(long, value_name = "FILE")]
    pub(crate) table: Option<PathBuf>,

    /// How the guest reaches it: direct, by mapping the files' own pages; served, by mapping a file
    /// of the daemon's, which tables with mirrors and snapshots need; auto, which is direct where
    /// that is possible; or gpa=ADDR, by memory of the guest at this guest physical address, which the
    /// VMM makes of the files, or of what --publish shows
    #[arg(long, value_name = "WINDOW", default_value = "auto")]
    pub(crate) window: WindowArg,

    /// Read the files into the page cache before they are served, page by page. Who touches a page
    /// first doesn't wait for the disk, and a flush through a direct window writes the pages that
    /// changed, not the up to 2 MiB that the kernel caches as one. For files that fit into memory
    #[arg(long)]
    pub(crate) prefetch: bool,

    /// Show the file of the served window at this path, for a VMM whose own persistent memory device
    /// maps a file; no socket is needed then. An empty file is made there, or is there already:
    /// whoever may open that may open the window
    #[arg(long, value_name = "PATH")]
    pub(crate) publish: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowArg {
    Auto,
    Direct,
    Served,
    Gpa(u64),
}

impl FromStr for WindowArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "direct" => Ok(Self::Direct),
            "served" => Ok(Self::Served),
            _ => address(text).map(Self::Gpa).ok_or(
                "a window is auto, direct, served, or gpa=ADDR with an address such as 0x100000000 or 4G",
            ),
        }
    }
}

fn address(text: &str) -> Option<u64> {
    let address = text.strip_prefix("gpa=")?;
    match address.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+')),
        None => Some(address.parse::<ByteSize>().ok()?.0),
    }
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
    Journald,
}

impl From<WindowArg> for WindowChoice {
    fn from(arg: WindowArg) -> Self {
        match arg {
            WindowArg::Auto => Self::Auto,
            WindowArg::Direct => Self::Direct,
            WindowArg::Served => Self::Served,
            WindowArg::Gpa(start) => Self::Gpa(start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_in_guest_memory_has_an_address() {
        let window = |text: &str| text.parse::<WindowArg>().ok();
        assert_eq!(window("gpa=0x20000000"), Some(WindowArg::Gpa(512 << 20)));
        assert_eq!(window("gpa=4G"), Some(WindowArg::Gpa(4 << 30)));
        assert_eq!(window("served"), Some(WindowArg::Served));
        for wrong in ["gpa", "gpa=", "gpa=0x", "gpa=0x+1", "gpa=-1", "gpa=x", "Direct", ""] {
            assert_eq!(window(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
