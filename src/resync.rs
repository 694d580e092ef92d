// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making mirrors whole, while they are served.

use std::error::Error;
use std::io;
use std::sync::Arc;

use pfn_blk::table::Position;
use pfn_blk::{Access, Mirror, Target};
use tracing::{info, warn};

use crate::sandbox::Pass;

/// Brings up the legs of `mirrors` that may differ, one mirror after another.
pub(crate) fn begin(mirrors: Vec<(Position, Arc<Mirror>)>, pass: Pass) -> io::Result<()> {
    if mirrors.is_empty() {
        return Ok(());
    }
    let all = move || {
        pass.enter();
        mirrors.iter().for_each(|(position, mirror)| make_whole(*position, mirror));
    };
    std::thread::Builder::new().name("resync".to_owned()).spawn(all)?;
    Ok(())
}

/// Brings up the legs of `mirror` that may differ. How that went is logged.
pub(crate) fn make_whole(position: Position, mirror: &Mirror) {
    let before = mirror.status();
    if (before.stale == 0 && before.is_healthy()) || mirror.access() == Access::ReadOnly {
        return;
    }
    info!(%position, regions = before.stale, "mirror: copying what the legs may differ in");
    match mirror.resync() {
        Ok(status) if status.is_healthy() => {
            info!(%position, "mirror: all legs are the same");
        }
        Ok(_) => warn!(%position, "mirror: a leg failed while it was brought up"),
        Err(error) => {
            warn!(%position, error = &error as &dyn Error, "mirror: cannot be made whole");
        }
    }
}
