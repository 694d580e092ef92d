// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads, stores and flushes, through both windows of one file.

use std::ffi::OsStr;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::guest::{Guest, load, store};
use crate::image::{Image, PAGE, page};
use crate::kernel::expect_random;
use crate::results::{Results, Window};

/// Pages between two that are touched at random, 256 KiB: more than is read at once around one
/// through a served window, so that each is touched first.
const APART: usize = 64;

/// How often each flush is measured in a round.
const FLUSHES: usize = 9;

/// Whether the file is in the page cache.
#[derive(Clone, Copy)]
enum State {
    Cold,
    Warm,
}

/// How the kernel is told that the mapping is used.
#[derive(Clone, Copy)]
enum Advice {
    /// Nothing, as VMMs do.
    None,
    /// MADV_RANDOM.
    Random,
}

pub(crate) fn measure(image: &Image, twin: &Image, rounds: usize) -> Result<Results> {
    let mut results = Results::default();
    for round in 0..rounds {
        let mut windows = [Window::Direct, Window::Served];
        windows.rotate_left(round % 2);
        for (state, name) in [(State::Cold, "cold"), (State::Warm, "warm")] {
            for window in windows {
                let name = format!("first load, {name}, one page after another");
                sequential(image, window, state, &name, &mut results)?;
            }
            for (advice, advised) in [(Advice::None, ""), (Advice::Random, ", MADV_RANDOM")] {
                for window in windows {
                    let name = format!("first load, {name}, random{advised}");
                    let took = random(image, window, state, advice)?;
                    results.times(&name, window, took);
                }
            }
        }
        steady(image, twin, &mut results)?;
        for window in windows {
            flushes(image, window, &mut results)?;
        }
    }
    Ok(results)
}

/// A guest with `image` in a window, in which no page has been touched.
fn start(image: &Image, window: Window, state: State) -> Result<Guest> {
    match state {
        State::Cold => image.cool()?,
        State::Warm => image.warm()?,
    }
    let file = ["--file".as_ref(), image.path().as_os_str()];
    let window: [&OsStr; 2] = ["--window".as_ref(), window.word().as_ref()];
    Guest::start(&[file, window].concat())
}

/// Loads all pages, the first time and one after another.
fn sequential(
    image: &Image,
    window: Window,
    state: State,
    name: &str,
    results: &mut Results,
) -> Result<()> {
    let guest = start(image, window, state)?;
    let took = guest.with(|memory| {
        let began = Instant::now();
        for at in 0..image.pages() {
            black_box(load(&memory, at)?);
        }
        let took = began.elapsed();
        for at in 0..image.pages() {
            ensure!(load(&memory, at)? == page(at), "page {at} is not the file's");
        }
        Ok(took)
    })?;
    results.rate(name, window, image.pages(), took);
    guest.end()
}

/// Loads pages here and there, the first time.
fn random(image: &Image, window: Window, state: State, advice: Advice) -> Result<Vec<Duration>> {
    let guest = start(image, window, state)?;
    let took = guest.with(|memory| {
        if let Advice::Random = advice {
            expect_random(&memory)?;
        }
        scattered(image.pages(), image.pages() / APART)
            .map(|at| {
                let began = Instant::now();
                let loaded = load(&memory, at)?;
                let took = began.elapsed();
                ensure!(loaded == page(at), "page {at} is not the file's");
                Ok(took)
            })
            .collect()
    })?;
    guest.end()?;
    Ok(took)
}

/// Loads and stores to pages that were loaded, and stored to, before. What differs is so little that
/// both windows are there at once, the served one on a copy, and take turns pass by pass.
fn steady(image: &Image, twin: &Image, results: &mut Results) -> Result<()> {
    const PASSES: usize = 8;
    let guests = [
        (Window::Direct, start(image, Window::Direct, State::Warm)?),
        (Window::Served, start(twin, Window::Served, State::Warm)?),
    ];
    let mut passes = |name: &str, pages: usize, pass: &dyn Fn(&Guest) -> Result<()>| {
        guests.iter().try_for_each(|(_, guest)| pass(guest))?;
        for turn in 0..PASSES {
            for at in [turn % 2, 1 - turn % 2] {
                let (window, guest) = &guests[at];
                // As many bytes each time, so that it takes long enough to be measured.
                let times = image.pages() / pages;
                let began = Instant::now();
                (0..times).try_for_each(|_| pass(guest))?;
                results.rate(name, *window, pages * times, began.elapsed());
            }
        }
        anyhow::Ok(())
    };
    passes("load again", image.pages(), &|guest| {
        guest.with(|memory| {
            (0..image.pages()).try_for_each(|at| load(&memory, at).map(|page| _ = black_box(page)))
        })
    })?;
    for pages in [image.pages() / 32, image.pages()] {
        // What is stored is what is there: the pages are written, and the files stay the same.
        let before = (0..pages).map(page).collect::<Vec<_>>();
        passes(&format!("store again, {} MiB", pages / 256), pages, &|guest| {
            guest.with(|memory| {
                before.iter().enumerate().try_for_each(|(at, page)| store(&memory, at, page))
            })
        })?;
    }
    let [(_, direct), (_, served)] = guests;
    direct.end()?;
    served.end()
}

/// Flushes with some pages written, one after another, or here and there.
fn flushes(image: &Image, window: Window, results: &mut Results) -> Result<()> {
    let mut guest = start(image, window, State::Warm)?;
    guest.with(|memory| (0..image.pages()).try_for_each(|at| load(&memory, at).map(|_| ())))?;
    let cases = [
        (0, "", (0..0).collect()),
        (1, "", (0..1).collect()),
        (64, ", one after another", (0..64).collect::<Vec<_>>()),
        (64, ", here and there", scattered(image.pages(), 64).collect()),
        (4096, ", one after another", (0..4096).collect()),
        (4096, ", here and there", scattered(image.pages(), 4096).collect()),
    ];
    for (count, how, pages) in cases {
        let mut stores = Vec::new();
        let mut flushes = Vec::new();
        for _ in 0..FLUSHES {
            let began = Instant::now();
            guest.with(|memory| pages.iter().try_for_each(|&at| store(&memory, at, &page(at))))?;
            stores.push(began.elapsed() / count.max(1));
            flushes.push(guest.flush()?);
        }
        if count == 4096 {
            stores.sort_unstable();
            results.time(&format!("store to a clean page{how}"), window, stores[FLUSHES / 2]);
        }
        flushes.sort_unstable();
        let name = format!("flush of {count} page{}{how}", if count == 1 { "" } else { "s" });
        results.time(&name, window, flushes[FLUSHES / 2]);
    }
    check_flush(image, &mut guest)?;
    guest.end()
}

/// Checks that a flush brings to the file what was stored.
fn check_flush(image: &Image, guest: &mut Guest) -> Result<()> {
    let at = image.pages() / 2;
    for expected in [[0x5a; PAGE], page(at)] {
        guest.with(|memory| store(&memory, at, &expected))?;
        guest.flush()?;
        let mut found = [0; PAGE];
        image.file().read_exact_at(&mut found, (at * PAGE) as u64)?;
        ensure!(found == expected, "a flush did not bring page {at} to the file");
    }
    Ok(())
}

/// So many of `pages`, as far apart as they can be, in an order that looks random and is always the
/// same.
fn scattered(pages: usize, count: usize) -> impl Iterator<Item = usize> {
    let apart = pages / count;
    // An odd number, so that each comes up once in a power of two of them.
    (0..count).map(move |n| (n * 7919 % count) * apart + apart / 2 + n % (apart / 4).max(1))
}
