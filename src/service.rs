// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Telling systemd how we are, where it started us: sd_notify(3).

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tracing::debug;

/// What children are not to have: it is this process that systemd listens to.
pub(crate) const ENVIRONMENT: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Lets this process have as many files open as it may: shells and systemd give 1024 to begin with, for
/// programs that use select(2).
pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            debug!(%error, "cannot raise the limit of open files");
        }
    }
}

/// Frontends may connect.
pub(crate) fn ready() {
    notify(NotifyState::Ready);
}

/// It is coming to an end, which may take some time.
pub(crate) fn stopping() {
    notify(NotifyState::Stopping);
}

/// How often it wants to hear of us, if at all.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// All is well.
pub(crate) fn alive() {
    notify(NotifyState::Watchdog);
}

fn notify(state: NotifyState) {
    // Nobody listens where we weren't started by systemd, and that is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        debug!(%error, "systemd can't be told");
    }
}
