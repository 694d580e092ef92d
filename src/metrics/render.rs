// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From what the control protocol tells of devices to metrics.

use std::time::{SystemTime, UNIX_EPOCH};

use super::exposition::{Exposition, Kind, Labels};
use crate::control::{Cache, Counters, Cow, Mirror, Placement, Process, Report, State, Status};

/// A device that is served.
type Served<'a> = (&'a str, &'a Status);

/// A gauge's name, its help, and where it stands.
type Told<T> = (&'static str, &'static str, fn(&T) -> u64);

/// The metrics of `devices`, and of the process that answers for them, if it is none of theirs.
pub(super) fn render(devices: &[Report], own: Option<&Process>) -> String {
    let mut text = Exposition::default();
    let build =
        text.metric("vhost_pmem_build_info", Kind::Gauge, "The program's version; always 1.");
    build.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    members(&mut text, devices);
    let served: Vec<Served<'_>> = devices
        .iter()
        .filter_map(|Report { name, state, .. }| match state {
            State::Served(status) => Some((name.as_str(), &**status)),
            State::Down { .. } => None,
        })
        .collect();
    region(&mut text, &served);
    waiting(&mut text, &served);
    let counted =
        served.iter().filter_map(|(name, status)| Some((*name, status.counters.as_ref()?)));
    flushes(&mut text, &counted.collect::<Vec<_>>());
    stores(&mut text, &served);
    copies(&mut text, &served);
    mirrors(&mut text, &served);
    let processes = served.iter().filter_map(|(name, one)| Some((*name, one.process.as_ref()?)));
    let all: Vec<_> = processes.chain(own.map(|own| ("", own))).collect();
    process(&mut text, &all);
    text.into_text()
}

/// A metric of which each of `devices` has one value.
fn each<T, V: std::fmt::Display>(
    text: &mut Exposition,
    (name, kind, help): (&'static str, Kind, &str),
    devices: &[(&str, T)],
    value: impl Fn(&T) -> V,
) {
    let metric = text.metric(name, kind, help);
    for (device, of) in devices {
        metric.sample(&[("device", device)], value(of));
    }
}

fn members(text: &mut Exposition, devices: &[Report]) {
    let up = text.metric("vhost_pmem_up", Kind::Gauge, "Whether the device is served.");
    for Report { name, state, .. } in devices {
        up.sample(&[("device", name)], u8::from(matches!(state, State::Served(_))));
    }
    let help = "How often the device's process ended by itself and was started again.";
    let restarts = text.metric("vhost_pmem_restarts_total", Kind::Counter, help);
    for Report { name, restarts: count, .. } in devices {
        if let Some(count) = count {
            restarts.sample(&[("device", name)], count);
        }
    }
}

fn region(text: &mut Exposition, served: &[Served<'_>]) {
    use Kind::Gauge;
    let help = "How the guest reaches the region: direct, served or gpa=ADDR; always 1.";
    let info = text.metric("vhost_pmem_device_info", Gauge, help);
    for (device, status) in served {
        info.sample(&[("device", device), ("window", &status.window)], 1);
    }
    let help = "The region's size, without what is shown behind its end.";
    each(text, ("vhost_pmem_region_bytes", Gauge, help), served, |status| status.size);
    let help = "How much of it the guest reaches: all, or none while its pages are not mapped.";
    each(text, ("vhost_pmem_mapped_bytes", Gauge, help), served, |status| status.mapped);
    let help =
        "Whether a window in guest memory is there; of a frontend that has told of its memory.";
    let found = text.metric("vhost_pmem_window_found", Gauge, help);
    for (device, status) in served {
        let is_found = match &status.placement {
            None | Some(Placement::Unknown) => continue,
            Some(Placement::Found) => true,
            Some(Placement::Misplaced { .. }) => false,
        };
        found.sample(&[("device", device)], u8::from(is_found));
    }
    let help = "Frontends that are connected now.";
    each(text, ("vhost_pmem_frontends", Gauge, help), served, |one| u8::from(one.frontend));
}

fn waiting(text: &mut Exposition, served: &[Served<'_>]) {
    let help = "Requests that stay in the queue, by why the first of them can't be answered.";
    let metric = text.metric("vhost_pmem_requests_waiting", Kind::Gauge, help);
    for (device, status) in served {
        for reason in ["unshared", "no_room", "queue"] {
            let of = status.waiting.as_ref().filter(|waiting| waiting.cause == reason);
            let labels: &Labels<'_> = &[("device", device), ("reason", reason)];
            metric.sample(labels, of.map_or(0, |waiting| waiting.requests));
        }
    }
}

fn flushes(text: &mut Exposition, counted: &[(&str, &Counters)]) {
    use Kind::{Counter, Histogram};
    let help = "Frontends that have connected.";
    each(text, ("vhost_pmem_frontends_total", Counter, help), counted, |one| one.frontends);
    let help = "How often a guest's pages were mapped.";
    each(text, ("vhost_pmem_activations_total", Counter, help), counted, |one| one.activations);
    let help = "How often a guest's pages could not be mapped.";
    each(text, ("vhost_pmem_activation_errors_total", Counter, help), counted, |one| {
        one.activations_failed
    });
    let help =
        "Flushes that were answered: done; failed, as a store had; unmapped, as no pages were.";
    let flushes = text.metric("vhost_pmem_flushes_total", Counter, help);
    for (device, Counters { flushes: all, .. }) in counted {
        for (result, count) in
            [("done", all.done), ("failed", all.failed), ("unmapped", all.unmapped)]
        {
            flushes.sample(&[("device", device), ("result", result)], count);
        }
    }
    let help = "Requests that were no flushes, by what was wrong with them.";
    let refused = text.metric("vhost_pmem_requests_refused_total", Counter, help);
    for (device, Counters { refused: all, .. }) in counted {
        for (reason, count) in [("malformed", all.malformed), ("unknown_type", all.unknown)] {
            refused.sample(&[("device", device), ("reason", reason)], count);
        }
    }
    let help = "Queues that could not be read, and answers that could not be given.";
    each(text, ("vhost_pmem_queue_errors_total", Counter, help), counted, |one| one.queue_errors);
    let help = "How many requests were answered at once.";
    let sizes = text.metric("vhost_pmem_batch_requests", Histogram, help);
    for (device, Counters { batches: all, .. }) in counted {
        let numbers = (&all.bounds[..], &all.counts[..], all.sum);
        sizes.histogram(&[("device", device)], numbers, |requests| requests);
    }
    let help = "Batches that waited, as the limit of syncs a second was reached.";
    each(text, ("vhost_pmem_batches_limited_total", Counter, help), counted, |one| {
        one.batches_limited
    });
    let help =
        "How long syncs took, also those that failed; where one had failed before none is tried.";
    let syncs = text.metric("vhost_pmem_sync_duration_seconds", Histogram, help);
    for (device, Counters { syncs: all, .. }) in counted {
        let numbers = (&all.bounds[..], &all.counts[..], all.sum);
        syncs.histogram(&[("device", device)], numbers, |nanoseconds| thousandths(nanoseconds, 3));
    }
    let help = "Syncs that failed.";
    each(text, ("vhost_pmem_sync_errors_total", Counter, help), counted, |one| one.sync_errors);
}

fn stores(text: &mut Exposition, served: &[Served<'_>]) {
    use Kind::Gauge;
    let help = "How long the oldest sync has been running that is running now; 0 if none is.";
    each(text, ("vhost_pmem_sync_running_seconds", Gauge, help), served, |one| {
        let oldest = one.syncing.iter().map(|sync| sync.since_ms).min();
        thousandths(oldest.map_or(0, |since| now_ms().saturating_sub(since)), 1)
    });
    let help = "Stores whose files were removed.";
    each(text, ("vhost_pmem_removed_stores", Gauge, help), served, |one| one.removed.len());
    let help = "Stores that failed a sync and were not cleared.";
    each(text, ("vhost_pmem_failed_stores", Gauge, help), served, |one| one.failures.len());
    let kinds: [Told<Cache>; 3] = [
        ("vhost_pmem_cached_bytes", "What of a store is in the page cache.", |one| one.cached),
        ("vhost_pmem_dirty_bytes", "What of it was changed, and not written yet.", |one| one.dirty),
        ("vhost_pmem_writeback_bytes", "What of it is being written.", |one| one.writeback),
    ];
    for (name, help, bytes) in kinds {
        let metric = text.metric(name, Gauge, help);
        for (device, status) in served {
            for cache in &status.caches {
                metric.sample(&[("device", device), ("store", &cache.store)], bytes(cache));
            }
        }
    }
}

fn copies(text: &mut Exposition, served: &[Served<'_>]) {
    use Kind::Gauge;
    let help = "Snapshots that were taken since the device's process started, and not merged.";
    each(text, ("vhost_pmem_snapshots", Gauge, help), served, |one| one.layers.len());
    let kinds: [Told<Cow>; 2] = [
        ("vhost_pmem_cow_used_bytes", "What a COW store holds.", |cow| cow.used),
        ("vhost_pmem_cow_capacity_bytes", "What a COW store has room for.", |cow| cow.capacity),
    ];
    for (name, help, chunks) in kinds {
        let metric = text.metric(name, Gauge, help);
        for (device, status) in served {
            for (kind, all) in [("snapshot", &status.snapshots), ("taken", &status.layers)] {
                for cow in all {
                    let labels: &Labels<'_> =
                        &[("device", device), ("cow", &cow.name), ("kind", kind)];
                    metric.sample(labels, chunks(cow) * cow.chunk);
                }
            }
        }
    }
}

fn mirrors(text: &mut Exposition, served: &[Served<'_>]) {
    use Kind::Gauge;
    let all = || served.iter().flat_map(|(name, one)| one.mirrors.iter().map(move |m| (name, m)));
    let help = "Whether a mirror's leg is healthy, recovering, failed or missing.";
    let legs = text.metric("vhost_pmem_mirror_leg", Gauge, help);
    for (device, mirror) in all() {
        for (number, is) in mirror.legs.iter().enumerate() {
            for state in ["healthy", "recovering", "failed", "missing"] {
                let leg = number.to_string();
                let labels = [
                    ("device", *device),
                    ("mirror", &mirror.name),
                    ("leg", &leg),
                    ("state", state),
                ];
                legs.sample(&labels, u8::from(is == state));
            }
        }
    }
    let kinds: [Told<Mirror>; 2] = [
        ("vhost_pmem_mirror_regions", "A mirror's regions.", |mirror| mirror.regions),
        ("vhost_pmem_mirror_stale_regions", "Regions in which its legs may differ.", |one| {
            one.stale
        }),
    ];
    for (name, help, regions) in kinds {
        let metric = text.metric(name, Gauge, help);
        for (device, mirror) in all() {
            metric.sample(&[("device", *device), ("mirror", &mirror.name)], regions(mirror));
        }
    }
}

/// By the names that all programs have for them.
fn process(text: &mut Exposition, all: &[(&str, &Process)]) {
    use Kind::{Counter, Gauge};
    let help = "The processors' time that was taken.";
    each(text, ("process_cpu_seconds_total", Counter, help), all, |one| thousandths(one.cpu_ms, 1));
    let help = "When the process started, in Unix time.";
    each(text, ("process_start_time_seconds", Gauge, help), all, |one| {
        thousandths(one.started_ms, 1)
    });
    let help = "Resident memory.";
    each(text, ("process_resident_memory_bytes", Gauge, help), all, |one| one.resident);
    let help = "Virtual memory.";
    each(text, ("process_virtual_memory_bytes", Gauge, help), all, |one| one.virtual_memory);
    each(text, ("process_threads", Gauge, "Threads."), all, |one| one.threads);
    each(text, ("process_open_fds", Gauge, "Open file descriptors."), all, |one| one.fds);
    let help = "How many file descriptors may be open.";
    let most = text.metric("process_max_fds", Gauge, help);
    for (device, one) in all {
        if let Some(fds_max) = one.fds_max {
            most.sample(&[("device", device)], fds_max);
        }
    }
}

/// In milliseconds of Unix time.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis().try_into().unwrap_or(u64::MAX)
}

/// A number of thousandths, or of thousandths of them, and so on, in decimals: exact, as a float of
/// nanoseconds since 1970 is not.
fn thousandths(number: u64, powers: u32) -> String {
    let unit = 1000u64.pow(powers);
    let digits = powers as usize * 3;
    let text = format!("{}.{:0digits$}", number / unit, number % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_are_exact() {
        let cases = [
            (0, 3, "0"),
            (10_000, 3, "0.00001"),
            (2_500_000_000, 3, "2.5"),
            (10_000_000_000, 3, "10"),
            (1_782_000_000_001, 1, "1782000000.001"),
            (u64::MAX, 3, "18446744073.709551615"),
        ];
        for (number, powers, expected) in cases {
            assert_eq!(thousandths(number, powers), expected);
        }
    }
}
