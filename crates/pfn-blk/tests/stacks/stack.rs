// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random stacks: what to build, and what it must be like.

use std::sync::Arc;

use pfn_blk::{
    ErrorTarget, Linear, MemoryStore, NrPages, Pagemap, PfnSpace, Pgoff, Store, Striped, Table,
    Target, ZeroTarget,
};
use proptest::prelude::*;

use crate::model::{Model, Page, range};

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
}

/// Any stack, up to four targets deep.
pub(crate) fn any_stack() -> impl Strategy<Value = Stack> {
    let leaf = prop_oneof![
        6 => (1..=12u64).prop_map(Stack::Store),
        1 => (1..=4u64).prop_map(Stack::Zero),
        1 => (1..=3u64).prop_map(Stack::Error),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let several = prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            (inner, any::<u64>(), any::<u64>()).prop_map(|(beneath, start, len)| Stack::Linear(
                Box::new(beneath),
                start,
                len
            )),
            (any::<u64>(), several.clone())
                .prop_map(|(chunk, stripes)| Stack::Striped(chunk, stripes)),
            several.prop_map(Stack::Table),
        ]
    })
}

/// A stack that was built, and its model.
pub(crate) struct Built {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) stores: Vec<Arc<Pagemap>>,
    pub(crate) model: Model,
}

impl Stack {
    pub(crate) fn build(&self) -> Built {
        self.build_on(&mut |_, store| Box::new(store))
    }

    /// Builds it on what `wrap` makes of each store, by its number.
    pub(crate) fn build_on(
        &self,
        wrap: &mut dyn FnMut(usize, MemoryStore) -> Box<dyn Store>,
    ) -> Built {
        let mut builder = Builder { stores: Vec::new(), space: PfnSpace::new(), wrap };
        let (target, pages) = builder.build(self);
        let stores = builder.stores;
        let held = |store: &Arc<Pagemap>| vec![0; usize::try_from(store.nr_pages().get()).unwrap()];
        let model = Model { pages, stores: stores.iter().map(held).collect() };
        Built { target, stores, model }
    }
}

struct Builder<'a> {
    stores: Vec<Arc<Pagemap>>,
    space: PfnSpace,
    wrap: &'a mut dyn FnMut(usize, MemoryStore) -> Box<dyn Store>,
}

fn nr_pages(count: u64) -> NrPages {
    NrPages::try_new(count).unwrap()
}

impl Builder<'_> {
    fn build(&mut self, stack: &Stack) -> (Arc<dyn Target>, Vec<Page>) {
        match stack {
            Stack::Store(len) => {
                let number = self.stores.len();
                let store = MemoryStore::new(&format!("store {number}"), nr_pages(*len)).unwrap();
                let pagemap = self.space.add((self.wrap)(number, store)).unwrap();
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
        }
    }

    /// Stripes of as many rows as the smallest has, at the end of each.
    fn build_striped(&mut self, chunk: u64, stripes: &[Stack]) -> (Arc<dyn Target>, Vec<Page>) {
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
}

fn many(target: impl Target + 'static, page: Page, len: u64) -> (Arc<dyn Target>, Vec<Page>) {
    (Arc::new(target), vec![page; usize::try_from(len).unwrap()])
}
