// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks, also those that a panic let go of: what they guard is good between any two statements.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
