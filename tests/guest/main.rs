// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Real guests, under a stock QEMU, on memory that the daemon serves.

mod accelerator;
mod cloud_hypervisor;
mod filesystem;
mod layout;
mod loop_device;
mod no_dax;
mod persistence;
mod power;
mod refusal;
mod replug;
mod root;
mod served;
mod tmpfs;
mod unplug;
mod unshared;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use guest_harness::{Daemon, Lab, VmBuilder};
use tempfile::TempDir;

use crate::filesystem::Filesystem;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

/// The daemon, serving a file that it creates where there is none.
fn serve(file: &Path) -> Daemon {
    let args: [OsString; 4] = ["--file".into(), file.into(), "--size".into(), "512M".into()];
    Daemon::start(DAEMON, args).unwrap()
}

/// The daemon, serving what a table says, with a control socket.
fn serve_table(dir: &TempDir, text: &str) -> Daemon {
    let [table, control] = ["table", "control"].map(|name| dir.path().join(name));
    std::fs::write(&table, text).unwrap();
    let args = ["--table".as_ref(), table.as_os_str(), "--control".as_ref(), control.as_os_str()];
    Daemon::start(DAEMON, args).unwrap()
}

/// An empty file of `size`.
fn sparse_file(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

/// A guest on the daemons' devices: `/dev/pmem0` and so on.
fn guest<'lab>(lab: &'lab Lab, filesystem: Filesystem, daemons: &[&Daemon]) -> VmBuilder<'lab> {
    let mut vm = lab.vm();
    if filesystem == Filesystem::Xfs {
        vm = vm.module("xfs");
    }
    daemons.iter().fold(vm, |vm, daemon| vm.vhost_user_pmem(daemon.socket()))
}

/// How many pages of `file` hold nothing but `byte`.
fn pages_of(byte: u8, file: &Path) -> usize {
    let mut file = File::open(file).unwrap();
    let mut chunk = vec![0; 1 << 20];
    let whole = [byte; 4096];
    let mut count = 0;
    loop {
        let len = file.read(&mut chunk).unwrap();
        if len == 0 {
            return count;
        }
        // Not byte by byte, which takes a minute for 512 MiB where the CPU is emulated.
        count += chunk[..len].chunks(4096).filter(|page| **page == whole[..page.len()]).count();
    }
}

/// Runs each of the functions as a test on ext4 and on XFS.
macro_rules! on_ext4_and_xfs {
    ($($name:ident)*) => {
        mod ext4 {
            $(#[test] fn $name() { super::$name(crate::Filesystem::Ext4); })*
        }
        mod xfs {
            $(#[test] fn $name() { super::$name(crate::Filesystem::Xfs); })*
        }
    };
}
use on_ext4_and_xfs;
