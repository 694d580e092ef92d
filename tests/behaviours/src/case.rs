// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A case: one behaviour, by its name.

use std::fmt;

use anyhow::Result;

use crate::site::Site;

/// One behaviour, and the function that checks it.
pub(crate) struct Case {
    /// `theme/behaviour`.
    pub(crate) name: String,
    pub(crate) run: fn(&Site) -> Result<()>,
    /// Whether it mounts or makes filesystems itself, and leaves any behind. Others find an empty one,
    /// mounted with DAX.
    pub(crate) mounts: bool,
}

/// The cases of a theme: functions of the same names.
macro_rules! cases {
    ($theme:literal: $($name:ident)* $(; mounts: $($mounts:ident)*)?) => {
        pub(crate) fn cases() -> Vec<crate::case::Case> {
            vec![
                $(crate::case::cases!(@ $theme $name false),)*
                $($(crate::case::cases!(@ $theme $mounts true),)*)?
            ]
        }
    };
    (@ $theme:literal $name:ident $mounts:literal) => {
        crate::case::Case {
            name: format!("{}/{}", $theme, stringify!($name)),
            run: $name,
            mounts: $mounts,
        }
    };
}
pub(crate) use cases;

/// The error of a case that can't be checked here, and why.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a case that can't be checked here, with the reason.
macro_rules! skip {
    ($($reason:tt)*) => {
        return Err(crate::case::Skip(format!($($reason)*)).into())
    };
}
pub(crate) use skip;
