// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that may go from under us.
//!
//! A guest's memory is a file of the frontend's, which can shrink it at any time. Whoever touches a
//! page that is gone gets SIGBUS, which would end this process. The handler here puts zeroes in the
//! place of a [`Watched`] range, so that the access goes on, and notes that the range is broken. Any
//! other SIGBUS ends the process, as it would have without.
#![allow(unsafe_code, reason = "a signal handler that replaces a mapping")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

/// A memory table has up to 32 ranges, and two are there while one replaces the other.
const RANGES_MAX: usize = 1024;

/// A place for a range. The handler may look at any time, so a place is taken by `taken`, filled, and
/// shown by a `len` that isn't zero, which goes first when it is given up.
struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    len: AtomicUsize,
    broken: AtomicBool,
}

static PLACES: [Place; RANGES_MAX] = [const {
    Place {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; RANGES_MAX];

/// A range of mapped memory that may go.
#[derive(Debug)]
pub(crate) struct Watched(usize);

impl Watched {
    /// Watches `len` bytes at `start`.
    ///
    /// # Safety
    ///
    /// They are whole pages of one mapping, which stays for as long as this lives, is reached as
    /// volatile memory only, and holds nothing whose loss would make another access unsound.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        install()?;
        let free = |place: &Place| !place.taken.swap(true, Ordering::SeqCst);
        let index = PLACES.iter().position(free);
        let index = index.ok_or_else(|| io::Error::other("too many ranges of guest memory"))?;
        let place = &PLACES[index];
        place.broken.store(false, Ordering::SeqCst);
        place.start.store(start.expose_provenance(), Ordering::SeqCst);
        place.len.store(len, Ordering::SeqCst);
        Ok(Self(index))
    }

    /// Whether something in it was gone.
    pub(crate) fn is_broken(&self) -> bool {
        PLACES[self.0].broken.load(Ordering::SeqCst)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let place = &PLACES[self.0];
        place.len.store(0, Ordering::SeqCst);
        place.taken.store(false, Ordering::SeqCst);
    }
}

/// Installs the handler, once for the process.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let failed = INSTALLED.get_or_init(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
        // SAFETY: all zeroes are a `sigaction`: no handler, no flags and an empty set of signals.
        // `sigaction` wants one that is filled in, with a handler of the kind that the flags say,
        // which is safe to run at any time: see there.
        let result = unsafe {
            let action = action.assume_init_mut();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigaction(libc::SIGBUS, action, ptr::null_mut())
        };
        if result == 0 { None } else { io::Error::last_os_error().raw_os_error() }
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// Takes no lock, allocates nothing and panics nowhere: it calls what may be called in a handler
/// (signal-safety(7)), `mmap`, which is a bare system call, and atomics.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`, whose address is set
    // where the signal is of an access, which `si_code` says.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // SAFETY: it points at a number of this thread's, which the code interrupted may be about to
    // read.
    let errno = unsafe { &mut *libc::__errno_location() };
    let kept = *errno;
    if code <= 0 || !replace(address) {
        // SAFETY: neither wants anything. The access is tried again, and ends the process; a signal
        // that somebody has sent is sent once more.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }
    *errno = kept;
}

/// Maps zeroes over the watched range that has `address`, all of it, as it may be of large pages.
/// Whether there is one.
fn replace(address: usize) -> bool {
    for place in &PLACES {
        let len = place.len.load(Ordering::SeqCst);
        let start = place.start.load(Ordering::SeqCst);
        if address.wrapping_sub(start) >= len {
            continue;
        }
        place.broken.store(true, Ordering::SeqCst);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let at = ptr::with_exposed_provenance_mut(start);
        // SAFETY: `Watched::new` was promised that the range is whole pages of a mapping that stays
        // while the range is watched, and which may be replaced. The thread that was interrupted
        // is accessing it, so its owner hasn't let go of it.
        let mapped = unsafe { libc::mmap(at, len, access, flags, -1, 0) };
        return mapped != libc::MAP_FAILED;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::Arc;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::{
        Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
        MmapRegion,
    };

    const SIZE: usize = 0x4000;

    fn memory() -> (File, GuestMemoryMmap, Watched) {
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(SIZE as u64).unwrap();
        let at = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = MmapRegion::from_file(at, SIZE).unwrap();
        let region = Arc::new(GuestRegionMmap::new(region, GuestAddress(0)).unwrap());
        let memory = GuestMemoryMmap::from_arc_regions(vec![region]).unwrap();
        let start = memory.iter().next().unwrap().as_ptr();
        // SAFETY: all of a mapping of a memory that is dropped last, and reached through it alone.
        let watched = unsafe { Watched::new(start, SIZE).unwrap() };
        (file, memory, watched)
    }

    #[test]
    fn watched_memory_that_is_gone_reads_as_zeroes_and_is_broken() {
        let (file, memory, watched) = memory();
        memory.write_obj(7u32, GuestAddress(0x1000)).unwrap();
        assert!(!watched.is_broken());
        file.set_len(0).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x1000)).unwrap(), 0);
        assert!(watched.is_broken());
        memory.write_obj(8u32, GuestAddress(0x3000)).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x3000)).unwrap(), 8);
    }

    #[test]
    fn watched_memory_beside_one_that_is_gone_is_kept() {
        let (file, gone, broken) = memory();
        let (_file, kept, whole) = memory();
        kept.write_obj(9u32, GuestAddress(0)).unwrap();
        file.set_len(0x1000).unwrap();
        gone.write_obj(1u32, GuestAddress(0x2000)).unwrap();
        assert_eq!((broken.is_broken(), whole.is_broken()), (true, false));
        assert_eq!(kept.read_obj::<u32>(GuestAddress(0)).unwrap(), 9);
    }

    #[test]
    fn place_that_is_given_up_is_taken_again_unbroken() {
        let (file, gone, broken) = memory();
        file.set_len(0).unwrap();
        gone.read_obj::<u32>(GuestAddress(0)).unwrap();
        assert!(broken.is_broken());
        drop(broken);
        for _ in 0..2 * RANGES_MAX {
            assert!(!memory().2.is_broken());
        }
    }
}
