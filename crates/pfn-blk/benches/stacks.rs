// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a stack costs: look-ups, extents, and bios against raw I/O on the same file.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use pfn_blk::{
    FileStore, InSync, Linear, MemoryStore, Mirror, MirrorLog, NrPages, Pagemap, PfnSpace, Pgoff,
    PgoffRange, Region, Snapshot, Striped, Table, Target,
};

fn nr_pages(count: u64) -> NrPages {
    NrPages::try_new(count).unwrap()
}

fn range(start: u64, count: u64) -> PgoffRange {
    PgoffRange::try_new(Pgoff::try_new(start).unwrap(), nr_pages(count)).unwrap()
}

fn memory(pages: u64) -> Arc<Pagemap> {
    let store = MemoryStore::new("memory", nr_pages(pages)).unwrap();
    PfnSpace::new().add(Box::new(store)).unwrap()
}

fn linear(beneath: Arc<dyn Target>) -> Arc<dyn Target> {
    let pages = range(0, beneath.nr_pages().get());
    Arc::new(Linear::try_new(beneath, pages).unwrap())
}

fn striped(stripes: u64, chunk: u64, pages: u64) -> Arc<dyn Target> {
    let stripes = (0..stripes).map(|_| {
        let store: Arc<dyn Target> = memory(pages / stripes);
        (store, Pgoff::ZERO)
    });
    Arc::new(Striped::try_new(stripes.collect(), nr_pages(chunk), nr_pages(pages)).unwrap())
}

fn table(targets: Vec<Arc<dyn Target>>) -> Arc<dyn Target> {
    let mut start = 0;
    let entries = targets.into_iter().map(|target| {
        let pages = range(start, target.nr_pages().get());
        start = pages.end();
        (pages, target)
    });
    Arc::new(Table::try_new(entries.collect()).unwrap())
}

fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("direct_access");
    let pages = 1 << 18;
    let stacks = [
        ("store", memory(pages) as Arc<dyn Target>),
        ("table of 8, linear, striped", {
            table((0..8).map(|_| linear(striped(4, 256, pages / 8))).collect())
        }),
    ];
    for (name, target) in stacks {
        let region = Region::try_new(target).unwrap();
        let mut page = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                page = (page + 104_729) % pages;
                region.direct_access(black_box(range(page, 1))).unwrap()
            });
        });
    }
    group.finish();
}

fn extents(criterion: &mut Criterion) {
    let tebibyte = 1 << 28;
    let mut group = criterion.benchmark_group("extents of 1 TiB");
    for (name, target) in [
        ("store", memory(tebibyte) as Arc<dyn Target>),
        ("striped, 4096 extents", striped(4, tebibyte / 4096, tebibyte)),
    ] {
        let region = Region::try_new(target).unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter(|| region.extents(region.pages()).unwrap().count());
        });
    }
    group.finish();
}

/// Pages of each file that bios go to.
const PAGES: u64 = 1 << 13;

/// A region, and the files that hold what its bios move, for raw I/O on the same pages.
struct Case {
    name: &'static str,
    region: Region,
    files: Vec<File>,
    /// Where in them the region's pages begin.
    offset: u64,
}

struct Files(tempfile::TempDir, PfnSpace);

impl Files {
    fn raw(&self, name: &str) -> File {
        File::options().read(true).write(true).open(self.0.path().join(name)).unwrap()
    }

    fn blank(&mut self, name: &str, pages: u64) -> Arc<dyn Target> {
        let (store, _) = FileStore::open_sized(&self.0.path().join(name), nr_pages(pages)).unwrap();
        self.1.add(Box::new(store)).unwrap()
    }

    /// Of ones, so that all of it is there.
    fn full(&mut self, name: &str) -> Arc<dyn Target> {
        let bytes = usize::try_from(nr_pages(PAGES).bytes()).unwrap();
        std::fs::write(self.0.path().join(name), vec![1; bytes]).unwrap();
        self.blank(name, PAGES)
    }

    fn linear(&mut self) -> Case {
        let region = Region::try_new(table(vec![linear(self.full("file"))])).unwrap();
        Case { name: "linear", region, files: vec![self.raw("file")], offset: 0 }
    }

    /// Two legs, in regions of 512 KiB.
    fn mirror(&mut self) -> Case {
        let legs = ["leg", "other leg"].map(|leg| (self.full(leg), Pgoff::ZERO));
        let device = Some(self.blank("log", 2));
        let log = MirrorLog { device, region: nr_pages(128), in_sync: InSync::Yes };
        let mirror = Mirror::open(legs.into(), log, nr_pages(PAGES)).unwrap();
        let region = Region::try_new(Arc::new(mirror)).unwrap();
        let files = ["leg", "other leg"].map(|leg| self.raw(leg)).into();
        Case { name: "mirror", region, files, offset: 0 }
    }

    /// In chunks of 16 KiB, none of them changed, or all.
    fn snapshot(&mut self, name: &'static str, changed: bool) -> Case {
        let (origin, cow) = (format!("{name} origin"), format!("{name} cow"));
        let chunk = nr_pages(4);
        let targets = (self.full(&origin), self.blank(&cow, PAGES * 2));
        let snapshot = Snapshot::open(targets.0, targets.1, chunk, nr_pages(PAGES)).unwrap();
        let region = Region::try_new(Arc::new(snapshot)).unwrap();
        if !changed {
            return Case { name, region, files: vec![self.raw(&origin)], offset: 0 };
        }
        let buffer = vec![1; usize::try_from(nr_pages(PAGES).bytes()).unwrap()];
        region.write(region.pages(), &buffer).unwrap();
        // Behind the header and the map, a chunk each, in one area.
        Case { name, region, files: vec![self.raw(&cow)], offset: 2 * chunk.bytes() }
    }
}

fn bios(criterion: &mut Criterion) {
    let mut files = Files(tempfile::tempdir().unwrap(), PfnSpace::new());
    let cases = [
        files.linear(),
        files.mirror(),
        files.snapshot("snapshot, unchanged", false),
        files.snapshot("snapshot, changed", true),
    ];
    // Pages here and there, and large runs one behind another.
    for (count, step) in [(1, 1021), (256, 256)] {
        let mut buffer = vec![0; usize::try_from(nr_pages(count).bytes()).unwrap()];
        let mut page = 0;
        let mut next = move || {
            page = (page + step) % (PAGES - count + 1) / count * count;
            page
        };
        for Case { name, region, files, offset } in &cases {
            let mut group = criterion.benchmark_group(format!("{name}, read {} KiB", count * 4));
            group.throughput(Throughput::Bytes(count * 4096));
            group.bench_function("raw", |bencher| {
                let file = &files[0];
                bencher.iter(|| file.read_exact_at(&mut buffer, offset + next() * 4096).unwrap());
            });
            group.bench_function("bio", |bencher| {
                bencher.iter(|| region.read(range(next(), count), &mut buffer).unwrap());
            });
            group.finish();
        }
        // A snapshot that is written is not unchanged any more.
        let written = cases.iter().filter(|case| case.name != "snapshot, unchanged");
        for Case { name, region, files, offset } in written {
            let mut group = criterion.benchmark_group(format!("{name}, write {} KiB", count * 4));
            group.throughput(Throughput::Bytes(count * 4096));
            group.bench_function("raw", |bencher| {
                bencher.iter(|| {
                    let at = offset + next() * 4096;
                    files.iter().for_each(|file| file.write_all_at(&buffer, at).unwrap());
                });
            });
            group.bench_function("bio", |bencher| {
                bencher.iter(|| region.write(range(next(), count), &buffer).unwrap());
            });
            group.finish();
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    look_up(&mut criterion);
    extents(&mut criterion);
    bios(&mut criterion);
    criterion.final_summary();
}
