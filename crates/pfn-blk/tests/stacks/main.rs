// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every store and every target must do, alone and in random stacks, against a model that
//! knows each page by itself.

mod bases;
mod conformance;
mod cow_oracle;
mod crashes;
mod faults;
mod lifetimes;
#[path = "../../../../tests/guest/loop_device.rs"]
mod loop_device;
mod mirror;
mod mirror_files;
mod mirror_legs;
mod mirror_lives;
mod mirror_log;
mod model;
mod power;
mod prefetch;
mod snapshot;
mod snapshot_power;
mod stack;
mod table_oracle;
mod tables;
