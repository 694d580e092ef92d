// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! fio: writes blocks that carry their own checksums, by mappings and by system calls, and verifies
//! them; and once more after the filesystem was mounted again.

use crate::place::Place;
use crate::results::read_lines;
use crate::suite::Suite;

pub(crate) const SUITE: Suite = Suite {
    name: "fio",
    equip: |vm| Ok(vm.program("fio")),
    script,
    read: read_lines,
    operations: |_| Some(BLOCKS * (ENGINES.len() * PATTERNS.len()) as u64),
    cases_min: |_| 2 * ENGINES.len() * PATTERNS.len() + 1,
};

const ENGINES: [&str; 2] = ["mmap", "sync"];

/// What is written how: in order and at random.
const PATTERNS: [&str; 2] = ["write", "randwrite"];

/// Of 4 KiB each, in each file.
const BLOCKS: u64 = 4096;

fn script(place: Place) -> String {
    // Each pass reads what another one wrote by a name that has to be the same.
    place.filesystem.with_dax(&format!(
        "job() {{
            fio --name=job --ioengine=$1 --filename=/mnt/$1-$2 --rw=$2 --bs=4k --size={size}k \\
                --fsync=64 --verify=crc32c --verify_fatal=1 --randseed=1 $3
        }}
        pass() {{
            for engine in {engines}; do
                for pattern in {patterns}; do
                    if job $engine $pattern $2 >log 2>&1; then
                        echo ok $engine/$pattern/$1
                    else
                        cat log
                        echo \"FAIL $engine/$pattern/$1: see the lines before\"
                    fi
                done
            done
        }}
        pass written --do_verify=1
        umount /mnt
        mount -o dax=always /dev/pmem0 /mnt
        pass remounted --verify_only",
        size = BLOCKS * 4,
        engines = ENGINES.join(" "),
        patterns = PATTERNS.join(" "),
    ))
}
