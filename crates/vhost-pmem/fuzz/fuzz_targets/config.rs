// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any part of a configuration is read as by the oracle.

#![no_main]
#![allow(dead_code, unused_imports, reason = "not all of the wire format is used")]

#[path = "../oracles/config_oracle.rs"]
mod config_oracle;
#[path = "../../src/spec.rs"]
mod spec;

libfuzzer_sys::fuzz_target!(|data: &[u8]| config_oracle::check(data));
