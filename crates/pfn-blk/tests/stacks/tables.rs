// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table language: what is printed is read back the same, and no text does harm.

use pfn_blk::table::{Line, parse};
use proptest::prelude::*;

use crate::table_oracle;

fn printed(lines: &[Line]) -> String {
    lines.iter().flat_map(|line| [line.to_string(), "\n".to_owned()]).collect()
}

/// A word, as it is written: with blanks and backslashes behind backslashes.
fn any_word() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        8 => "[a-zA-Z0-9/._:#é-]".prop_map(|plain| plain),
        1 => Just("\\ ".to_owned()),
        1 => Just("\\\\".to_owned()),
    ];
    prop::collection::vec(character, 1..12).prop_map(|word| word.concat())
}

fn any_device() -> impl Strategy<Value = String> {
    (any_word(), 0..=u64::from(u32::MAX)).prop_map(|(word, start)| format!("{word} {}", start * 8))
}

fn any_target() -> impl Strategy<Value = String> {
    let striped =
        (prop::collection::vec(any_device(), 1..4), 1..1000u64).prop_map(|(devices, chunk)| {
            format!("striped {} {} {}", devices.len(), chunk * 8, devices.join(" "))
        });
    let log = (prop::option::of(any_word()), 1..1000u64, 0..3usize).prop_map(
        |(device, region, in_sync)| {
            let words = device.iter().count() + 1 + usize::from(in_sync > 0);
            let kind = if device.is_some() { "disk" } else { "core" };
            let device = device.map_or(String::new(), |device| device + " ");
            let in_sync = ["", " sync", " nosync"][in_sync];
            format!("{kind} {words} {device}{}{in_sync}", region * 8)
        },
    );
    let mirror = (log, prop::collection::vec(any_device(), 2..4))
        .prop_map(|(log, legs)| format!("mirror {log} {} {}", legs.len(), legs.join(" ")));
    let snapshot = (any_word(), any_word(), 1..1000u64)
        .prop_map(|(origin, cow, chunk)| format!("snapshot {origin} {cow} P {}", chunk * 8));
    prop_oneof![
        any_device().prop_map(|device| format!("linear {device}")),
        striped,
        mirror,
        snapshot,
        Just("zero".to_owned()),
        Just("error".to_owned()),
    ]
}

/// A line as [`Line`] prints it.
fn any_line() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just(String::new()), "[a-z0-9_.-]{1,8}".prop_map(|name| name + ": ")];
    (name, 0..=u64::from(u32::MAX), 1..=u64::from(u32::MAX), any_target()).prop_map(
        |(name, start, length, target)| format!("{name}{} {} {target}\n", start * 8, length * 8),
    )
}

proptest! {
    #[test]
    fn table_that_is_printed_is_read_back_the_same(
        lines in prop::collection::vec(any_line(), 0..8),
    ) {
        let text = lines.concat();
        prop_assert_eq!(printed(&parse(&text).unwrap()), text);
    }

    #[test]
    fn any_text_is_read_as_by_the_oracle(text in "([ -~é\\\\\t]{0,40}\n?){0,4}") {
        table_oracle::check(&text);
    }

    /// One character wrong in a table that is right: the errors that people meet.
    #[test]
    fn table_with_a_slip_is_read_as_by_the_oracle(
        line in any_line(),
        at in any::<prop::sample::Index>(),
        slip in "[ -~]",
    ) {
        let mut characters: Vec<char> = line.chars().collect();
        let at = at.index(characters.len());
        characters[at] = slip.chars().next().unwrap();
        table_oracle::check(&characters.into_iter().collect::<String>());
    }
}
