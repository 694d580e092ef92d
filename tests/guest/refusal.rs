// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that can't have the memory is told so, and lives on.

use guest_harness::{Kernel, Lab};

use crate::filesystem::Filesystem;
use crate::{guest, serve};

#[test]
fn linux_6_1_without_shmem_region_is_refused_and_lives_on() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("pmem"));
    let outcome = guest(&lab, Filesystem::Ext4, &[&daemon])
        .kernel(Kernel::Bookworm)
        .script(
            "set -eu
            ls -l /sys/bus/virtio/devices
            test -e /sys/bus/virtio/drivers/virtio_pmem
            ! test -e /sys/bus/virtio/drivers/virtio_pmem/virtio0
            ! test -e /dev/pmem0
            uname -r",
        )
        .run()
        .unwrap();
    assert!(outcome.serial.contains("\n6.1."), "{}", outcome.serial);
    let log = daemon.log();
    let refusal = log.lines().find(|line| line.contains("no persistent memory for this guest"));
    let refusal = refusal.unwrap_or_else(|| panic!("not refused: {log}"));
    for word in ["VIRTIO_PMEM_F_SHMEM_REGION", "Linux 6.8 or later"] {
        assert!(refusal.contains(word), "{refusal}");
    }

    // A guest that can have it still gets it.
    guest(&lab, Filesystem::Ext4, &[&daemon]).script("test -b /dev/pmem0").run().unwrap();
}
