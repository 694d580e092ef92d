// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is tried from within a sandbox.
#![allow(unsafe_code, reason = "what is tried is what no safe code does")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, UnixStream};
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
    socket: UnixStream,
    peer: UnixStream,
}

impl Prepared {
    pub(crate) fn new(dir: &Path) -> Self {
        let (socket, peer) = UnixStream::pair().unwrap();
        let open = File::create(dir.join("files/open")).unwrap();
        Self { dir: dir.to_owned(), open, socket, peer }
    }
}

/// Names, in the environment, a process that some attempts are aimed at.
pub(crate) const VICTIM: &str = "SANDBOX_VICTIM";

/// Which signal an fd's owner is sent; fcntl(2).
const F_SETSIG: libc::c_int = 10;

/// The version of Landlock's interface that this kernel has; 0 if it has none.
pub(crate) fn landlock_version() -> libc::c_long {
    // SAFETY: it asks for a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) }.max(0)
}

type Attempt = fn(&Prepared) -> io::Result<()>;

/// The attempts, by name.
pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read-outside", |it| File::open(it.dir.join("outside/file")).map(drop)),
    ("make-file", |it| File::create_new(it.dir.join("files/new")).map(drop)),
    ("remove-file", |it| fs::remove_file(it.dir.join("files/file"))),
    ("remove-outside", |it| fs::remove_file(it.dir.join("outside/file"))),
    ("rename", |it| fs::rename(it.dir.join("files/file"), it.dir.join("files/other"))),
    ("chmod", |it| {
        checked(path(&it.dir, |path| {
            call(libc::SYS_fchmodat, [libc::AT_FDCWD.into(), path, 0o777])
        }))
    }),
    ("sync", |it| it.open.sync_data()),
    ("unix-socket", |_| socket(AddressFamily::UNIX)),
    ("socket-pair", |_| UnixStream::pair().map(drop)),
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
    ("own-fd-by-another", |it| {
        // SAFETY: it asks who that is.
        let parent = libc::c_long::from(unsafe { libc::getppid() });
        fcntl(it, libc::F_SETOWN, parent)
    }),
    ("choose-signal-of-fd", |it| fcntl(it, F_SETSIG, libc::SIGURG.into())),
    ("kill-by-fd", |it| {
        // What is done is seen by the victim.
        let victim = std::env::var(VICTIM).unwrap().parse().unwrap();
        fcntl(it, libc::F_SETOWN, victim)?;
        fcntl(it, F_SETSIG, libc::SIGKILL.into())?;
        fcntl(it, libc::F_SETFL, libc::O_ASYNC.into())?;
        (&it.peer).write_all(b"x")
    }),
    ("begin-signals-of-fd", |it| fcntl(it, libc::F_SETFL, libc::O_ASYNC.into())),
    ("begin-signals-by-ioctl", |it| ioctl(it, 0x5452)),
    ("own-fd-by-ioctl", |it| ioctl(it, 0x8901)),
    ("lease", |it| fcntl(it, libc::F_SETLEASE, libc::F_UNLCK.into())),
    ("fd-flags", |it| {
        let copy = it.open.try_clone()?;
        fcntl(it, libc::F_GETFD, 0)?;
        fcntl(it, libc::F_SETFL, libc::O_NONBLOCK.into())?;
        drop(copy);
        Ok(())
    }),
    ("limit-of-another", |_| {
        // SAFETY: it asks who that is.
        let parent = libc::c_long::from(unsafe { libc::getppid() });
        limit(parent, ptr::null())
    }),
    ("set-limit", |_| {
        let limit = libc::rlimit { rlim_cur: 1 << 10, rlim_max: 1 << 10 };
        self::limit(0, &raw const limit)
    }),
    ("read-limit", |_| limit(0, ptr::null())),
    ("filter-socket", |it| {
        let (fd, option) = (it.socket.as_raw_fd().into(), libc::SO_ATTACH_FILTER.into());
        // Without a filter it is refused at the latest when that is looked for.
        checked(call(libc::SYS_setsockopt, [fd, libc::SOL_SOCKET.into(), option, 0, 0]))
    }),
    ("send-to-another", |it| {
        let to = libc::sockaddr_un { sun_family: 1, sun_path: [0; 108] };
        let (fd, byte) = (it.socket.as_raw_fd().into(), address(c"x".as_ptr()));
        checked(call(libc::SYS_sendto, [fd, byte, 1, 0, address(&raw const to), 110]))
    }),
    ("send-to-peer", |it| {
        let (fd, byte) = (it.socket.as_raw_fd().into(), address(c"x".as_ptr()));
        checked(call(libc::SYS_sendto, [fd, byte, 1]))
    }),
    ("thread-in-namespace", |_| {
        let flags = libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM | libc::CLONE_NEWUSER;
        // Linux makes no thread of another user namespace than its process.
        checked(call(libc::SYS_clone, [flags.into()]))
    }),
    ("dump-memory", |_| checked(call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0]))),
    ("connect", |it| {
        let fd = it.socket.as_raw_fd().into();
        checked(call(libc::SYS_connect, [fd, 0, 0]))
    }),
    ("abstract-socket", |it| {
        let address = net::SocketAddr::from_abstract_name(it.dir.as_os_str().as_bytes())?;
        UnixStream::connect_addr(&address).map(drop)
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

fn fcntl(it: &Prepared, command: libc::c_int, argument: libc::c_long) -> io::Result<()> {
    let fd = it.socket.as_raw_fd().into();
    checked(call(libc::SYS_fcntl, [fd, command.into(), argument]))
}

/// One that has an int, which is zero.
fn ioctl(it: &Prepared, request: libc::c_long) -> io::Result<()> {
    let zero: libc::c_int = 0;
    let fd = it.socket.as_raw_fd().into();
    checked(call(libc::SYS_ioctl, [fd, request, address(&raw const zero)]))
}

/// Sets a limit of a process, if there is a new one, or else asks for it.
fn limit(process: libc::c_long, new: *const libc::rlimit) -> io::Result<()> {
    let resource = libc::RLIMIT_NOFILE.into();
    checked(call(libc::SYS_prlimit64, [process, resource, address(new)]))
}

/// Makes a call; the arguments that are not given are zero.
fn call<const N: usize>(number: libc::c_long, given: [libc::c_long; N]) -> libc::c_long {
    let mut arguments = [0; 6];
    arguments[..N].copy_from_slice(&given);
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: none of those that are made here touches this process's memory, but for what is read
    // of a path, an address or a limit, which is there until it returns, or a page that was mapped
    // for it.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
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
