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

/// Files of ones, as stores.
struct Files(tempfile::TempDir, PfnSpace);

impl Files {
    fn raw(&self, name: &str) -> File {
        File::options().read(true).write(true).open(self.0.path().join(name)).unwrap()
    }

    fn blank(&mut self, name: &str, pages: u64) -> Arc<dyn Target> {
        let (store, _) = FileStore::open_sized(&self.0.path().join(name), nr_pages(pages)).unwrap();
        self.1.add(Box::new(store)).unwrap()
    }

    fn full(&mut self, name: &str) -> Arc<dyn Target> {
        let path = self.0.path().join(name);
        let bytes = usize::try_from(nr_pages(PAGES).bytes()).unwrap();
        std::fs::write(&path, vec![1; bytes]).unwrap();
        let (store, _) = FileStore::open_sized(&path, nr_pages(PAGES)).unwrap();
        self.1.add(Box::new(store)).unwrap()
    }

    /// A snapshot in chunks of 16 KiB, as it is after some use if `changed`.
    fn snapshot(&mut self, name: &str, changed: bool) -> Region {
        let origin = self.full(&format!("{name} origin"));
        let cow = self.blank(&format!("{name} cow"), PAGES * 2);
        let snapshot = Snapshot::open(origin, cow, nr_pages(4), nr_pages(PAGES)).unwrap();
        let region = Region::try_new(Arc::new(snapshot)).unwrap();
        if changed {
            let buffer = vec![1; usize::try_from(nr_pages(PAGES).bytes()).unwrap()];
            region.write(region.pages(), &buffer).unwrap();
        }
        region
    }

    /// A mirror of two legs in regions of 512 KiB.
    fn mirror(&mut self) -> Region {
        let legs = ["leg", "other leg"].map(|leg| (self.full(leg), Pgoff::ZERO));
        let device = Some(self.blank("log", 2));
        let log = MirrorLog { device, region: nr_pages(128), in_sync: InSync::Yes };
        let mirror = Mirror::open(legs.into(), log, nr_pages(PAGES)).unwrap();
        Region::try_new(Arc::new(mirror)).unwrap()
    }
}

fn bios(criterion: &mut Criterion) {
    let mut files = Files(tempfile::tempdir().unwrap(), PfnSpace::new());
    let linear = linear(files.full("file"));
    let regions = [
        ("linear", Region::try_new(table(vec![linear])).unwrap()),
        ("mirror", files.mirror()),
        ("snapshot, unchanged", files.snapshot("unchanged", false)),
        ("snapshot, changed", files.snapshot("changed", true)),
    ];
    let (raw, second) = (files.raw("file"), files.raw("other leg"));

    for count in [1, 256] {
        let mut buffer = vec![0; usize::try_from(nr_pages(count).bytes()).unwrap()];
        let mut page = 0;
        let mut next = move || {
            page = (page + 1021 * count) % (PAGES - count);
            page
        };
        let mut group = criterion.benchmark_group(format!("read {} KiB", count * 4));
        group.throughput(Throughput::Bytes(count * 4096));
        group.bench_function("pread", |bencher| {
            bencher.iter(|| raw.read_exact_at(&mut buffer, next() * 4096).unwrap());
        });
        for (name, region) in &regions {
            group.bench_function(*name, |bencher| {
                bencher.iter(|| region.read(range(next(), count), &mut buffer).unwrap());
            });
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("write {} KiB", count * 4));
        group.throughput(Throughput::Bytes(count * 4096));
        group.bench_function("pwrite", |bencher| {
            bencher.iter(|| raw.write_all_at(&buffer, next() * 4096).unwrap());
        });
        group.bench_function("pwrite to two files", |bencher| {
            bencher.iter(|| {
                let at = next() * 4096;
                raw.write_all_at(&buffer, at).unwrap();
                second.write_all_at(&buffer, at).unwrap();
            });
        });
        // A snapshot that is written is not unchanged any more.
        for (name, region) in regions.iter().filter(|(name, _)| !name.contains("unchanged")) {
            group.bench_function(*name, |bencher| {
                bencher.iter(|| region.write(range(next(), count), &buffer).unwrap());
            });
        }
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    look_up(&mut criterion);
    extents(&mut criterion);
    bios(&mut criterion);
    criterion.final_summary();
}
