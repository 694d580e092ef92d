// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Extents tile every range, bios leave what the model has, each store and target alone and in
//! stacks.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use pfn_blk::{
    Access, Bio, BioError, FileStore, HookedStore, MemoryStore, NrPages, Pagemap, PfnSpace, Region,
    Store, SyncSet, Target,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::loop_device::LoopDevice;
use crate::model::{Model, Page, cases, fill, range};
use crate::stack::{Built, Stack, any_stack};

/// An operation on some pages of a stack.
#[derive(Debug, Clone)]
enum Step {
    Write(Index, Index, u8),
    Read(Index, Index),
    /// In several buffers.
    Vectored(Index, Index, u8),
    /// Through mappings of the CPU.
    Kmap(Index, Index, u8),
    /// From other pages of the same stack.
    Copy(Index, Index, Index),
    Persist(Index, Index),
    Extents(Index, Index),
}

fn any_step() -> impl Strategy<Value = Step> {
    let pages = || (any::<Index>(), any::<Index>());
    prop_oneof![
        (pages(), 1..=255u8).prop_map(|((start, len), byte)| Step::Write(start, len, byte)),
        pages().prop_map(|(start, len)| Step::Read(start, len)),
        (pages(), 1..=255u8).prop_map(|((start, len), byte)| Step::Vectored(start, len, byte)),
        (pages(), 1..=255u8).prop_map(|((start, len), byte)| Step::Kmap(start, len, byte)),
        (pages(), any::<Index>()).prop_map(|((start, len), to)| Step::Copy(start, len, to)),
        pages().prop_map(|(start, len)| Step::Persist(start, len)),
        pages().prop_map(|(start, len)| Step::Extents(start, len)),
    ]
}

/// A stack under test, and the model it is held against.
struct Subject {
    region: Region,
    stores: Vec<Arc<Pagemap>>,
    /// Which target keeps each page that one keeps.
    keepers: Vec<usize>,
    model: Model,
}

impl Subject {
    fn new(built: Built) -> Self {
        let Built { target, stores, keepers, model, .. } = built;
        Self { region: Region::try_new(target).unwrap(), stores, keepers, model }
    }

    fn pick(&self, start: Index, len: Index) -> (usize, usize) {
        let size = self.model.pages.len();
        let start = start.index(size);
        (start, 1 + len.index(size - start))
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Write(start, len, byte) => {
                let (start, bytes) = self.bytes(start, len, byte);
                let done = self.region.write(of(start, bytes.len()), &fill(&bytes));
                assert_eq!(done.is_ok(), self.model.write(start, &bytes), "{done:?}");
            }
            Step::Vectored(start, len, byte) => {
                let (start, bytes) = self.bytes(start, len, byte);
                let filled = fill(&bytes);
                let (ended, end_io) = ending();
                let bio = Bio::write(of(start, bytes.len()), filled.chunks(4096 * 2), end_io);
                self.region.submit(bio.unwrap());
                assert_eq!(ended.take(), [self.model.write(start, &bytes)]);
            }
            Step::Read(start, len) => {
                let (start, len) = self.pick(start, len);
                self.check_read(start, len);
            }
            Step::Kmap(start, len, byte) => {
                let (start, bytes) = self.bytes(start, len, byte);
                let mapped = self.region.kmap(of(start, bytes.len()));
                let direct = |page: &Page| matches!(page, Page::At(..));
                let pages = &self.model.pages[start..start + bytes.len()];
                assert_eq!(mapped.is_ok(), pages.iter().all(direct));
                if let Ok(mapped) = mapped {
                    mapped.write(0, &fill(&bytes)).unwrap();
                    assert!(self.model.write(start, &bytes));
                    self.check_read(start, bytes.len());
                    for (at, byte) in (0..).zip(&bytes) {
                        let mut page = [0; 4096];
                        mapped.read(at * 4096, &mut page).unwrap();
                        assert_eq!(page, [*byte; 4096]);
                    }
                    mapped.read(bytes.len() as u64 * 4096 - 1, &mut [0; 2]).unwrap_err();
                }
            }
            Step::Copy(start, len, to) => {
                let (start, len) = self.pick(start, len);
                let to = to.index(self.model.pages.len() - len + 1);
                // Where they overlap it depends on the pieces what comes out.
                let Ok(pinned) = self.region.pin(of(start, len)) else { return };
                if start.abs_diff(to) < len {
                    return;
                }
                let bytes = self.model.read(start, len).unwrap();
                let (ended, end_io) = ending();
                self.region.submit(Bio::write_from(of(to, len), &pinned, end_io).unwrap());
                assert_eq!(ended.take(), [self.model.write(to, &bytes)]);
                let Some(bytes) = self.model.read(to, len) else { return };
                let (ended, end_io) = ending();
                self.region.submit(Bio::read_to(of(to, len), &pinned, end_io).unwrap());
                assert_eq!(ended.take(), [self.model.write(start, &bytes)]);
            }
            Step::Persist(start, len) => {
                let (start, len) = self.pick(start, len);
                self.region.persist(of(start, len)).unwrap();
            }
            Step::Extents(start, len) => {
                let (start, len) = self.pick(start, len);
                self.check_extents(start, len);
            }
        }
    }

    /// A range, and a byte for each of its pages, no two neighbours the same.
    fn bytes(&self, start: Index, len: Index, byte: u8) -> (usize, Vec<u8>) {
        let (start, len) = self.pick(start, len);
        (start, (0..len).map(|at| byte.wrapping_add(u8::try_from(at % 251).unwrap())).collect())
    }

    fn check_read(&self, start: usize, len: usize) {
        let mut buffer = vec![0xee; len * 4096];
        let done = self.region.read(of(start, len), &mut buffer);
        match self.model.read(start, len) {
            Some(expected) => {
                done.unwrap();
                assert!(buffer == fill(&expected), "pages {start} + {len}");
            }
            None => assert!(matches!(done, Err(BioError::ErrorTarget { .. })), "{done:?}"),
        }
    }

    /// The extents tile the range, each page once and where it belongs, and none could be longer.
    fn check_extents(&self, start: usize, len: usize) {
        let mut at = start;
        let mut end_of_last = None;
        for (first, piece) in self.region.extents(of(start, len)).unwrap() {
            assert_eq!(first.get(), at as u64);
            match piece {
                Ok(extent) => {
                    assert_ne!(end_of_last, Some(extent.pfns().start().get()), "not joined");
                    for pfn in extent.pfns().start().get()..extent.pfns().end() {
                        let Page::At(store, page) = self.model.pages[at] else {
                            panic!("page {at} is {:?}", self.model.pages[at]);
                        };
                        assert!(std::ptr::eq(extent.pagemap(), &*self.stores[store]));
                        assert_eq!(pfn, self.stores[store].pfns().start().get() + page);
                        at += 1;
                    }
                    let end = extent.pfns().end();
                    let whole = extent.pagemap().pfns().end() == end;
                    end_of_last = (!whole).then_some(end);
                }
                Err(not) => {
                    for _ in 0..not.nr_pages.get() {
                        assert!(!matches!(self.model.pages[at], Page::At(..)));
                        at += 1;
                    }
                    end_of_last = None;
                }
            }
        }
        assert_eq!(at, start + len);
    }

    /// What a persist of a page syncs: a store, or the uppermost target that keeps it.
    fn sync_point(&self, page: Page) -> Option<(bool, usize)> {
        match page {
            Page::At(store, _) => Some((true, store)),
            Page::Kept(number) => Some((false, self.keepers[number])),
            _ => None,
        }
    }

    /// What a persist syncs is that which has the pages.
    fn check_persist(&self, target: &dyn Target) {
        for start in 0..self.model.pages.len() {
            for len in 1..=self.model.pages.len() - start {
                let mut leaves = HashSet::new();
                target.leaves(of(start, len), &mut |pagemap, pages| {
                    for at in pages.start().get()..pages.end() {
                        let pfn = pagemap.pfns().start().get() + at;
                        assert!(leaves.insert(pfn), "a leaf's page was named twice");
                    }
                });
                let at = |page: &Page| match *page {
                    Page::At(store, at) => Some(self.stores[store].pfns().start().get() + at),
                    _ => None,
                };
                let expected: HashSet<_> =
                    self.model.pages[start..start + len].iter().filter_map(at).collect();
                assert_eq!(leaves, expected);
                let mut syncs = SyncSet::default();
                target.persist(of(start, len), &mut syncs);
                let expected: HashSet<_> = self.model.pages[start..start + len]
                    .iter()
                    .filter_map(|page| self.sync_point(*page))
                    .collect();
                assert_eq!(syncs.len(), expected.len());
            }
        }
    }
}

/// How often a bio has ended, and whether well.
type Ended = Rc<RefCell<Vec<bool>>>;

fn ending() -> (Ended, impl FnOnce(Result<(), BioError>)) {
    let ended = Ended::default();
    let heard = Rc::clone(&ended);
    (ended, move |result: Result<(), BioError>| heard.borrow_mut().push(result.is_ok()))
}

fn of(start: usize, len: usize) -> pfn_blk::PgoffRange {
    range(start.try_into().unwrap(), len.try_into().unwrap())
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn any_stack_does_as_the_model(
        stack in any_stack(),
        steps in prop::collection::vec(any_step(), 0..30),
    ) {
        let mut subject = Subject::new(stack.build());
        for step in &steps {
            subject.run(step);
        }
        for page in 0..subject.model.pages.len() {
            subject.check_read(page, 1);
        }
    }

    #[test]
    fn any_stack_names_its_leaves_exactly(stack in any_stack()) {
        let built = stack.build();
        let target = Arc::clone(&built.target);
        Subject::new(built).check_persist(&*target);
    }
}

/// The same steps for each target by itself, so that a failure names it.
#[test]
fn each_target_alone_does_as_the_model() {
    let stores = || vec![Stack::Store(6), Stack::Store(7), Stack::Store(9)];
    let targets = [
        Stack::Store(8),
        Stack::Zero(8),
        Stack::Error(8),
        Stack::Linear(Box::new(Stack::Store(8)), 3, 4),
        Stack::Striped(0, stores()),
        Stack::Striped(1, stores()),
        Stack::Striped(2, stores()),
        Stack::Table(stores()),
        Stack::Mirror(0, stores()),
        Stack::Mirror(1, stores()),
        Stack::Snapshot(0, Box::new(Stack::Store(8)), Box::new(Stack::Store(1))),
        Stack::Snapshot(2, Box::new(Stack::Store(8)), Box::new(Stack::Store(1))),
    ];
    for target in targets {
        let mut subject = Subject::new(target.build());
        let size = subject.model.pages.len();
        for start in 0..size {
            for len in 1..=size - start {
                let byte = u8::try_from(1 + (start * 31 + len * 7) % 200).unwrap();
                let bytes: Vec<u8> = (0..len).map(|at| byte + u8::try_from(at).unwrap()).collect();
                let done = subject.region.write(of(start, len), &fill(&bytes));
                assert_eq!(done.is_ok(), subject.model.write(start, &bytes), "{target:?}");
                subject.check_read(start, len);
                subject.check_extents(start, len);
            }
        }
    }
}

/// What every store must do.
fn check_store(store: Box<dyn Store>) {
    let pagemap = PfnSpace::new().add(store).unwrap();
    let pages = usize::try_from(pagemap.nr_pages().get()).unwrap();
    let model = Model {
        pages: (0..pages).map(|at| Page::At(0, at as u64)).collect(),
        stores: vec![vec![0; pages]],
        kept: Vec::new(),
    };
    let region = Region::try_new(Arc::clone(&pagemap) as Arc<dyn Target>).unwrap();
    let mut subject = Subject { region, stores: vec![pagemap], keepers: Vec::new(), model };
    for start in 0..pages {
        let bytes: Vec<u8> =
            (start..pages).map(|at| u8::try_from(7 * start + at + 1).unwrap()).collect();
        subject.region.write(of(start, bytes.len()), &fill(&bytes)).unwrap();
        subject.model.write(start, &bytes);
        subject.check_read(0, pages);
        subject.check_extents(start, pages - start);
        // What a bio wrote is what a mapping shows, and the other way round.
        let mapped = subject.region.kmap(of(0, pages)).unwrap();
        let mut seen = vec![0; pages * 4096];
        mapped.read(0, &mut seen).unwrap();
        assert!(seen == fill(&subject.model.read(0, pages).unwrap()));
        mapped.write(start as u64 * 4096, &[0xee; 4096]).unwrap();
        subject.model.write(start, &[0xee]);
        subject.check_read(start, 1);
        subject.region.persist(of(0, pages)).unwrap();
    }
}

#[test]
fn each_store_alone_does_as_the_model() {
    let nr_pages = NrPages::try_new(6).unwrap();
    check_store(Box::new(MemoryStore::new("memory", nr_pages).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    check_store(Box::new(FileStore::open_sized(&file, nr_pages).unwrap().0));
    let memory = MemoryStore::new("memory", nr_pages).unwrap();
    check_store(Box::new(HookedStore::new(memory, |_| Ok(()))));
    std::fs::write(&file, vec![0; 6 * 4096]).unwrap();
    let Some(device) = LoopDevice::over(&file) else {
        eprintln!("not tested: no loop device can be made here, which takes root");
        return;
    };
    check_store(Box::new(FileStore::open(device.path(), Access::ReadWrite).unwrap()));
}

#[test]
fn read_only_store_is_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, fill(&[1, 2, 3])).unwrap();
    let store = FileStore::open(&path, Access::ReadOnly).unwrap();
    let pagemap = PfnSpace::new().add(Box::new(store)).unwrap();
    let region = Region::try_new(pagemap).unwrap();
    let mut buffer = vec![0; 3 * 4096];
    region.read(range(0, 3), &mut buffer).unwrap();
    assert!(buffer == fill(&[1, 2, 3]));
    let error = region.write(range(1, 1), &fill(&[9])).unwrap_err();
    assert!(matches!(error, BioError::ReadOnly { .. }), "{error:?}");
    let mapped = region.kmap(range(0, 3)).unwrap();
    mapped.read(4096, &mut buffer[..4096]).unwrap();
    assert_eq!(buffer[0], 2);
    mapped.write(0, &[9]).unwrap_err();
    // The fd that others get can't be written either.
    let lease = region.direct_access(range(0, 3)).unwrap().lease().unwrap();
    assert_eq!(lease.access(), Access::ReadOnly);
    rustix::io::write(lease.fd(), &[9]).unwrap_err();
    drop(mapped);
    region.persist(range(0, 3)).unwrap();
    assert!(std::fs::read(&path).unwrap() == fill(&[1, 2, 3]));
}

#[test]
fn bio_ends_exactly_once_however_it_goes() {
    let region = Subject::new(Stack::Table(vec![Stack::Store(2), Stack::Error(1)]).build()).region;
    let page = [5; 4096];
    let submitted = |start, len, ok| {
        let (ended, end_io) = ending();
        let buffers = std::iter::repeat_n(page.as_slice(), len);
        region.submit(Bio::write(of(start, len), buffers, end_io).unwrap());
        assert_eq!(ended.take(), [ok], "{start} {len}");
    };
    submitted(0, 2, true);
    submitted(1, 2, false);
    submitted(2, 2, false);

    let (ended, end_io) = ending();
    drop(Bio::persist(of(0, 1), end_io));
    assert_eq!(ended.take(), [false], "abandoned");
    let (ended, end_io) = ending();
    region.submit(Bio::persist(of(0, 3), end_io));
    assert_eq!(ended.take(), [true]);

    // One that can't be made doesn't begin, and so doesn't end.
    let (ended, end_io) = ending();
    let error = Bio::write(of(0, 2), [page.as_slice()], end_io).unwrap_err();
    assert!(matches!(error, BioError::Buffers { bytes: 4096, .. }), "{error:?}");
    let (_, end_io) = ending();
    Bio::write(of(0, 1), [page.as_slice(), page.as_slice()], end_io).unwrap_err();
    let (_, end_io) = ending();
    Bio::write(of(0, 1), [&page[..100], &page[100..]], end_io).unwrap_err();
    let (_, end_io) = ending();
    Bio::write_from(of(0, 1), &region.pin(of(0, 2)).unwrap(), end_io).unwrap_err();
    assert!(ended.take().is_empty());
}
