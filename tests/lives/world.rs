// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: a directory of files, the daemon that serves them, and the power that may be cut.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use guest_harness::{Daemon, Fault, VolatileDisks};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::model::PAGES;
use crate::record::PAGE;

pub(crate) const BYTES: usize = PAGES * PAGE;

/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon that is tried. Another one shows what the tests find in that.
fn program() -> PathBuf {
    std::env::var_os("VHOST_PMEM_LIVES_DAEMON")
        .map_or_else(|| env!("CARGO_BIN_EXE_vhost-pmemd").into(), PathBuf::from)
}

/// Files are in `media`, and are used by their paths in `disks`: that is a link to it, or a mount of
/// disks whose power can be cut.
pub(crate) struct World {
    // In this order they are dropped.
    daemon: Option<Daemon>,
    disks: Option<VolatileDisks>,
    dir: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("media")).unwrap();
        symlink(dir.path().join("media"), dir.path().join("disks")).unwrap();
        Self { daemon: None, disks: None, dir }
    }

    /// Where the daemon has the file of that name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("disks").join(name)
    }

    /// Where it is on its medium.
    pub(crate) fn medium(&self, name: &str) -> PathBuf {
        self.dir.path().join("media").join(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.medium(name).exists()
    }

    pub(crate) fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A text without the names of this directory.
    pub(crate) fn anonymous(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "@")
    }

    /// The opposite.
    pub(crate) fn real(&self, text: &str) -> String {
        text.replace('@', self.dir.path().to_str().unwrap())
    }

    /// Makes a file that holds these bytes, and is durable.
    pub(crate) fn make(&self, name: &str, bytes: &[u8]) {
        let path = self.medium(name);
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
    }

    /// Makes a sparse file.
    pub(crate) fn make_blank(&self, name: &str, len: usize) {
        self.remove(name);
        File::create(self.medium(name)).unwrap().set_len(len as u64).unwrap();
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        fs::rename(self.medium(from), self.medium(to)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        match fs::remove_file(self.medium(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{name}: {error}"),
            _ => {}
        }
    }

    /// Copies a file, with its extended attributes and times.
    pub(crate) fn copy(&self, from: &str, to: &str) {
        self.copy_with("--archive", from, to);
    }

    /// Copies nothing but what is in it.
    pub(crate) fn copy_bytes(&self, from: &str, to: &str) {
        self.copy_with("--no-preserve=all", from, to);
    }

    fn copy_with(&self, how: &str, from: &str, to: &str) {
        self.remove(to);
        let mut copy = Command::new("cp");
        copy.args([how, "--sparse=always"]).arg(self.medium(from)).arg(self.medium(to));
        assert!(copy.status().unwrap().success());
    }

    // Power.

    /// Puts disks with a volatile cache in the place of the files; those in `lying` say that they have
    /// synced, and don't. False where there is no FUSE.
    pub(crate) fn make_volatile(&mut self, seed: u64, lying: &[&str]) -> bool {
        let link = self.dir.path().join("disks");
        fs::remove_file(&link).unwrap();
        self.disks = VolatileDisks::start("serve_disks", self.dir.path(), seed, lying).unwrap();
        if self.disks.is_none() {
            let _ = fs::remove_dir(&link);
            self.link();
        }
        self.disks.is_some()
    }

    fn link(&self) {
        symlink(self.dir.path().join("media"), self.dir.path().join("disks")).unwrap();
    }

    pub(crate) fn is_volatile(&self) -> bool {
        self.disks.is_some()
    }

    /// Takes the disks, for the time in which their power may be cut.
    pub(crate) fn take_disks(&mut self) -> Option<VolatileDisks> {
        self.disks.take()
    }

    /// Has a disk fail, or work again.
    pub(crate) fn set_fault(&mut self, name: &str, fault: Option<Fault>) {
        self.disks.as_mut().expect("volatile disks").set_fault(name, fault).unwrap();
    }

    /// The power is cut, of these disks.
    pub(crate) fn lose_power(&mut self, mut disks: VolatileDisks) {
        let path = self.path(self.names().first().expect("a disk"));
        // Whatever comes next is too late. Nothing may be left to come if it was cut already.
        let cut = disks.cut_after(0).and_then(|()| disks.unless_cut(|| sync(&path)));
        assert!(matches!(cut, Ok(None)), "the power isn't cut: {cut:?}");
        self.without_power(disks);
    }

    /// The power of these disks was cut.
    pub(crate) fn without_power(&mut self, disks: VolatileDisks) {
        if let Some(daemon) = &self.daemon {
            daemon.signal(Signal::KILL).unwrap();
        }
        drop(disks);
        if let Some(daemon) = self.daemon.take() {
            daemon.kill(PATIENCE).unwrap();
        }
        self.link();
    }

    /// What the kernel and the disks have in their caches comes to the media.
    pub(crate) fn make_durable(&mut self) {
        if let Some(disks) = self.disks.take() {
            for name in self.names() {
                // It may have been removed, and be on its medium still.
                if self.path(&name).exists() {
                    sync(&self.path(&name)).unwrap();
                }
            }
            drop(disks);
            self.link();
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("media")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    // The daemon.

    /// Starts it on what these arguments say. An error is its refusal.
    pub(crate) fn start(&mut self, arguments: Vec<OsString>) -> Result<(), String> {
        let mut all: Vec<OsString> = ["--publish".into(), self.window().into()].into();
        all.extend(["--control".into(), self.control().into()]);
        all.extend(arguments);
        match Daemon::start(program(), all) {
            Ok(daemon) => self.daemon = Some(daemon),
            Err(error) => return Err(self.anonymous(&format!("{error:#}"))),
        }
        Ok(())
    }

    fn window(&self) -> PathBuf {
        self.dir.path().join("window")
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Where VMMs connect to it.
    pub(crate) fn socket(&self) -> &Path {
        self.daemon.as_ref().expect("a daemon").socket()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.daemon.as_ref().map_or_else(String::new, |daemon| self.anonymous(&daemon.log()))
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) -> Result<(), String> {
        let Some(daemon) = self.daemon.take() else { return Ok(()) };
        let (status, log) = daemon.terminate().unwrap();
        match status.success() {
            true => Ok(()),
            false => Err(format!("the daemon ended with {status}:\n{}", self.anonymous(&log))),
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill(PATIENCE).unwrap();
        }
    }

    /// Has the program do something, and returns what it says; an error is its refusal.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(program()).args(arguments).stdin(Stdio::null()).output().unwrap();
        match output.status.success() {
            true => Ok(self.anonymous(&String::from_utf8_lossy(&output.stdout))),
            false => Err(self.anonymous(&String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// The same, of the daemon that runs.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let control = self.control();
        self.run(&[arguments, &["--control", control.to_str().unwrap()]].concat())
    }

    /// How the device is.
    pub(crate) fn status(&self) -> Result<Value, String> {
        // Asked often, so not by a process of its own.
        let ask = || {
            let mut stream = UnixStream::connect(self.control())?;
            stream.write_all(b"{\"version\":1,\"command\":\"status\"}\n")?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply).map(|_| reply)
        };
        let reply = ask().map_err(|error| format!("no status: {error}"))?;
        let mut reply: Value =
            serde_json::from_str(&reply).map_err(|error| format!("{error}: {reply}"))?;
        Ok(reply["ok"][0].take())
    }

    /// How each leg of the mirror is, in the table's order.
    pub(crate) fn legs(&self) -> Result<Vec<String>, String> {
        let status = self.status()?;
        let legs = status["mirrors"][0]["legs"].as_array().cloned().unwrap_or_default();
        Ok(legs.iter().map(leg_state).collect())
    }

    // The window.

    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BYTES];
        File::open(self.window())?.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    pub(crate) fn open(&self) -> io::Result<Window> {
        let file = File::options().read(true).write(true).open(self.window())?;
        Ok(Window(file))
    }
}

/// The window, as a VMM has it open.
pub(crate) struct Window(File);

impl Window {
    pub(crate) fn write(&self, page: usize, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, (page * PAGE) as u64)
    }

    /// Stores to the page as a guest does, and doesn't learn of an error in that.
    pub(crate) fn store(&self, page: usize, bytes: &[u8]) -> io::Result<()> {
        // A page that can't be read is a SIGBUS to whoever stores to it.
        self.0.read_exact_at(&mut [0; PAGE], (page * PAGE) as u64)?;
        let offset = FileOffset::new(self.0.try_clone().unwrap(), 0);
        let mapping = MmapRegion::<()>::from_file(offset, BYTES).unwrap();
        mapping.get_slice(page * PAGE, PAGE).unwrap().copy_from(bytes);
        Ok(())
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

fn leg_state(leg: &Value) -> String {
    match leg {
        Value::String(state) => state.clone(),
        other => other["state"].as_str().unwrap_or_default().to_owned(),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Drop for World {
    fn drop(&mut self) {
        // In order, so that nothing stays mounted. Both fail only if there is nothing to do.
        let is_up = self.daemon.take().is_some_and(|daemon| daemon.terminate().is_ok());
        if !is_up && self.window().symlink_metadata().is_err() {
            // What a daemon has left that was killed.
            let unmount = |program: &str, option: &str| {
                Command::new(program).arg(option).arg("--").arg(self.window()).output()
            };
            let _ = unmount("umount", "-l").or_else(|_| unmount("fusermount3", "-uz"));
        }
    }
}
