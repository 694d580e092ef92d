// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What becomes of a system call that a thread must not make: a line that says which, and the end.
//!
//! The kernel could end the process by itself, and nobody would learn why.
#![allow(unsafe_code, reason = "a signal handler")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_int, c_void, siginfo_t};

/// Has SIGSYS end the process with a word on why.
pub(super) fn install() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigsys;
    // SAFETY: all zeroes are a `sigaction`: no handler, no flags and an empty set of signals.
    // `sigaction` wants one that is filled in, with a handler of the kind that the flags say, which
    // is safe to run at any time: see there.
    let result = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where the kernel puts the call's number: behind three ints, padding and a pointer.
#[repr(C)]
struct Sigsys {
    head: [c_int; 3],
    call_addr: *const c_void,
    syscall: c_int,
}

/// Takes no lock, allocates nothing and panics nowhere: it calls what may be called in a handler
/// (signal-safety(7)), all of which every role has.
extern "C" fn on_sigsys(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`, which is larger than
    // what is read; of a signal that somebody has sent it is some number.
    let call = unsafe { (*info.cast::<Sigsys>()).syscall };
    let mut name = [0u8; 16];
    // SAFETY: it fills 16 bytes, those of `name`.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut line = Line { bytes: [0; 160], len: 0 };
    line.add(b"vhost-pmemd: the sandbox ends the process: thread \"");
    line.add(name.split(|byte| *byte == 0).next().unwrap_or_default());
    line.add(b"\" made system call ");
    line.add_number(call.unsigned_abs());
    line.add(b", which it has no use for; --seccomp log lets it pass\n");
    // SAFETY: `write` reads what the line has. The others want nothing: the signal that is raised
    // comes when this returns, and nothing catches it any more.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// A line, without an allocator.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn add_number(&mut self, number: u32) {
        let mut digits = [0u8; 10];
        let mut left = number;
        let mut begin = digits.len();
        while begin > 0 {
            begin -= 1;
            digits[begin] = b'0' + u8::try_from(left % 10).unwrap_or_default();
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.add(&digits[begin..]);
    }
}
