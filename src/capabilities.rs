// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--print-capabilities`, as QEMU's `docs/interop/vhost-user.json` describes it.

/// The capabilities. QEMU's list of backend types has none for persistent memory yet; `pmem` is
/// what virtio calls device 27.
pub(crate) fn json() -> serde_json::Value {
    serde_json::json!({ "type": "pmem", "features": [] })
}
