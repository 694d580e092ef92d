// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! That what the other tests show, they show of the accelerator they are said to run on.

use guest_harness::{Accelerator, Lab};
use serde_json::json;

#[test]
fn guest_runs_on_the_accelerator_in_use() {
    let kvm = Accelerator::in_use().unwrap() == Accelerator::Kvm;
    let lab = Lab::open().unwrap();
    let vm = lab
        .vm()
        .script(
            "cat /sys/devices/system/clocksource/clocksource0/available_clocksource
            echo MARK up
            read forever < /dev/ttyS0",
        )
        .boot()
        .unwrap();
    vm.wait_for("MARK up").unwrap();
    // What QEMU says of it, and what the guest sees.
    let status = vm.qmp("query-kvm", &json!({})).unwrap();
    assert_eq!(status["enabled"], kvm, "{status}");
    assert_eq!(vm.serial().contains("kvm-clock"), kvm, "{}", vm.serial());
}
