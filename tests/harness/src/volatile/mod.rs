// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks with a volatile cache, and a power switch.
//!
//! # Model
//!
//! Each file in a directory is the *medium* of a disk, and is seen as a file of the same name on a
//! FUSE mount. What is written to that stands in a cache, and an fsync brings it to the medium. When
//! the *power is cut* the medium gets, page by page, what the disk might have written back in time:
//! all that was in the cache, nothing, or any part of it, in any order, some pages torn between
//! their sectors of 512 bytes. From that moment on the disks answer nothing: whoever waits for one
//! waits until the [`VolatileDisks`] are dropped, and gets an error then. What is on the media is what a
//! machine finds that boots again.
//!
//! New files may be made there, and be given a size; files have extended attributes, and may be
//! removed. All that isn't synced may be undone by a power cut.
//!
//! The kernel's page cache of these files is part of what is lost. It may write pages back at any
//! time; those are in the disk's cache then, as on any machine.
//!
//! Where there is a directory `synced` beside the media, a cut leaves copies of them in it of which all
//! pages are lost that weren't synced.
//!
//! A disk whose power is on may be full or broken, for a time: [`Fault`].
//!
//! The disks are served by a process of their own ([`start_again`]), which never touches what it
//! serves. So whoever maps them may be in the test's process, and it may be killed while it waits for
//! one.

mod disk;
mod filesystem;
mod metadata;
mod power;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use fuser::{Config, MountOption, Session};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use self::disk::Disk;
pub use self::disk::Fault;
use self::filesystem::Disks;
use self::power::{Copies, Left, Power};
use crate::again::{start_again, started_again};

/// How soon it is seen that something is done.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What the process is to do.
#[derive(Serialize, Deserialize)]
struct Task {
    media: PathBuf,
    synced: PathBuf,
    mount: PathBuf,
    seed: u64,
    lying: Vec<String>,
}

/// What is to become of the disks.
#[derive(Serialize, Deserialize)]
enum Order {
    Cut(Left),
    Fault(String, Option<Fault>),
}

/// Disks that are served, and lose their power together. Dropping them ends that, and has those who
/// wait for them fail.
pub struct VolatileDisks {
    child: Child,
    control: BufReader<UnixStream>,
    mount: PathBuf,
    /// What it says of a power cut, if that was heard already.
    cut: Option<String>,
}

impl VolatileDisks {
    /// Serves the files in `dir/media` as disks in `dir/disks`, in the process that is this test
    /// executable, started again for the ignored test `name`, which calls [`serve_volatile_disks`].
    /// What is lost is told by `seed`. The disks in `lying` say that they have synced, and don't.
    ///
    /// `None`, and a word on why, where this machine lets nobody mount FUSE.
    ///
    /// # Errors
    ///
    /// When the process can't be started.
    pub fn start(name: &str, dir: &Path, seed: u64, lying: &[&str]) -> Result<Option<Self>> {
        let mount = dir.join("disks");
        fs::create_dir(&mount)?;
        let (child, control) = start_again(name)?;
        let mut disks = Self { child, control: BufReader::new(control), mount, cut: None };
        let task = Task {
            media: dir.join("media"),
            synced: dir.join("synced"),
            mount: disks.mount.clone(),
            seed,
            lying: lying.iter().map(|name| (*name).to_owned()).collect(),
        };
        disks.say(&serde_json::to_string(&task)?)?;
        let answer = disks.next_line()?.context("the disks' process ended")?;
        if answer == "ready" {
            return Ok(Some(disks));
        }
        eprintln!("{answer}");
        Ok(None)
    }

    /// The disk of the file `name`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    /// Has the power cut in place of the write or sync after so many more, of all disks together.
    ///
    /// # Errors
    ///
    /// When their process has ended.
    pub fn cut_after(&mut self, operations: u64) -> Result<()> {
        self.arm(Left::Operations(operations))
    }

    /// Has the power cut in the midst of the sync after so many more, of all disks together.
    ///
    /// # Errors
    ///
    /// When their process has ended.
    pub fn cut_in_sync_after(&mut self, syncs: u64) -> Result<()> {
        self.arm(Left::Syncs(syncs))
    }

    /// Has the disk `name` fail from now on, or work again.
    ///
    /// # Errors
    ///
    /// When their process has ended.
    pub fn set_fault(&mut self, name: &str, fault: Option<Fault>) -> Result<()> {
        self.order(&Order::Fault(name.to_owned(), fault))
    }

    fn arm(&mut self, left: Left) -> Result<()> {
        self.order(&Order::Cut(left))
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        self.say(&serde_json::to_string(order)?)?;
        match self.next_line()? {
            Some(line) if line == "armed" || line == "set" => {}
            Some(line) => self.cut = Some(line),
            None => bail!("the disks' process has ended"),
        }
        Ok(())
    }

    /// Waits until the power is cut, and tells what was lost; or until something that was not to end
    /// has ended.
    ///
    /// # Errors
    ///
    /// When the process that serves them has ended, or could not leave on the media what is left.
    pub fn wait_for_cut_or(&mut self, mut ended: impl FnMut() -> bool) -> Result<Option<String>> {
        while self.cut.is_none() && !self.speaks_within(TICK)? {
            if ended() {
                return Ok(None);
            }
        }
        let line = match self.cut.take() {
            None => self.next_line()?,
            line => line,
        };
        match line {
            Some(line) if line.starts_with("cut: of") => Ok(Some(line)),
            other => bail!("power was to be cut, and the disks' process says {other:?}"),
        }
    }

    /// Does something that may wait for the disks. If their power is cut meanwhile, ends them, so that
    /// it fails, and returns `None`.
    ///
    /// # Errors
    ///
    /// As [`VolatileDisks::wait_for_cut_or`].
    ///
    /// # Panics
    ///
    /// If `act` does, and power isn't cut.
    pub fn unless_cut<T: Send>(&mut self, act: impl FnOnce() -> T + Send) -> Result<Option<T>> {
        thread::scope(|scope| {
            let act = scope.spawn(act);
            if self.wait_for_cut_or(|| act.is_finished())?.is_some() {
                self.end();
                // It failed, for want of power.
                let _ = act.join();
                return Ok(None);
            }
            Ok(Some(act.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
        })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.control.get_mut(), "{line}")?)
    }

    /// The next thing that the process says; nothing when it ends.
    fn next_line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let len = self.control.read_line(&mut line)?;
        Ok((len > 0).then(|| line.trim_end().to_owned()))
    }

    /// Whether the process says something, or ends.
    fn speaks_within(&self, tick: Timespec) -> Result<bool> {
        if !self.control.buffer().is_empty() {
            return Ok(true);
        }
        let mut control = [PollFd::new(self.control.get_ref(), PollFlags::IN)];
        Ok(poll(&mut control, Some(&tick))? > 0)
    }

    fn end(&mut self) {
        // With it goes its end of the FUSE connection, and all that waits for that fails. It fails
        // itself only if it was collected already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for VolatileDisks {
    fn drop(&mut self) {
        self.end();
        unmount(&self.mount);
        // The directory was empty.
        let _ = fs::remove_dir(&self.mount);
    }
}

/// Takes the mount away, if there is one, also under those who have its files open.
fn unmount(mount: &Path) {
    let detach = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if rustix::mount::unmount(mount, detach) == Err(Errno::PERM) {
        // Whoever must not mount had this one's help, too.
        let _ = Command::new("fusermount3").args(["-uzq", "--"]).arg(mount).status();
    }
}

/// In the process of its own: serves disks until their owner is gone. Returns at once where this isn't
/// that process.
///
/// # Errors
///
/// When the disks can't be opened.
pub fn serve_volatile_disks() -> Result<()> {
    let Some(owner) = started_again() else { return Ok(()) };
    let mut lines = BufReader::new(owner.try_clone()?).lines();
    let task: Task = serde_json::from_str(&lines.next().context("no disks to serve")??)?;
    let names: io::Result<BTreeSet<_>> =
        fs::read_dir(&task.media)?.map(|entry| Ok(entry?.file_name())).collect();
    let names = Vec::from_iter(names?);
    let disks = names.iter().map(|name| {
        let lies = task.lying.iter().any(|lying| name == &**lying);
        Disk::open(&task.media.join(name), lies)
    });
    let disks = disks.collect::<io::Result<_>>()?;
    let copies = Copies { media: task.media.clone(), synced: task.synced };
    let power = Arc::new(Power::new(disks, task.seed, copies, owner.try_clone()?));
    let mut config = Config::default();
    // One that waits for ever, with the rest of them, for the power to come back.
    config.n_threads = Some(2);
    config.mount_options = vec![MountOption::FSName("volatile".to_owned())];
    let disks = Disks::new(Arc::clone(&power), task.media, task.lying, names);
    let numbers = disks.shared_numbers();
    let session = Session::new(disks, &task.mount, &config).and_then(Session::spawn);
    let _session = match session {
        Ok(session) => session,
        Err(error) => {
            writeln!(&owner, "skipped: cannot mount: {error}")?;
            return Ok(());
        }
    };
    writeln!(&owner, "ready")?;
    for line in lines {
        match serde_json::from_str(&line?)? {
            Order::Cut(left) => power.cut_after(left)?,
            Order::Fault(name, fault) => {
                let number = numbers.lock().unwrap_or_else(PoisonError::into_inner);
                let number = *number.get(OsStr::new(&name)).context("no such disk")?;
                power.set_fault(number, fault)?;
            }
        }
    }
    unmount(&task.mount);
    // Not all threads end: without power they wait for ever.
    std::process::exit(0)
}
