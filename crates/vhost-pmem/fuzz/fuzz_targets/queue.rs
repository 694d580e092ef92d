// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any memory of a driver's is answered as by the oracle.

#![no_main]
#![allow(dead_code, unused_imports, reason = "not all of the device is used")]

#[path = "../../src/queue.rs"]
mod queue;
#[path = "../oracles/queue_oracle.rs"]
mod queue_oracle;
#[path = "../../src/request.rs"]
mod request;
#[path = "../../src/spec.rs"]
mod spec;
#[path = "../../src/throttle.rs"]
mod throttle;
#[path = "../../src/vring.rs"]
mod vring;

libfuzzer_sys::fuzz_target!(|data: &[u8]| queue_oracle::check(data));
