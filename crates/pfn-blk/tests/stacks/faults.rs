// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any read, write or sync of any store fails at any point: the error is that store's, what came
//! before is done, what came after is not.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};

use pfn_blk::{
    BioError, HookedStore, MemoryStore, PersistError, PgoffRange, Region, StoreOperation, Target,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::model::{Page, cases, fill, range};
use crate::stack::{Stack, any_remapping, name};

/// What all stores of a stack share.
#[derive(Debug, Default)]
struct Plan {
    /// How many more operations go well; none is all.
    left: Option<usize>,
    /// What was done, by which store; the last one failed if `failed`.
    done: Vec<(usize, PgoffRange)>,
    failed: bool,
    /// The store whose syncs fail.
    sync_fails: Option<usize>,
}

/// Does as the plan says, before the store of that number does anything.
fn follow(plan: &Mutex<Plan>, number: usize, operation: StoreOperation) -> io::Result<()> {
    let mut plan = plan.lock().unwrap();
    let fails = match operation {
        StoreOperation::Persist => plan.sync_fails == Some(number),
        StoreOperation::Attribute | StoreOperation::SetAttribute => false,
        StoreOperation::Read(pages) | StoreOperation::Write(pages) => {
            assert!(!plan.failed, "it went on after a failure");
            plan.done.push((number, pages));
            plan.failed = plan.left == Some(0);
            plan.left = plan.left.map(|left| left.saturating_sub(1));
            plan.failed
        }
    };
    if fails { Err(io::Error::other("injected")) } else { Ok(()) }
}

/// A stack of faulty stores, its pages filled with 1.
fn build(stack: &Stack) -> (crate::stack::Built, Region, Arc<Mutex<Plan>>) {
    let plan = Arc::new(Mutex::new(Plan::default()));
    let mut built = stack.build_on(&mut |number, nr_pages| {
        let store = MemoryStore::new(&name(number), nr_pages).unwrap();
        let plan = Arc::clone(&plan);
        Box::new(HookedStore::new(store, move |operation| follow(&plan, number, operation)))
    });
    for (pagemap, held) in built.stores.iter().zip(&mut built.model.stores) {
        held.fill(1);
        let whole = Region::try_new(Arc::clone(pagemap) as Arc<_>).unwrap();
        whole.write(whole.pages(), &fill(held)).unwrap();
    }
    let region = Region::try_new(Arc::clone(&built.target)).unwrap();
    (built, region, plan)
}

/// The stores' pages among some of a stack's.
fn at(pages: &[Page]) -> Vec<(usize, u64)> {
    let at = |page: &Page| match *page {
        Page::At(store, at) => Some((store, at)),
        _ => None,
    };
    pages.iter().filter_map(at).collect()
}

/// The same, of operations that stores did.
fn pages_of(done: &[(usize, PgoffRange)]) -> Vec<(usize, u64)> {
    let pages = |(store, pages): &(usize, PgoffRange)| {
        let store = *store;
        (pages.start().get()..pages.end()).map(move |at| (store, at))
    };
    done.iter().flat_map(pages).collect()
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn write_that_fails_is_done_up_to_the_piece_that_failed(
        stack in any_remapping(),
        start in any::<Index>(),
        len in any::<Index>(),
        left in 0..6usize,
    ) {
        let (built, region, plan) = build(&stack);
        let size = built.model.pages.len();
        let start = start.index(size);
        let len = 1 + len.index(size - start);
        *plan.lock().unwrap() = Plan { left: Some(left), ..Plan::default() };
        let pages = range(start as u64, len as u64);
        let result = region.write(pages, &fill(&vec![2; len]));
        let Plan { done, failed, .. } = std::mem::take(&mut *plan.lock().unwrap());

        // In order, and each page once.
        let asked = at(&built.model.pages[start..start + len]);
        let touched = pages_of(&done);
        prop_assert_eq!(&touched[..], &asked[..touched.len()]);
        let (good, bad) = done.split_at(done.len() - usize::from(failed));
        match (&result, bad) {
            (Err(BioError::Store { store, pages, .. }), [(number, failed)]) => {
                prop_assert_eq!(store, &name(*number));
                prop_assert_eq!(pages, failed);
            }
            (Err(BioError::ErrorTarget { .. }), []) => {}
            (Ok(()), []) => prop_assert_eq!(touched.len(), asked.len()),
            other => prop_assert!(false, "{:?}", other),
        }

        let good: HashSet<_> = pages_of(good).into_iter().collect();
        let bad: HashSet<_> = pages_of(bad).into_iter().collect();
        for (number, pagemap) in built.stores.iter().enumerate() {
            let whole = Region::try_new(Arc::clone(pagemap) as Arc<_>).unwrap();
            for page in 0..pagemap.nr_pages().get() {
                let mut held = [0; 4096];
                whole.read(range(page, 1), &mut held).unwrap();
                if !bad.contains(&(number, page)) {
                    let expected = if good.contains(&(number, page)) { 2 } else { 1 };
                    prop_assert_eq!(held, [expected; 4096], "page {} of store {}", page, number);
                }
            }
        }
    }

    #[test]
    fn read_that_fails_says_where(stack in any_remapping(), left in 0..6usize) {
        let (built, region, plan) = build(&stack);
        *plan.lock().unwrap() = Plan { left: Some(left), ..Plan::default() };
        let mut buffer = vec![0; built.model.pages.len() * 4096];
        let result = region.read(region.pages(), &mut buffer);
        let plan = plan.lock().unwrap();
        match result {
            Err(BioError::Store { store, pages, .. }) => {
                let (number, failed) = plan.done.last().unwrap();
                prop_assert!(plan.failed);
                prop_assert_eq!((store, pages), (self::name(*number), *failed));
            }
            _ => prop_assert!(!plan.failed),
        }
    }

    #[test]
    fn sync_that_fails_fails_for_its_pages_and_for_ever(
        stack in any_remapping(),
        store in any::<Index>(),
        start in any::<Index>(),
        len in any::<Index>(),
    ) {
        let (built, region, plan) = build(&stack);
        if built.stores.is_empty() {
            return Ok(());
        }
        let store = store.index(built.stores.len());
        let size = built.model.pages.len();
        let start = start.index(size);
        let len = 1 + len.index(size - start);
        let pages = range(start as u64, len as u64);
        let concerned = at(&built.model.pages[start..start + len]).iter().any(|at| at.0 == store);
        region.persist(pages).unwrap();

        plan.lock().unwrap().sync_fails = Some(store);
        match region.persist(pages) {
            Err(PersistError::Sync { store: name, .. }) => {
                prop_assert!(concerned);
                prop_assert_eq!(name, self::name(store));
            }
            result => prop_assert!(result.is_ok() && !concerned),
        }
        plan.lock().unwrap().sync_fails = None;
        match region.persist(pages) {
            Err(PersistError::Failed { .. }) => prop_assert!(concerned),
            result => prop_assert!(result.is_ok() && !concerned),
        }
    }
}
