// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's memory for each byte of a guest's.

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::guest::{Guest, load, store};
use crate::image::{Image, cached, forget, page};
use crate::kernel::page_out;

/// What guests may have, and how many of them at once. A file that a guest writes to is its alone,
/// so a second guest of such a one needs a second file, and twice the memory.
const CASES: [(&str, Kind, usize); 7] = [
    ("direct", Kind::Direct, 1),
    ("served, --file", Kind::Served, 1),
    ("served, --read-only", Kind::ReadOnly, 2),
    ("served, --overlay COW", Kind::Cow, 1),
    ("served, --overlay COW", Kind::Cow, 2),
    ("served, --overlay memory", Kind::Memory, 1),
    ("served, --overlay memory", Kind::Memory, 2),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Direct,
    Served,
    ReadOnly,
    Cow,
    Memory,
}

/// Pages in memory, of all guests together.
#[derive(Clone, Copy)]
struct Held {
    /// The file's, which all share.
    base: usize,
    /// The served windows'.
    windows: usize,
    /// Those of what keeps the changes.
    overlays: usize,
}

/// Guests of one file, and what they have open besides.
struct Guests {
    guests: Vec<Guest>,
    kind: Kind,
    overlays: Vec<File>,
    /// Removed in the end.
    paths: Vec<PathBuf>,
}

/// How much is held, for the size of a guest's memory.
pub(crate) struct Table(Vec<(&'static str, usize, &'static str, [f64; 5])>);

pub(crate) fn measure(image: &Image) -> Result<Table> {
    let mut rows = Vec::new();
    for (name, kind, count) in CASES {
        image.cool()?;
        let mut guests = Guests::start(image.path(), kind, count)?;
        let mut add = |state, guests: &Guests| {
            let Held { base, windows, overlays } = guests.held(image)?;
            let sum = base + windows + overlays;
            let of_one = |pages: usize| pages as f64 / image.pages() as f64;
            let each = of_one(sum) / count as f64;
            let row = [of_one(base), of_one(windows), of_one(overlays), of_one(sum), each];
            rows.push((name, count, state, row));
            anyhow::Ok(())
        };
        guests.load_all(image)?;
        add("all loaded", &guests)?;
        if kind != Kind::ReadOnly {
            guests.store_all(image)?;
            add("all stored to, flushed", &guests)?;
        }
        guests.give_back(image)?;
        add("after reclaim", &guests)?;
        guests.end()?;
    }
    Ok(Table(rows))
}

impl Guests {
    fn start(base: &Path, kind: Kind, count: usize) -> Result<Self> {
        let mut all = Self { guests: Vec::new(), kind, overlays: Vec::new(), paths: Vec::new() };
        for number in 0..count {
            let cow = base.with_extension(format!("{number}.cow"));
            let mut args: Vec<OsString> = vec!["--file".into(), base.into()];
            args.extend(match kind {
                Kind::Direct => vec!["--window".into(), "direct".into()],
                Kind::Served => vec!["--window".into(), "served".into()],
                Kind::ReadOnly => vec!["--read-only".into()],
                Kind::Memory => vec!["--overlay".into(), "memory".into()],
                Kind::Cow => {
                    // One that another run left.
                    let _ = fs::remove_file(&cow);
                    vec!["--overlay".into(), cow.clone().into()]
                }
            });
            let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
            let guest = Guest::start(&args)?;
            match kind {
                Kind::Cow => {
                    all.overlays.push(File::open(&cow)?);
                    all.paths.push(cow);
                }
                Kind::Memory => all.overlays.push(memory_of(guest.daemon().pid())?),
                _ => {}
            }
            all.guests.push(guest);
        }
        Ok(all)
    }

    fn load_all(&self, image: &Image) -> Result<()> {
        self.guests.iter().try_for_each(|guest| {
            guest.with(|memory| (0..image.pages()).try_for_each(|at| load(&memory, at).map(|_| ())))
        })
    }

    /// Stores what is there already.
    fn store_all(&mut self, image: &Image) -> Result<()> {
        self.guests.iter_mut().try_for_each(|guest| {
            guest.with(|memory| {
                (0..image.pages()).try_for_each(|at| store(&memory, at, &page(at)))
            })?;
            guest.flush().map(drop)
        })
    }

    /// Has the kernel take back what it can, as it does when the host is short of memory.
    fn give_back(&self, image: &Image) -> Result<()> {
        self.guests.iter().try_for_each(|guest| guest.with(|memory| Ok(page_out(&memory)?)))?;
        forget(image.file())?;
        self.overlays.iter().try_for_each(forget)
    }

    fn held(&self, image: &Image) -> Result<Held> {
        let mut held = Held { base: cached(image.file())?, windows: 0, overlays: 0 };
        if self.kind != Kind::Direct {
            for guest in &self.guests {
                held.windows += cached(&guest.file()?)?;
            }
        }
        for overlay in &self.overlays {
            held.overlays += cached(overlay)?;
        }
        Ok(held)
    }

    fn end(self) -> Result<()> {
        self.guests.into_iter().try_for_each(Guest::end)?;
        Ok(self.paths.iter().try_for_each(fs::remove_file)?)
    }
}

/// The memory that a daemon keeps its overlay in.
fn memory_of(pid: u32) -> Result<File> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = fd?.path();
        let is_memory = |link: &Path| link.as_os_str().as_encoded_bytes().starts_with(b"/memfd:");
        // One that was closed meanwhile.
        let Ok(link) = fs::read_link(&path) else { continue };
        if is_memory(&link) {
            let file = File::open(&path)?;
            if file.metadata()?.len() >= 1 << 20 {
                return Ok(file);
            }
        }
    }
    None.context("the overlay is not in memory")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut head = format!("{:25} {:>6} {:24}", "", "guests", "");
        for name in ["file", "windows", "overlays", "all", "each guest"] {
            write!(head, "{name:>11}")?;
        }
        f.write_str(&head)?;
        for (name, count, state, numbers) in &self.0 {
            write!(f, "\n{name:25} {count:>6} {state:24}")?;
            for number in numbers {
                write!(f, "{number:>11.2}")?;
            }
        }
        Ok(())
    }
}
