// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SIGINT and SIGTERM: what has ended so far is told, and neither guest nor daemon is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::register;

/// Whether one of the signals came.
#[derive(Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes note of the signals from now on. None ends the process any more.
    pub(crate) fn on_signals() -> Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            register(signal, Arc::clone(&came))?;
        }
        Ok(Self(came))
    }

    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Does as a signal does.
    #[cfg(test)]
    pub(crate) fn come(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
