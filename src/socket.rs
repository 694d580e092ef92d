// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket that frontends connect to.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};
use tracing::info;

use crate::cli::EndpointArgs;
use crate::relay;
use crate::sandbox::{Options, owned_by};
use crate::user::User;

/// Where frontends come from.
pub(crate) struct Endpoint {
    listener: UnixListener,
    /// Whether there will be but one: the socket was inherited connected.
    single: bool,
    path: Option<PathBuf>,
    /// What was bound, until somebody else sees to its removal.
    bound: Option<Bound>,
}

/// A socket's place among files, and the inode that makes it ours.
pub(crate) struct Bound {
    path: PathBuf,
    /// Where it is, wherever the path may lead by then.
    directory: OwnedFd,
    inode: u64,
}

impl Bound {
    fn new(path: &Path, inode: u64) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory_of(&path), flags, Mode::empty())?;
        Ok(Self { path, directory, inode })
    }

    /// All that another process needs to know of it.
    pub(crate) fn argument(&self) -> OsString {
        let mut argument = OsString::from(format!("{}:", self.inode));
        argument.push(&self.path);
        argument
    }

    /// The other process' part.
    pub(crate) fn parse(argument: &OsStr) -> anyhow::Result<Self> {
        let bytes = argument.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':').context("no inode")?;
        let inode = std::str::from_utf8(&bytes[..colon])?.parse()?;
        Ok(Self::new(Path::new(OsStr::from_bytes(&bytes[colon + 1..])), inode)?)
    }

    /// Removes it, unless another process has made the path its own. Left behind it would only be
    /// stale.
    pub(crate) fn remove(&self) {
        let Some(name) = self.path.file_name() else { return };
        let found = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| found.st_ino == self.inode) {
            let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty());
        }
    }
}

impl Endpoint {
    /// None if none was asked for.
    pub(crate) fn open(args: &EndpointArgs, sandbox: Options) -> anyhow::Result<Option<Self>> {
        match (&args.socket_path, args.fd) {
            (Some(path), _) => {
                let bound = bind(path, sandbox.user);
                bound.with_context(|| format!("cannot listen on {}", path.display())).map(Some)
            }
            (None, Some(fd)) => {
                inherit(fd, sandbox).with_context(|| format!("cannot use --fd {fd}")).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    /// Listens at `path`, for processes of `user`, or else of ours, alone.
    pub(crate) fn control(path: &Path, user: Option<User>) -> anyhow::Result<Self> {
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let bound =
            bind(path, user).with_context(|| format!("cannot listen on {}", path.display()));
        rustix::process::umask(before);
        bound
    }

    /// Whether the first frontend is also the last.
    pub(crate) fn is_single(&self) -> bool {
        self.single
    }

    pub(crate) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// What is to be removed at the end, for others to do: dropping the endpoint doesn't any more.
    pub(crate) fn leave(&mut self) -> Option<Bound> {
        self.bound.take()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.bound.iter().for_each(Bound::remove);
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("inherited"),
        }
    }
}

/// Listens at `path`, with a socket of `user`'s, or else of ours.
fn bind(path: &Path, user: Option<User>) -> anyhow::Result<Endpoint> {
    let bind = || match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => replace_stale(path),
        bound => Ok(bound?),
    };
    let listener = owned_by(user, bind)??;
    let inode = fs::symlink_metadata(path)?.ino();
    let bound = Some(Bound::new(path, inode)?);
    Ok(Endpoint { listener, single: false, path: Some(path.to_owned()), bound })
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Binds a path that exists, if it is a socket that nobody listens on any more.
fn replace_stale(path: &Path) -> anyhow::Result<UnixListener> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        bail!("there is a file of that name, and it isn't a socket");
    }
    // Two daemons that find the same stale socket must not unlink each other's new one.
    let directory = File::open(directory_of(path)).context("cannot open its directory")?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process listens there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            info!(path = %path.display(), "replaced the socket that a dead process left behind");
            Ok(UnixListener::bind(path)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[allow(unsafe_code, reason = "an inherited fd is a number until someone says it is owned")]
fn inherit(fd: RawFd, sandbox: Options) -> anyhow::Result<Endpoint> {
    if fd <= 2 {
        bail!("0, 1 and 2 are standard input, output and error");
    }
    if !Path::new(&format!("/proc/self/fd/{fd}")).exists() {
        bail!("no such file descriptor was inherited");
    }
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns. It is open, as was just seen,
    // and whoever started this process handed it over by naming it; this runs once, before
    // anything else in the process opens an fd that could have its number.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Not for the processes that this one starts: a frontend is to see it end.
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    let listens = check_socket(&fd)?;
    let listener = if listens { fd.into() } else { relay::listen(fd.into(), sandbox)? };
    let single = !listens;
    Ok(Endpoint { listener, single, path: None, bound: None })
}

/// Whether an inherited socket listens; an error if it is none that frontends can come from.
fn check_socket(fd: &OwnedFd) -> anyhow::Result<bool> {
    let Ok(listens) = sockopt::socket_acceptconn(fd) else { bail!("not a socket") };
    let family = sockopt::socket_domain(fd)?;
    if family != AddressFamily::UNIX {
        bail!(
            "a socket of address family {}, not a Unix socket, which alone carries file descriptors",
            family.as_raw()
        );
    }
    let kind = sockopt::socket_type(fd)?;
    if kind != SocketType::STREAM {
        bail!("a Unix socket of type {}, not SOCK_STREAM", kind.as_raw());
    }
    if !listens && getpeername(fd).is_err() {
        bail!("a Unix socket that neither listens nor is connected");
    }
    Ok(listens)
}
