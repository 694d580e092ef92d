// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random stacks: what to build, and what it must be like.

use std::sync::Arc;

use pfn_blk::{
    BioVec, Buffer, ErrorTarget, InSync, Linear, MemoryStore, Mirror, MirrorLog, NrPages, Pagemap,
    PfnSpace, Pgoff, Region, Snapshot, Store, Striped, Table, Target, ZeroTarget,
};
use proptest::prelude::*;

use crate::model::{Model, Page, fill, range};

/// A stack to be. Sizes are made to fit while building, from whatever numbers there are.
#[derive(Debug, Clone)]
pub(crate) enum Stack {
    Store(u64),
    Zero(u64),
    Error(u64),
    /// What is beneath, and which part of it.
    Linear(Box<Self>, u64, u64),
    /// A chunk's size, and the stripes.
    Striped(u64, Vec<Self>),
    Table(Vec<Self>),
    /// A region's size, and the legs. What fails or forgets in them is taken for a store.
    Mirror(u64, Vec<Self>),
    /// A chunk's size, the origin, and what the COW store begins with. What fails or forgets in
    /// them is taken for a store.
    Snapshot(u64, Box<Self>, Box<Self>),
}

fn any_leaf() -> impl Strategy<Value = Stack> {
    prop_oneof![
        6 => (1..=12u64).prop_map(Stack::Store),
        1 => (1..=4u64).prop_map(Stack::Zero),
        1 => (1..=3u64).prop_map(Stack::Error),
    ]
}

fn remap(inner: impl Strategy<Value = Stack> + Clone) -> impl Strategy<Value = Stack> {
    let several = prop::collection::vec(inner.clone(), 1..4);
    prop_oneof![
        (inner, any::<u64>(), any::<u64>()).prop_map(|(beneath, start, len)| Stack::Linear(
            Box::new(beneath),
            start,
            len
        )),
        (any::<u64>(), several.clone()).prop_map(|(chunk, stripes)| Stack::Striped(chunk, stripes)),
        several.prop_map(Stack::Table),
    ]
}

/// Any stack of targets that only remap, up to four deep.
pub(crate) fn any_remapping() -> impl Strategy<Value = Stack> {
    any_leaf().prop_recursive(4, 24, 4, remap)
}

/// Any stack, up to four targets deep.
pub(crate) fn any_stack() -> impl Strategy<Value = Stack> {
    any_leaf().prop_recursive(4, 24, 4, |inner| {
        let legs = prop::collection::vec(inner.clone(), 2..4);
        let mirror = (any::<u64>(), legs).prop_map(|(region, legs)| Stack::Mirror(region, legs));
        let snapshot =
            (any::<u64>(), inner.clone(), inner.clone()).prop_map(|(chunk, origin, cow)| {
                Stack::Snapshot(chunk, Box::new(origin), Box::new(cow))
            });
        prop_oneof![3 => remap(inner), 1 => mirror, 1 => snapshot]
    })
}

/// Any stack of which no page fails or forgets.
pub(crate) fn any_solid() -> impl Strategy<Value = Stack> {
    any_stack().prop_map(|stack| stack.solid())
}

/// A mirror that was built.
pub(crate) struct BuiltMirror {
    pub(crate) mirror: Arc<Mirror>,
    /// What of each it uses.
    pub(crate) legs: Vec<Arc<dyn Target>>,
}

/// A stack that was built, and its model.
pub(crate) struct Built {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) stores: Vec<Arc<Pagemap>>,
    /// Which target keeps each page that one keeps.
    pub(crate) keepers: Vec<usize>,
    /// From the lowest to the uppermost.
    pub(crate) mirrors: Vec<BuiltMirror>,
    pub(crate) snapshots: Vec<Arc<Snapshot>>,
    pub(crate) model: Model,
}

/// Makes the store of that number and size.
type MakeStore<'a> = &'a mut dyn FnMut(usize, NrPages) -> Box<dyn Store>;

/// A store's name.
pub(crate) fn name(number: usize) -> String {
    format!("store {number}")
}

impl Stack {
    pub(crate) fn build(&self) -> Built {
        self.build_on(&mut |number, nr_pages| {
            Box::new(MemoryStore::new(&name(number), nr_pages).unwrap())
        })
    }

    /// Builds it of stores that hold zeroes. Pages of a snapshot's origin are given something
    /// else.
    pub(crate) fn build_on(&self, make: MakeStore<'_>) -> Built {
        self.build_with(make, None)
    }

    /// Builds it of the stores that it was built of before, with the legs of mirrors turned by `turn`.
    /// What the model's pages hold means nothing.
    pub(crate) fn build_again(&self, make: MakeStore<'_>, turn: usize) -> Built {
        self.build_with(make, Some(turn))
    }

    fn build_with(&self, make: MakeStore<'_>, again: Option<usize>) -> Built {
        let mut builder = Builder {
            stores: Vec::new(),
            space: PfnSpace::new(),
            make,
            is_new: again.is_none(),
            turn: again.unwrap_or_default(),
            keepers: Vec::new(),
            keeper: 0,
            mirrors: Vec::new(),
            snapshots: Vec::new(),
            kept: Vec::new(),
        };
        let (target, pages) = builder.build(self);
        let Builder { stores, keepers, mirrors, snapshots, kept, .. } = builder;
        let held = |store: &Arc<Pagemap>| vec![0; usize::try_from(store.nr_pages().get()).unwrap()];
        let model = Model { pages, stores: stores.iter().map(held).collect(), kept };
        Built { target, stores, keepers, mirrors, snapshots, model }
    }

    /// The same without what fails or forgets: targets, and logs in memory.
    fn solid(&self) -> Self {
        let all = |stacks: &[Self]| stacks.iter().map(Self::solid).collect();
        match self {
            Self::Store(len) | Self::Zero(len) | Self::Error(len) => Self::Store(*len),
            Self::Linear(beneath, start, len) => {
                Self::Linear(Box::new(beneath.solid()), *start, *len)
            }
            Self::Striped(chunk, stripes) => Self::Striped(*chunk, all(stripes)),
            Self::Table(parts) => Self::Table(all(parts)),
            Self::Mirror(region, legs) => Self::Mirror(region & !1, all(legs)),
            Self::Snapshot(chunk, origin, cow) => {
                Self::Snapshot(*chunk, Box::new(origin.solid()), Box::new(cow.solid()))
            }
        }
    }
}

struct Builder<'a> {
    stores: Vec<Arc<Pagemap>>,
    space: PfnSpace,
    make: MakeStore<'a>,
    /// Whether the stores are blank.
    is_new: bool,
    /// How many legs of a mirror go from the front to the end.
    turn: usize,
    keepers: Vec<usize>,
    /// How many targets there are that keep pages.
    keeper: usize,
    mirrors: Vec<BuiltMirror>,
    snapshots: Vec<Arc<Snapshot>>,
    kept: Vec<u8>,
}

pub(crate) fn nr_pages(count: u64) -> NrPages {
    NrPages::try_new(count).unwrap()
}

type Pages = Vec<Page>;

impl Builder<'_> {
    fn build(&mut self, stack: &Stack) -> (Arc<dyn Target>, Pages) {
        match stack {
            Stack::Store(len) => {
                let number = self.stores.len();
                let pagemap = self.space.add((self.make)(number, nr_pages(*len))).unwrap();
                self.stores.push(Arc::clone(&pagemap));
                (pagemap, (0..*len).map(|at| Page::At(number, at)).collect())
            }
            Stack::Zero(len) => many(ZeroTarget::new(nr_pages(*len)), Page::Zero, *len),
            Stack::Error(len) => many(ErrorTarget::new(nr_pages(*len)), Page::Error, *len),
            Stack::Linear(beneath, start, len) => {
                let (beneath, pages) = self.build(beneath);
                let size = beneath.nr_pages().get();
                let start = start % size;
                let len = 1 + len % (size - start);
                let linear = Linear::try_new(beneath, range(start, len)).unwrap();
                let pages = pages.into_iter().skip(start.try_into().unwrap());
                (Arc::new(linear), pages.take(len.try_into().unwrap()).collect())
            }
            Stack::Striped(chunk, stripes) => self.build_striped(*chunk, stripes),
            Stack::Table(parts) => {
                let mut entries = Vec::new();
                let mut all = Vec::new();
                for part in parts {
                    let (target, pages) = self.build(part);
                    let start = u64::try_from(all.len()).unwrap();
                    entries.push((range(start, target.nr_pages().get()), target));
                    all.extend(pages);
                }
                (Arc::new(Table::try_new(entries).unwrap()), all)
            }
            Stack::Mirror(region, legs) => self.build_mirror(*region, legs),
            Stack::Snapshot(chunk, origin, cow) => self.build_snapshot(*chunk, origin, cow),
        }
    }

    /// Stripes of as many rows as the smallest has, at the end of each.
    fn build_striped(&mut self, chunk: u64, stripes: &[Stack]) -> (Arc<dyn Target>, Pages) {
        let built: Vec<_> = stripes.iter().map(|stripe| self.build(stripe)).collect();
        let smallest = built.iter().map(|(target, _)| target.nr_pages().get()).min().unwrap();
        let chunk = 1 + chunk % smallest;
        let rows = smallest / chunk;
        let mut stripes = Vec::new();
        let mut dealt = Vec::new();
        for (target, pages) in built {
            let start = target.nr_pages().get() - rows * chunk;
            stripes.push((target, Pgoff::try_new(start).unwrap()));
            dealt.push(pages[start.try_into().unwrap()..].to_vec());
        }
        let chunk_len = usize::try_from(chunk).unwrap();
        let mut all = Vec::new();
        for row in 0..usize::try_from(rows).unwrap() {
            for pages in &dealt {
                all.extend(&pages[row * chunk_len..(row + 1) * chunk_len]);
            }
        }
        let len = nr_pages(rows * chunk * u64::try_from(stripes.len()).unwrap());
        (Arc::new(Striped::try_new(stripes, nr_pages(chunk), len).unwrap()), all)
    }

    /// A mirror of the ends of its legs, with a log if the region's size is even. Each leg is followed
    /// by a page for its label: those that are mirrors or snapshots have no stores of their own.
    fn build_mirror(&mut self, region: u64, legs: &[Stack]) -> (Arc<dyn Target>, Pages) {
        let leg = |leg: &Stack| Stack::Table(vec![leg.solid(), Stack::Store(1)]);
        let built: Vec<_> = legs.iter().map(|one| self.build(&leg(one)).0).collect();
        let len = built.iter().map(|leg| leg.nr_pages().get() - 1).min().unwrap();
        let device = (region % 2 == 0).then(|| self.build(&Stack::Store(2)).0);
        let region = nr_pages(1 + region % len);
        let log = MirrorLog { device, region, in_sync: InSync::AsLogged };
        let mut legs = Vec::new();
        let mut used: Vec<Arc<dyn Target>> = Vec::new();
        for leg in built {
            let start = leg.nr_pages().get() - 1 - len;
            used.push(Arc::new(Linear::try_new(Arc::clone(&leg), range(start, len)).unwrap()));
            legs.push((leg, Pgoff::try_new(start).unwrap()));
        }
        if self.is_new {
            // Which is what a new mirror is copied from.
            let first = Region::try_new(Arc::clone(&used[0])).unwrap();
            first.write(first.pages(), &fill(&vec![1; usize::try_from(len).unwrap()])).unwrap();
        }
        let turn = self.turn % legs.len();
        legs.rotate_left(turn);
        used.rotate_left(turn);
        let mirror = Arc::new(Mirror::open(legs, log, nr_pages(len)).unwrap());
        if self.is_new {
            mirror.resync().unwrap();
        }
        let bytes = read(&*used[0]);
        self.mirrors.push(BuiltMirror { mirror: Arc::clone(&mirror), legs: used });
        let pages = self.keep(bytes.chunks(4096).map(|page| page[0]).collect());
        (mirror, pages)
    }

    /// A snapshot whose COW store has room for all of it.
    fn build_snapshot(
        &mut self,
        chunk: u64,
        origin: &Stack,
        cow: &Stack,
    ) -> (Arc<dyn Target>, Pages) {
        let (origin, _) = self.build(&origin.solid());
        let len = origin.nr_pages().get();
        let bytes: Vec<u8> = (0..len).map(|page| u8::try_from(page % 90).unwrap() + 1).collect();
        let chunk = 1 + chunk % len;
        let room = (2 + len.div_ceil(chunk)) * chunk;
        let (cow, _) = self.build(&Stack::Table(vec![cow.solid(), Stack::Store(room)]));
        if self.is_new {
            let blank = vec![0; usize::try_from(cow.nr_pages().get()).unwrap()];
            for (target, bytes) in [(&origin, &bytes), (&cow, &blank)] {
                let region = Region::try_new(Arc::clone(target)).unwrap();
                region.write(region.pages(), &fill(bytes)).unwrap();
                region.persist(region.pages()).unwrap();
            }
        }
        let snapshot = Snapshot::open(origin, cow, nr_pages(chunk), nr_pages(len)).unwrap();
        let snapshot = Arc::new(snapshot);
        self.snapshots.push(Arc::clone(&snapshot));
        let pages = self.keep(bytes);
        (snapshot, pages)
    }

    /// The pages of a target that keeps them, and what they hold.
    fn keep(&mut self, bytes: Vec<u8>) -> Pages {
        let first = self.kept.len();
        self.kept.extend(bytes);
        self.keeper += 1;
        self.keepers.resize(self.kept.len(), self.keeper);
        (first..self.kept.len()).map(Page::Kept).collect()
    }
}

/// All that a target holds.
pub(crate) fn read(target: &dyn Target) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(target.nr_pages().bytes()).unwrap()];
    target.submit(BioVec::try_new(target.pages(), Buffer::Read(&mut bytes)).unwrap()).unwrap();
    bytes
}

fn many(target: impl Target + 'static, page: Page, len: u64) -> (Arc<dyn Target>, Pages) {
    (Arc::new(target), vec![page; usize::try_from(len).unwrap()])
}
