// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-pmem device (virtio id 27) over vhost-user.
//!
//! # Model
//!
//! A [`Device`] shows a [region](pfn_blk::Region) to guests, in a [`Window`]. Through a *direct* one
//! the frontend maps the stores' own pages into the device's shared memory region, so that loads
//! and stores of the guest never enter this process. What can't be mapped is shown through a
//! *served* window: the frontend maps a file of ours, and what the guest has stored comes to us at
//! a flush. A VMM that can't map for us may have either as memory of its guest. A frontend connects,
//! a guest activates the device, the pages are mapped, flushes are answered, the guest resets the
//! device or the frontend leaves, and all begins anew.
//!
//! # Invariants
//!
//! - A flush succeeds only if everything written before it was submitted is durable: the batch is
//!   fixed first, then synced, then answered.
//! - Where the guest's pages are not mapped, every flush fails.
//! - Requests are answered in order, and none is returned without a status: one that can't be
//!   answered stays in the queue, and all after it. None ends a thread, and none can fill the log.
//! - A ring starts at its used index, whatever base the frontend names.
//! - No lock that a vhost-user callback takes is held while waiting for the frontend.
//!
//! # Catalogue
//!
//! | Module | What it is |
//! |---|---|
//! | [`spec`] | the wire format, virtio 5.19 |
//! | `request` | from descriptor chain to request and status |
//! | `queue` | batches out, answers in |
//! | `window` | which window a region gets |
//! | `served` | the file of a served window |
//! | `limit` | how often the disks may be synced |
//! | `poll` | looking for requests before sleeping |
//! | `mapping` | mapping one, and taking it back |
//! | `gpa` | one that a VMM maps by itself |
//! | `channel` | asking the frontend to |
//! | `vring` | a queue with fds that a frontend gave |
//! | `guest_memory` | the memory that a frontend gave |
//! | `sigbus` | what happens when it takes it away |
//! | `negotiation` | what frontend and guest can do |
//! | `counters` | what a device has done so far |
//! | `health` | how it and its guest get on now |
//! | `page_cache` | how much of a file is in memory |
//! | `page_structs` | whether a guest has RAM enough for a device |
//! | `device` | region and flush, no vhost-user |
//! | `connection` | vhost-user requests and queue events of one frontend |
//! | `server` | one frontend after another |

mod channel;
#[cfg(test)]
#[path = "../fuzz/oracles/config_oracle.rs"]
mod config_oracle;
mod connection;
mod counters;
mod device;
mod exit_event;
mod gpa;
mod guest_memory;
mod health;
mod host;
mod limit;
mod mapping;
mod negotiation;
mod page_cache;
mod page_structs;
mod poll;
mod queue;
#[cfg(test)]
#[path = "../fuzz/oracles/queue_oracle.rs"]
mod queue_oracle;
mod request;
mod served;
mod server;
mod sigbus;
pub mod spec;
mod throttle;
mod vring;
mod window;

pub use counters::{Counts, Histogram};
pub use device::Device;
pub use gpa::Placement;
pub use health::{Pages, Trouble, Waiting};
pub use host::{UnfitHost, check_host};
pub use page_cache::{CachedPages, cached_pages};
pub use request::Unanswerable;
pub use served::{
    Failure, LAYER_CHUNK, LAYERS_MAX, Layer, LayerError, Layered, Publish, PublishError,
    ServeWindowError, ServedThread, Syncing, allow_served_windows, confine_served_threads,
    unpublish,
};
pub use server::ServeError;
pub use window::{
    EXTENTS_MAX, InvalidWindow, Window, WindowChoice, check_size, choose, choose_layered,
};
