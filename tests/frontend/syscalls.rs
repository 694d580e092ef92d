// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's syncs as the kernel sees them: the file that it serves is on FUSE, and this process
//! the one that is asked to sync it.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyWrite,
    Request, Session, TimeOrNow, WriteFlags,
};
use guest_harness::Daemon;
use tempfile::TempDir;

use crate::store::Control;
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const SIZE: usize = 1 << 20;

/// A file in memory, whose syncs are under control.
struct ControlledFile {
    bytes: Mutex<Vec<u8>>,
    control: Arc<Control>,
}

fn attributes() -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo::ROOT,
        size: SIZE as u64,
        blocks: SIZE as u64 / 512,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0o600,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for ControlledFile {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(3600), &attributes());
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&Duration::from_secs(3600), &attributes());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = self.bytes.lock().unwrap();
        let from = usize::try_from(offset).unwrap().min(SIZE);
        let to = (from + size as usize).min(SIZE);
        reply.data(&bytes[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.control.sync() {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

/// Dropped in this order: what is mapped and dirty needs the session to be let go of.
struct Fixture {
    vmm: Vmm,
    daemon: Daemon,
    _session: BackgroundSession,
    control: Arc<Control>,
    dir: TempDir,
}

impl Fixture {
    /// A VMM on the daemon on a file of ours; none where there is no FUSE to be had.
    fn new() -> Option<Self> {
        Self::with_args(&[])
    }

    fn with_args(args: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let control = Arc::new(Control::default());
        let served =
            ControlledFile { bytes: Mutex::new(vec![0; SIZE]), control: Arc::clone(&control) };
        let mut config = Config::default();
        // Reads must not wait for a sync that is held.
        config.n_threads = Some(2);
        config.mount_options = vec![MountOption::FSName("controlled".to_owned())];
        let session = Session::new(served, &file, &config).and_then(Session::spawn);
        let session = session.map_err(|error| eprintln!("skipped: cannot mount: {error}")).ok()?;
        let control_path = dir.path().join("control");
        let paths =
            ["--file".as_ref(), file.as_os_str(), "--control".as_ref(), control_path.as_os_str()];
        let args = args.iter().map(AsRef::as_ref).chain(paths);
        let daemon = Daemon::start(DAEMON, args);
        let daemon = daemon.unwrap();
        let vmm = Vmm::start(daemon.socket(), Abilities::default());
        let mut fixture = Self { vmm, daemon, _session: session, control, dir };
        assert_eq!(fixture.vmm.driver.flush(), 0);
        Some(fixture)
    }

    fn operate(&self, command: &str) -> io::Result<bool> {
        let control: PathBuf = self.dir.path().join("control");
        Ok(Command::new(DAEMON)
            .args([command, "--control"])
            .arg(control)
            .output()?
            .status
            .success())
    }
}

#[test]
fn flush_submitted_while_a_sync_runs_causes_another_fsync() {
    let Some(mut fixture) = Fixture::new() else { return };
    let Fixture { vmm, control, .. } = &mut fixture;
    let before = control.syncs();
    control.hold();
    vmm.driver.add_flush(0);
    vmm.driver.publish();
    control.wait_for_syncs(before + 1);
    // These stores come too late for the sync that runs, and so do the flushes behind them.
    vmm.store(4096, &[7; 4096]);
    vmm.driver.add_flush(1);
    vmm.driver.add_flush(2);
    vmm.driver.publish();
    assert_eq!(vmm.driver.answers(), 0);
    control.release();
    for _ in 0..3 {
        assert_eq!(vmm.driver.answer().1, 4);
    }
    assert_eq!([0, 1, 2].map(|slot| vmm.driver.status(slot)), [0; 3]);
    assert_eq!(control.syncs(), before + 2);
}

#[test]
fn syncs_are_no_more_than_the_limit_has_it() {
    let Some(mut fixture) = Fixture::with_args(&["--max-syncs", "50"]) else { return };
    let Fixture { vmm, control, .. } = &mut fixture;
    let (before, began) = (control.syncs(), Instant::now());
    for _ in 0..100 {
        for slot in 0..4 {
            vmm.driver.add_flush(slot);
        }
        vmm.driver.publish();
        (0..4).for_each(|_| assert_eq!(vmm.driver.answer().1, 4));
    }
    let (syncs, took) = (control.syncs() - before, began.elapsed());
    // Five at once, and then fifty a second; and each of those that were waited for.
    assert!(syncs >= 100 && syncs as f64 <= 6.0 + 50.0 * took.as_secs_f64(), "{syncs} in {took:?}");
}

#[test]
fn fsync_that_fails_is_not_forgotten_and_not_repeated() {
    let Some(mut fixture) = Fixture::new() else { return };
    fixture.vmm.store(4096, &[7; 4096]);
    fixture.control.set_failing(true);
    assert_eq!(fixture.vmm.driver.flush(), -1);
    // Not while it fails still.
    assert!(!fixture.operate("clear-failure").unwrap());
    fixture.control.set_failing(false);
    let before = fixture.control.syncs();
    for _ in 0..3 {
        assert_eq!(fixture.vmm.driver.flush(), -1);
    }
    assert_eq!(fixture.control.syncs(), before, "a sync that succeeded now would lie");
    assert_eq!(fixture.daemon.log().matches("flush failed").count(), 1);
    assert!(fixture.operate("clear-failure").unwrap());
    assert_eq!(fixture.vmm.driver.flush(), 0);
}
