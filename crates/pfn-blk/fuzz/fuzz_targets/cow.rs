// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any COW store is read, or refused, as by the oracle.

#![no_main]

#[path = "../../tests/stacks/cow_oracle.rs"]
mod cow_oracle;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cow_oracle::check(data));
