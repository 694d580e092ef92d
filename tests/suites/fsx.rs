// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! fsx: random operations on one file, each read of it checked.
//!
//! Many short runs, not a long one: fsx 0.3 leaves each of its mappings for reading mapped, and all of
//! them have to be looked at for each page that is made durable or punched out, so that its
//! operations get slower and slower.

use guest_harness::crate_program;

use crate::place::{Place, Window};
use crate::results::read_lines;
use crate::suite::Suite;

pub(crate) const SUITE: Suite = Suite {
    name: "fsx",
    equip: |vm| Ok(vm.file(crate_program("fsx")?, "usr/bin/fsx")),
    script,
    read: read_lines,
    operations: |place| Some(kinds(place).iter().map(Kind::operations).sum()),
    cases_min: |place| kinds(place).iter().map(|kind| kind.runs).sum::<usize>() + 1,
};

/// A kind of runs, each with another seed. A case is a run, by its kind and seed.
struct Kind {
    name: &'static str,
    /// Its `fsx.toml`.
    settings: &'static str,
    runs: usize,
    operations_per_run: usize,
}

impl Kind {
    fn operations(&self) -> u64 {
        (self.runs * self.operations_per_run) as u64
    }
}

/// Operations as small as they can be and still lie across pages: most of what they take is the
/// filesystem's time.
const SMALL: &str = "\
flen = 65536
nomsyncafterwrite = true
[opsize]
min = 1
max = 1024
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 2
mapwrite = 10
truncate = 3
fsync = 0.1
fdatasync = 0.1
posix_fallocate = 2
punch_hole = 5
sendfile = 1
posix_fadvise = 1
copy_file_range = 1
";

/// Operations of many pages, with many a sync, in a file with room for huge pages.
const SYNCED: &str = "\
flen = 4194304
[opsize]
min = 1
max = 65536
[weights]
close_open = 1
invalidate = 2
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 5
fdatasync = 5
posix_fallocate = 2
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
";

fn kinds(place: Place) -> [Kind; 2] {
    // A sync is where a served window does more than a direct one.
    let (small, synced) = if place.window == Window::Served { (200, 40) } else { (300, 20) };
    [
        Kind { name: "small", settings: SMALL, runs: small * rounds(), operations_per_run: 1000 },
        Kind { name: "synced", settings: SYNCED, runs: synced * rounds(), operations_per_run: 250 },
    ]
}

/// How many times as much it is to do as on every push.
fn rounds() -> usize {
    let rounds = std::env::var("VHOST_PMEM_FSX_ROUNDS").ok();
    rounds.map_or(1, |rounds| rounds.parse().expect("VHOST_PMEM_FSX_ROUNDS: not a number"))
}

fn script(place: Place) -> String {
    let mut body = String::new();
    for Kind { name, settings, runs, operations_per_run } in kinds(place) {
        body += &format!(
            "cat >{name}.toml <<END\n{settings}END
            for seed in $(seq {runs}); do
                if fsx -f {name}.toml -P /tmp -S $seed -N {operations_per_run} /mnt/fsx >log 2>&1; then
                    echo ok {name}/$seed
                else
                    tail -100 log
                    echo \"FAIL {name}/$seed: see the lines before\"
                fi
                rm -f /mnt/fsx
            done
            "
        );
    }
    place.filesystem.with_dax(&body)
}
