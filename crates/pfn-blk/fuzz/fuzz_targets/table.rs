// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any text is read as a table, or refused, as by the oracle.

#![no_main]

#[path = "../../tests/stacks/table_oracle.rs"]
mod table_oracle;

libfuzzer_sys::fuzz_target!(|text: &str| table_oracle::check(text));
