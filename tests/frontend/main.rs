// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a frontend sees it: a VMM of our own drives it over a real vhost-user socket, and
//! does what real ones do, and what they should not.

mod activation;
mod availability;
mod driver;
mod endurance;
mod failing;
mod fleet;
mod gpa;
mod handshake;
mod hostile;
mod limit;
#[path = "../guest/loop_device.rs"]
mod loop_device;
mod message_oracle;
mod messages;
mod metrics;
mod power;
mod process;
mod requests;
mod served;
mod server;
mod store;
mod syscalls;
#[path = "../guest/tmpfs.rs"]
mod tmpfs;
mod unanswerable;
mod vmm;
