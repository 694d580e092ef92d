// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads that answer the kernel, and how they can be killed.
//!
//! Whoever syncs a FUSE file, or closes it, waits for its server, and no signal ends that wait. The
//! server is this process: were it killed in the midst of a sync, the workers would be gone, and the
//! wait for ever. The kernel fails all that waits for a server once the server's last fd is
//! closed; but a process closes its fds when its last thread ends, which is the one that waits.
//!
//! So the workers have a table of fds of their own: a copy of everybody's, made before there is the
//! file, and with the server's fd, which nobody else has. Killed, they end, their table goes, and
//! whoever waits is told.
#![allow(unsafe_code, reason = "a table of fds of some threads' own is nothing that Rust knows of")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use fuser::{BackgroundSession, Config, Notifier, Session, SessionACL};
use pfn_blk::NrPages;
use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use super::confinement::{ServedThread, confine};
use super::filesystem::RegionFile;
use super::layers::Layers;
use super::mount::{Mounted, Place};
use super::openings::Openings;
use super::publication::{Permissions, Publication};
use super::{ServeWindowError, Served, dirty_limit};

/// Enough for those that wait for a disk not to hold up others.
const WORKERS: usize = 4;

/// What is done in the workers' table of fds.
pub(super) type Job = Box<dyn FnOnce(&Notifier) + Send>;

/// What was begun.
pub(super) struct Begun {
    /// The file, opened twice: to be synced, and for frontends.
    pub(super) files: [File; 2],
    /// Done one after another. When it is closed, and all who have the file open have closed it,
    /// the thread ends.
    pub(super) jobs: Sender<Job>,
    pub(super) thread: JoinHandle<()>,
}

/// Begins to serve a region as a file of `size`, and to publish it.
///
/// The workers use fds as they are now, so what is served must have opened all that it will; but
/// for what a job opens, which is closed by a job, or at the end of it all.
pub(super) fn begin(
    served: &Served,
    size: NrPages,
    publication: Option<&Publication>,
) -> Result<Begun, ServeWindowError> {
    let (ready, is_ready) = channel();
    let (jobs, work) = channel();
    let permissions = publication.map_or_else(Permissions::of_fds, |one| one.permissions);
    let (layers, openings) = (Arc::clone(&served.layers), Arc::clone(&served.openings));
    let filesystem = RegionFile::new(served, size, permissions);
    let publish = publication.map(|one| one.path().to_owned());
    let thread = std::thread::Builder::new()
        .name("served window".to_owned())
        .spawn(move || {
            run(filesystem, &layers, publish.as_deref(), &ready, &work);
            layers.close();
        })
        .map_err(ServeWindowError::Session)?;
    match open_twice(&is_ready, &openings) {
        Ok(files) => Ok(Begun { files, jobs, thread }),
        Err(error) => {
            drop(jobs);
            // Nobody has the file open, so it ends; and its copy of the region before the caller's.
            let _ = thread.join();
            Err(error)
        }
    }
}

/// A file's path, what to drop when it is open, and what is closed when nothing else is to be done.
type Ready = (PathBuf, Sender<()>, Receiver<()>);

/// Opens the file, once there is one to open.
fn open_twice(
    is_ready: &Receiver<Result<Ready, ServeWindowError>>,
    openings: &Openings,
) -> Result<[File; 2], ServeWindowError> {
    let gone = || ServeWindowError::Session(io::Error::other("its thread is gone"));
    let (root, opened, settled) = is_ready.recv().map_err(|_| gone())??;
    let open = || -> io::Result<File> {
        // The kernel asks for owner and size now: until then a root has none of its own.
        std::fs::metadata(&root)?;
        Ok(rustix::fs::open(&root, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?.into())
    };
    let open = || open().map_err(ServeWindowError::Open);
    openings.expect(rustix::thread::gettid().as_raw_pid().unsigned_abs());
    let synced = open()?;
    openings.expect_none();
    let files = [synced, open()?];
    drop(opened);
    // It is left behind confined.
    let _ = settled.recv();
    Ok(files)
}

/// In a thread of its own: serves until nobody has the file open any more.
fn run(
    filesystem: RegionFile,
    layers: &Layers,
    publish: Option<&Path>,
    ready: &Sender<Result<Ready, ServeWindowError>>,
    work: &Receiver<Job>,
) {
    match serve(filesystem, layers, publish) {
        Err(error) => {
            // Whoever began this listens.
            let _ = ready.send(Err(error));
        }
        Ok((session, path, place)) => {
            let (opened, is_opened) = channel();
            let (settled, is_settled) = channel();
            let _ = ready.send(Ok((path, opened, is_settled)));
            // It is opened, or they gave up.
            let _ = is_opened.recv();
            drop(place);
            confine(ServedThread::Layers);
            drop::<Sender<()>>(settled);
            let notifier = session.notifier();
            work.iter().for_each(|job| job(&notifier));
            if let Err(error) = session.join() {
                tracing::error!(%error, "the served window ended");
            }
        }
    }
}

/// Has this thread, and those that it starts, take no signals. A handler that runs in one of them
/// doesn't find the fds that it was made with: one that writes to a pipe wakes nobody. But for
/// SIGSYS, which a thread has sent itself, and whose handler says why the process ends.
fn block_signals() -> io::Result<()> {
    // SAFETY: a set of signals is plain numbers, and any are valid; it is filled before it is used.
    // The mask is this thread's own, and blocking harms nobody's memory.
    let result = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigdelset(&mut all, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Begins the workers, from a thread that is confined as they are to be.
fn spawn_confined(session: Session<RegionFile>) -> io::Result<BackgroundSession> {
    let spawn = || {
        confine(ServedThread::Worker);
        session.spawn()
    };
    let begun = std::thread::scope(|scope| scope.spawn(spawn).join());
    begun.unwrap_or_else(|_| Err(io::Error::other("the workers can't be begun")))
}

fn serve(
    filesystem: RegionFile,
    layers: &Layers,
    publish: Option<&Path>,
) -> Result<(BackgroundSession, PathBuf, Place), ServeWindowError> {
    block_signals().map_err(ServeWindowError::Session)?;
    // SAFETY: no thread may use an fd of another's table. This thread, and the workers that it
    // starts, use those that the region's stores hold, which are open in their copy of the table
    // under the same numbers, as they were opened before; and those that are opened here, of the
    // device and of layers, which are closed here, too: nobody else holds them. The copies go with
    // the table, when all of these have ended; the region itself is dropped by whoever began this,
    // after that.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }
        .map_err(|errno| ServeWindowError::Session(errno.into()))?;
    // Before anyone can look.
    layers.restore()?;
    let Mounted { device, path, place } = Mounted::new(publish)?;
    if let Err(error) = dirty_limit::become_flusher() {
        tracing::debug!(%error, "the workers are not flushers");
    }
    let mut config = Config::default();
    config.n_threads = Some(WORKERS);
    let session = Session::from_fd(filesystem, device, SessionACL::All, config);
    let session = session.and_then(spawn_confined).map_err(ServeWindowError::Session)?;
    if let Err(error) = dirty_limit::lift(&path) {
        tracing::debug!(%error, "the guest is slowed down when it has stored much and not flushed");
    }
    Ok((session, path, place))
}
