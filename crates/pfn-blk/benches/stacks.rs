// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a stack costs: look-ups, extents, and bios against raw I/O on the same file.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use pfn_blk::{
    FileStore, Linear, MemoryStore, NrPages, Pagemap, PfnSpace, Pgoff, PgoffRange, Region, Striped,
    Table, Target,
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

fn bios(criterion: &mut Criterion) {
    const PAGES: usize = 1 << 13;
    let pages = PAGES as u64;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![1; PAGES * 4096]).unwrap();
    let raw = File::options().read(true).write(true).open(&path).unwrap();
    let (store, _) = FileStore::open_sized(&path, nr_pages(pages)).unwrap();
    let store = PfnSpace::new().add(Box::new(store)).unwrap();
    let region = Region::try_new(table(vec![linear(store)])).unwrap();

    for buffer_pages in [1, 256] {
        let mut buffer = vec![0; buffer_pages * 4096];
        let count = buffer_pages as u64;
        let mut group = criterion.benchmark_group(format!("{} KiB", count * 4));
        group.throughput(Throughput::Bytes(count * 4096));
        let mut page = 0;
        let mut next = move || {
            page = (page + 1021 * count) % (pages - count);
            page
        };
        group.bench_function("pread", |bencher| {
            bencher.iter(|| raw.read_exact_at(&mut buffer, next() * 4096).unwrap());
        });
        group.bench_function("read bio", |bencher| {
            bencher.iter(|| region.read(range(next(), count), &mut buffer).unwrap());
        });
        group.bench_function("pwrite", |bencher| {
            bencher.iter(|| raw.write_all_at(&buffer, next() * 4096).unwrap());
        });
        group.bench_function("write bio", |bencher| {
            bencher.iter(|| region.write(range(next(), count), &buffer).unwrap());
        });
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
