// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is tried from within a sandbox.
#![allow(unsafe_code, reason = "what is tried is what no safe code does")]

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use rustix::net::{AddressFamily, SocketType};

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done.
    Done,
    /// The kernel would not.
    Refused(i32),
    /// It ended the process.
    Killed,
}

/// What is there before the sandbox is entered.
pub(crate) struct Prepared {
    dir: PathBuf,
    open: File,
}

impl Prepared {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), open: File::create(dir.join("files/open")).unwrap() }
    }
}

type Attempt = fn(&Prepared) -> io::Result<()>;

/// The attempts, by name.
pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read-outside", |it| File::open(it.dir.join("outside/file")).map(drop)),
    ("make-file", |it| File::create_new(it.dir.join("files/new")).map(drop)),
    ("remove-socket", |it| fs::remove_file(it.dir.join("sockets/file"))),
    ("remove-outside", |it| fs::remove_file(it.dir.join("outside/file"))),
    ("rename", |it| fs::rename(it.dir.join("files/file"), it.dir.join("files/other"))),
    ("chmod", |it| {
        checked(path(&it.dir, |path| {
            call(libc::SYS_fchmodat, [libc::AT_FDCWD.into(), path, 0o777])
        }))
    }),
    ("sync", |it| it.open.sync_data()),
    ("unix-socket", |_| socket(AddressFamily::UNIX)),
    ("inet-socket", |_| socket(AddressFamily::INET)),
    ("tcp-connect", |_| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 9))).map(drop)),
    ("listen", |it| checked(call(libc::SYS_listen, [it.open.as_raw_fd().into(), 1, 0]))),
    ("execute", |_| {
        checked(path(Path::new("/bin/true"), |path| call(libc::SYS_execve, [path, 0, 0])))
    }),
    ("fork", |_| {
        // Not libc's, of which newer ones block all signals meanwhile, and so what is said of it.
        // SAFETY: the child, should there be one, does nothing but end.
        match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: it ends without running anything of the parent's.
            0 => unsafe { libc::_exit(0) },
            _ => Ok(()),
        }
    }),
    ("ptrace", |_| checked(call(libc::SYS_ptrace, [0, 0, 0]))),
    ("mount", |it| {
        // One that harms nobody, should it be done.
        let tmpfs = c"tmpfs".as_ptr();
        checked(path(&it.dir, |path| {
            // SAFETY: the strings live until it returns.
            unsafe { libc::syscall(libc::SYS_mount, tmpfs, path, tmpfs, 0, 0) }
        }))
    }),
    ("unshare", |_| checked(call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0]))),
    ("become-root", |_| checked(call(libc::SYS_setuid, [0, 0, 0]))),
    ("run-memory", |_| map(libc::PROT_READ | libc::PROT_EXEC).map(drop)),
    ("make-memory-runnable", |_| {
        let page = map(libc::PROT_READ)?;
        checked(call(libc::SYS_mprotect, [page, 4096, (libc::PROT_READ | libc::PROT_EXEC).into()]))
    }),
    ("terminal", |_| {
        let injected = c"x".as_ptr();
        // SAFETY: it reads a byte, which is there.
        checked(unsafe { libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSTI, injected) })
    }),
    ("signal-another", |_| {
        // SAFETY: it asks who that is, and whether it is there.
        checked(unsafe { libc::kill(libc::getppid(), 0) }.into())
    }),
    ("signal-another-thread", |_| {
        // SAFETY: it asks who that is.
        let parent = libc::c_long::from(unsafe { libc::getppid() });
        checked(call(libc::SYS_tgkill, [parent, parent, 0]))
    }),
    ("io-uring", |_| checked(call(libc::SYS_io_uring_setup, [1, 0, 0]))),
    ("thread", |_| std::thread::scope(|scope| scope.spawn(|| Ok(())).join().unwrap())),
    ("allocate", |_| {
        // More than an allocator has at hand, and grown once.
        let mut bytes = vec![1u8; 64 << 20];
        bytes.resize(bytes.len() * 2, 2);
        std::hint::black_box(&bytes);
        Ok(())
    }),
    ("panic", |_| {
        let result = std::thread::spawn(|| panic!("with a backtrace")).join();
        assert!(result.is_err());
        Ok(())
    }),
    ("log", |_| {
        eprintln!("{:?}", std::time::SystemTime::now());
        std::thread::sleep(std::time::Duration::from_millis(1));
        Ok(())
    }),
];

fn socket(family: AddressFamily) -> io::Result<()> {
    Ok(rustix::net::socket(family, SocketType::STREAM, None).map(drop)?)
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> libc::c_long {
    let [a, b, c] = arguments;
    // SAFETY: none of those that are made here touches this process's memory, but for a path that
    // is read, or a page that was mapped for it.
    unsafe { libc::syscall(number, a, b, c) }
}

/// Hands `path` to a call, as a string of C's.
fn path(path: &Path, call: impl FnOnce(libc::c_long) -> libc::c_long) -> libc::c_long {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    call(address(path.as_ptr()))
}

/// An address as an argument of a call.
fn address<T>(pointer: *const T) -> libc::c_long {
    pointer.expose_provenance().try_into().unwrap()
}

fn map(access: libc::c_int) -> io::Result<libc::c_long> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever there is room.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(address(page))
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
