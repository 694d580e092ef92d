// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SIGTERM, SIGINT, SIGHUP and the death of the process that started this one: finish what is in flight,
//! and end.
//!
//! SIGHUP is what a terminal sends when it is closed. It isn't waited for in a member of a fleet, where
//! it is for the process that keeps it, nor where whoever started this one has it ignored, as nohup(1)
//! does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use tracing::info;
use vhost_pmem::Device;

use crate::sandbox::Pass;

/// What tells that the process that started this one is gone. As its threads end, Linux passes this
/// process on from one to the next, and sends it this each time; so a second one means nothing.
pub(crate) const PARENT_DIED: Signal = Signal::USR1;

/// Has the process end on a signal, with success, once the flushes that were taken are answered
/// and `tidy` was called. A second signal ends it at once, should the storage hang.
pub(crate) fn on_signal(
    device: Arc<Device>,
    is_member: bool,
    pass: Pass,
    tidy: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let ending = Arc::new(AtomicBool::new(false));
    let hangs_up = !is_member && !is_ignored(SIGHUP);
    let ends: &[_] = if hangs_up { &[SIGTERM, SIGINT, SIGHUP] } else { &[SIGTERM, SIGINT] };
    for &signal in ends {
        // In this order: the first signal finds the flag unset, and sets it.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&ending))?;
        flag::register(signal, Arc::clone(&ending))?;
    }
    let mut signals = Signals::new(ends.iter().copied().chain([PARENT_DIED.as_raw()]))?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        pass.enter();
        let signal = signals.forever().next();
        info!(signal, "ending");
        let _answered = device.quiesce();
        device.withdraw();
        device.write_back();
        tidy();
        std::process::exit(0);
    })?;
    Ok(())
}

/// Whether a signal is ignored since this process was started. Not if that can't be found out.
fn is_ignored(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
