// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which system calls a thread may make: seccomp.
//!
//! The lists are what was seen by strace(1) and the test-suites, and what the C library and Rust's
//! own may do in their place: allocate, begin threads, log, panic. The kernel remembers the calls
//! that are allowed whatever their arguments, so that those cost next to nothing.

use std::collections::BTreeMap;

use anyhow::Context;
use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::landlock::Reach;
use super::trap;

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Serves frontends: requests, queues, flushes.
    Device,
    /// Answers the kernel for a served window.
    Worker,
    /// Takes and merges snapshots of a served window.
    Layers,
    /// Carries messages from one socket to another.
    Relay,
    /// Does what operators ask for.
    Operator,
    /// Tells of the device in figures.
    Metrics,
    /// Waits for signals, and ends the daemon.
    Signals,
    /// Copies what a mirror's legs differ in.
    Resync,
    /// Does what operators ask of a fleet, by asking its members.
    Fleet,
}

impl Role {
    /// All that a thread of this role may call, whatever the arguments.
    fn calls(self) -> impl Iterator<Item = &'static [c_long]> {
        let own: &[&[c_long]] = match self {
            Self::Device => &[STORES, FRONTENDS, MESSAGES],
            Self::Worker | Self::Resync => &[STORES, LABELS],
            Self::Layers => &[STORES, LABELS, FILES, REMOVAL],
            Self::Relay => &[MESSAGES],
            Self::Operator => &[STORES, LABELS, FILES, REMOVAL, MESSAGES, FIGURES],
            Self::Metrics => &[STORES, MESSAGES, FIGURES],
            Self::Signals => &[STORES, WAKING],
            Self::Fleet => &[MESSAGES, FIGURES],
        };
        [ALWAYS].into_iter().chain(own.iter().copied())
    }

    /// Which files it may open or remove.
    pub(super) fn reach(self) -> Reach {
        match self {
            Self::Layers | Self::Operator => Reach::Files,
            Self::Device
            | Self::Worker
            | Self::Relay
            | Self::Metrics
            | Self::Signals
            | Self::Resync
            | Self::Fleet => Reach::Nothing,
        }
    }
}

/// What becomes of a call that a thread must not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// It is made, and noted in the kernel's log.
    Log,
    /// The process ends, and says why.
    Kill,
}

/// Memory, threads, time, signals, what is open already, and the end.
const ALWAYS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Reading, writing and syncing stores.
const STORES: &[c_long] = &[
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sync_file_range,
];

/// What a mirror notes on its legs, which are open.
const LABELS: &[c_long] = &[libc::SYS_fgetxattr, libc::SYS_fremovexattr, libc::SYS_fsetxattr];

/// What a frontend gives is mapped, waited for and signalled.
const FRONTENDS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    // Whether guest memory is of huge pages.
    libc::SYS_fstatfs,
    // Of a member, which ends with its fleet.
    libc::SYS_getppid,
    // Where a frontend gives no fd.
    libc::SYS_memfd_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Sockets that are connected, or listen.
const MESSAGES: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
];

/// Reading the socket that signals' handlers write to.
const WAKING: &[c_long] = &[libc::SYS_recvfrom];

/// What a process takes, and what is cached of its files.
const FIGURES: &[c_long] = &[CACHESTAT, libc::SYS_getdents64, libc::SYS_pread64];

/// The same on all architectures; the C library's bindings don't have it yet.
const CACHESTAT: c_long = 451;

/// Opening and making files; Landlock says which.
const FILES: &[c_long] = &[libc::SYS_flock, libc::SYS_fstatfs, libc::SYS_ftruncate];

/// Removing files; Landlock says which.
const REMOVAL: &[c_long] = &[
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Opening anything, and finding out where it is. A role that opens nothing is told so and goes on:
/// a panic's backtrace, or the C library, may try.
const OPENING: &[c_long] = &[
    libc::SYS_getcwd,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// Confines this thread to what `role` takes.
pub(super) fn filter(role: Role, violation: Violation) -> anyhow::Result<()> {
    let refused = match violation {
        Violation::Log => SeccompAction::Log,
        Violation::Kill => {
            trap::install().context("cannot handle SIGSYS")?;
            // Of several filters the strictest answer counts, and of these each has one.
            refuse(&[libc::SYS_clone3], libc::ENOSYS)?;
            if role.reach() != Reach::Files {
                refuse(OPENING, libc::EACCES)?;
            }
            SeccompAction::Trap
        }
    };
    let mut rules = conditional(role)?;
    let opening = [OPENING, &[libc::SYS_clone3]];
    rules.extend(role.calls().chain(opening).flatten().map(|call| (*call, Vec::new())));
    apply(rules, refused, SeccompAction::Allow)
}

/// Has `calls` fail with `errno`.
fn refuse(calls: &[c_long], errno: i32) -> anyhow::Result<()> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    apply(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn apply(rules: Rules, mismatch: SeccompAction, matched: SeccompAction) -> anyhow::Result<()> {
    let arch = std::env::consts::ARCH.try_into()?;
    let program: BpfProgram = SeccompFilter::new(rules, mismatch, matched, arch)?.try_into()?;
    apply_filter(&program).context("no seccomp on this kernel; --seccomp none does without")
}

/// The calls that are allowed with some arguments only.
fn conditional(role: Role) -> anyhow::Result<Rules> {
    let has = |group: &[c_long]| role.calls().any(|calls| calls == group);
    let mut rules = Rules::from([
        // Memory is never run.
        (libc::SYS_mmap, vec![all([lacks(2, libc::PROT_EXEC)])?]),
        (libc::SYS_mprotect, vec![all([lacks(2, libc::PROT_EXEC)])?]),
        // Threads; neither processes nor namespaces. The flags of `clone3` are in memory, which a
        // filter can't read, so that call is refused.
        (
            libc::SYS_clone,
            vec![all([has_of(0, NAMESPACES | libc::CLONE_THREAD, libc::CLONE_THREAD)])?],
        ),
        // To this process alone: what a panic or a handler does.
        (libc::SYS_tgkill, vec![all([is(0, std::process::id().into())])?]),
        // To the peer, with no address: a signal's handler does, in whichever thread that runs.
        (libc::SYS_sendto, vec![all([is_zero(4)])?]),
        (libc::SYS_ioctl, vec![all([is(1, libc::FIONBIO)])?]),
        (libc::SYS_fcntl, fcntl()?),
        (libc::SYS_prctl, each(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME])?),
    ]);
    if role == Role::Device {
        // A member's main thread asks for a signal at the end of its fleet.
        rules.entry(libc::SYS_prctl).or_default().extend(each(0, &[libc::PR_SET_PDEATHSIG])?);
    }
    if has(MESSAGES) {
        let known = [libc::SO_DOMAIN, libc::SO_TYPE, libc::SO_PEERCRED];
        rules.insert(libc::SYS_getsockopt, socket_options(&known)?);
        let timeouts = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];
        rules.insert(libc::SYS_setsockopt, socket_options(&timeouts)?);
    }
    if has(FIGURES) {
        // Limits of this process, which are read and never set.
        rules.insert(libc::SYS_prlimit64, vec![all([is(0, 0), is_zero(2)])?]);
    }
    if role == Role::Fleet {
        // A connection to a member: both ends are ours, and connected to each other.
        rules.insert(libc::SYS_socketpair, each(0, &[libc::AF_UNIX])?);
    }
    Ok(rules)
}

/// What `clone` makes a namespace with.
const NAMESPACES: c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Copies of fds, their flags, and seals. Left out is all that has the kernel send a signal –
/// `F_SETOWN`, `F_SETSIG`, `F_SETLEASE`, `F_NOTIFY`, and `O_ASYNC` – as that may be SIGKILL, and to
/// any process that our user may signal.
fn fcntl() -> anyhow::Result<Vec<SeccompRule>> {
    let harmless = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    let mut rules = each(1, &harmless)?;
    rules.push(all([is(1, bits(libc::F_SETFL)), lacks(2, libc::O_ASYNC)])?);
    Ok(rules)
}

/// `setsockopt` and `getsockopt` with some options of every socket's.
fn socket_options(options: &[c_int]) -> anyhow::Result<Vec<SeccompRule>> {
    let level = bits(libc::SOL_SOCKET);
    options.iter().map(|option| all([is(1, level), is(2, bits(*option))])).collect()
}

/// One rule for each of `values` that the argument `at` may be.
fn each(at: u8, values: &[c_int]) -> anyhow::Result<Vec<SeccompRule>> {
    values.iter().map(|value| all([is(at, bits(*value))])).collect()
}

/// What an argument must be: its place, and how it is compared.
type Condition = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);

/// One of C's constants, none of which is negative here.
fn bits(value: c_int) -> u64 {
    value.unsigned_abs().into()
}

fn is(at: u8, value: u64) -> Condition {
    (at, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// All 64 bits of it, as a pointer has.
fn is_zero(at: u8) -> Condition {
    (at, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

fn lacks(at: u8, mask: c_int) -> Condition {
    has_of(at, mask, 0)
}

/// Of the bits of `mask`, those of `value` and no others are set.
fn has_of(at: u8, mask: c_int, value: c_int) -> Condition {
    (at, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits(mask)), bits(value))
}

/// A rule that all `conditions` are needed for.
fn all<const N: usize>(conditions: [Condition; N]) -> anyhow::Result<SeccompRule> {
    let conditions = conditions
        .into_iter()
        .map(|(at, len, operator, value)| SeccompCondition::new(at, len, operator, value));
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}
