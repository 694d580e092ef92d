// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Filesystem test suites, in guests, on ext4 and XFS with DAX, in each window.
//!
//! # Model
//!
//! - A test is a suite in a [place](Place): a filesystem in a window. It has a guest of its own, and
//!   `cargo test --test suites ext4::direct` runs those of one place.
//! - Those of the [baseline](Window::Baseline) run with `--ignored` alone: they tell what a failure
//!   is to be blamed on.
//! - A failure has to be in `known-failures.txt`, with its reason; what is there has to fail.
//! - A run leaves a [record], of which `cargo xtask suites` makes the table in `docs/suites.md`.

mod dax_behaviours;
mod fio;
mod fsx;
mod known;
mod pjdfstest;
mod place;
mod record;
mod results;
mod stress_ng;
mod suite;

/// Makes a test of each suite in each place. A suite is a module with a `SUITE`.
macro_rules! suites {
    ($($name:ident)*) => {
        suites! { @filesystem ext4 Ext4 [$($name)*] }
        suites! { @filesystem xfs Xfs [$($name)*] }
    };
    (@filesystem $module:ident $filesystem:ident $names:tt) => {
        mod $module {
            suites! { @window direct $filesystem Direct [] $names }
            suites! { @window served $filesystem Served [] $names }
            suites! { @window baseline $filesystem Baseline [#[ignore = "not our device"]] $names }
        }
    };
    (@window $module:ident $filesystem:ident $window:ident $ignore:tt [$($name:ident)*]) => {
        mod $module {
            use crate::place::{Filesystem, Place, Window};

            const PLACE: Place =
                Place { filesystem: Filesystem::$filesystem, window: Window::$window };

            $(suites! { @test $ignore $name })*
        }
    };
    (@test [$($ignore:tt)*] $name:ident) => {
        #[test]
        $($ignore)*
        fn $name() {
            crate::$name::SUITE.check(PLACE);
        }
    };
}

suites! { dax_behaviours fio fsx pjdfstest stress_ng }
