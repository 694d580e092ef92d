// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that a guest replaces, each by one that was synced, and with the directory synced after it.

use std::collections::BTreeMap;

/// How many names there are.
const NAMES: u64 = 7;

/// By name the last replacement that was synced.
#[derive(Default)]
pub(crate) struct Renames(BTreeMap<String, u64>);

impl Renames {
    /// Commands that replace files without an end, and say so.
    pub(crate) fn script(&self) -> String {
        let first = self.0.values().max().map_or(1, |last| last + 1);
        format!(
            "mkdir -p /mnt/dir
            sync /mnt
            number={first}
            while :; do
                name=$((number % {NAMES}))
                head -c 12k /dev/urandom > noise
                (echo $number; md5sum < noise; cat noise) > /mnt/dir/new
                sync /mnt/dir/new
                mv /mnt/dir/new /mnt/dir/$name
                sync /mnt/dir
                echo MARK renamed $name $number end
                number=$((number + 1))
            done"
        )
    }

    /// Commands that check that each file is whole, and say which it is.
    pub(crate) fn report() -> &'static str {
        "for file in /mnt/dir/[0-9]*; do
            if [ -e $file ]; then
                { read number; read sum rest; } < $file
                test \"$(tail -n +3 $file | md5sum)\" = \"$sum  -\"
                echo HELD renamed ${file##*/} $number end
            fi
        done"
    }

    /// What a guest has said to be synced.
    pub(crate) fn take_synced(&mut self, serial: &str) {
        self.0.extend(numbers("MARK renamed ", serial));
    }

    /// How many files there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Checks what a guest has said that there is.
    pub(crate) fn check(&self, serial: &str) -> Result<(), String> {
        let held: BTreeMap<_, _> = numbers("HELD renamed ", serial).collect();
        let lost = self.0.iter().find(|(name, number)| held.get(*name) < Some(number));
        lost.map_or(Ok(()), |(name, number)| {
            let held = held.get(name);
            Err(format!("{name} is that of {held:?}, not of {number} or later"))
        })
    }

    /// Takes what a guest has said that there is for what there is.
    pub(crate) fn take_held(&mut self, serial: &str) {
        self.0 = numbers("HELD renamed ", serial).collect();
    }
}

/// Names and numbers in lines that have them whole.
fn numbers<'a>(prefix: &'a str, serial: &'a str) -> impl Iterator<Item = (String, u64)> + 'a {
    serial.lines().filter_map(move |line| {
        let (name, number) = line.strip_prefix(prefix)?.strip_suffix(" end")?.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    })
}
