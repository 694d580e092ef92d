// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! dax-behaviours, of this workspace: what filesystems on DAX promise of mappings, holes, clones and
//! more.

use std::time::Duration;

use guest_harness::{own_program, patience};

use crate::results::read_lines;
use crate::suite::Suite;

pub(crate) const SUITE: Suite = Suite {
    name: "dax-behaviours",
    equip: |vm| {
        Ok(vm.module("quota_v2").file(own_program("dax-behaviours")?, "usr/bin/dax-behaviours"))
    },
    // It makes its filesystems itself, and looks at each; it returns 1 for a case that failed.
    script: |place| {
        let filesystem = place.filesystem.name();
        // Emulated, a case takes seconds.
        let seconds = patience(Duration::from_secs(240)).as_secs();
        format!(
            "dax-behaviours /mnt --device /dev/pmem0 --fs {filesystem} --patience {seconds} || [ $? = 1 ]"
        )
    },
    read: read_lines,
    operations: |_| None,
    cases_min: |_| 130,
};
