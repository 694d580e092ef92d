// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! stress-ng's class `filesystem`, one stressor behind another: each does some of what it does, for two
//! seconds at most, and checks the results.

use crate::place::Place;
use crate::results::read_lines;
use crate::suite::Suite;

pub(crate) const SUITE: Suite = Suite {
    name: "stress-ng",
    equip: |vm| Ok(vm.program("stress-ng")),
    script,
    read: read_lines,
    operations: |_| None,
    // Beside `fsck`, all that Debian 13's release has.
    cases_min: |_| 58,
};

fn script(place: Place) -> String {
    // It leaves the reasons in its messages, of which the first that tells of skipping has it.
    place.filesystem.with_dax(
        "for stressor in $(stress-ng --class 'filesystem?' | sed 's/.*stressors: //'); do
            # XFS has no such flag, and passes.
            if [ $stressor = chattr ] && grep -q ' /mnt ext4 ' /proc/mounts; then
                echo \"skip chattr: one run in ten fails, on QEMU's own device too (flag j, errno 2)\"
                continue
            fi
            status=0
            mkdir /mnt/$stressor
            stress-ng --$stressor 1 --$stressor-ops 30 --timeout 2 --verify --oomable \\
                --temp-path /mnt/$stressor >log 2>&1 || status=$?
            reason=$(sed -nE '/skipp|disabled|not supported/{s/^.*\\] //;p;q}' log)
            reason=${reason#$stressor: }
            if grep -q ' failed: [^0]' log || [ $status = 1 ] || [ $status = 2 ]; then
                cat log
                echo \"FAIL $stressor: $(sed -n 's/^.*fail: *[^ ]* //p' log | head -1)\"
            elif [ -n \"$reason\" ] && ! grep -q ' passed: [^0]' log; then
                echo \"skip $stressor: $reason\"
            elif [ $status = 0 ]; then
                echo ok $stressor
            else
                cat log
                echo \"FAIL $stressor: status $status\"
            fi
            rm -rf /mnt/$stressor
        done",
    )
}
