// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd check`.

use std::fs;
use std::process::Output;

use crate::Place;

/// Runs `check` on a table over two files of 1 MiB.
fn check(place: &Place, table: &str) -> (Output, String) {
    for name in ["a", "b"] {
        fs::File::create(place.path(name)).unwrap().set_len(1 << 20).unwrap();
    }
    fs::write(place.path("table"), place.expand(table)).unwrap();
    let output = place.run("check --table @/table");
    let shown = String::from_utf8(output.stdout.clone()).unwrap();
    // The place may be on a tmpfs.
    let shown = shown.replace("lost without power", "persistent");
    (output, shown.replace(&place.expand("@"), "@"))
}

#[test]
fn check_shows_stack_extents_and_window() {
    let place = Place::new();
    let (output, shown) = check(
        &place,
        "s: 0 4096 striped 2 1024 @/a 0 @/b 0\n0 1024 linear s 0\n1024 3072 linear s 1024\n",
    );
    assert!(output.status.success(), "{output:?}");
    let expected = "device: 2 MiB (2097152 bytes), 512 pages
├─ linear, 512 KiB (524288 bytes) from pgoff 0x0
│  └─ table s from pgoff 0x0
│     └─ striped over 2 in chunks of 512 KiB (524288 bytes), 2 MiB (2097152 bytes) from pgoff 0x0
│        ├─ file @/a from pgoff 0x0
│        └─ file @/b from pgoff 0x0
└─ linear, 1536 KiB (1572864 bytes) from pgoff 0x80
   └─ table s from pgoff 0x80
      └─ striped over 2 in chunks of 512 KiB (524288 bytes), 2 MiB (2097152 bytes) from pgoff 0x0
         ├─ file @/a from pgoff 0x0
         └─ file @/b from pgoff 0x0
extents:
  pgoff 0x0, 128 pages: direct, @/a from byte 0
  pgoff 0x80, 128 pages: direct, @/b from byte 0
  pgoff 0x100, 128 pages: direct, @/a from byte 524288
  pgoff 0x180, 128 pages: direct, @/b from byte 524288
stores:
  @/a: 1 MiB (1048576 bytes), read-write, persistent
  @/b: 1 MiB (1048576 bytes), read-write, persistent
window: direct, in 4 mappings
";
    assert_eq!(shown, expected);
}

#[test]
fn check_shows_mirrors_and_snapshots_and_changes_nothing() {
    let place = Place::new();
    for (name, bytes) in [("cow", 1 << 20), ("log", 8192)] {
        std::fs::write(place.path(name), vec![0; bytes]).unwrap();
    }
    let (output, shown) = check(
        &place,
        "base: 0 1024 linear @/a 0\n\
         m: 0 1024 mirror disk 2 @/log 256 2 @/b 0 @/b 1024\n\
         0 1024 linear m 0\n\
         1024 1024 snapshot base @/cow P 32\n",
    );
    assert!(output.status.success(), "{output:?}");
    let expected = "device: 1 MiB (1048576 bytes), 256 pages
├─ linear, 512 KiB (524288 bytes) from pgoff 0x0
│  └─ table m from pgoff 0x0
│     └─ mirror of 2 in regions of 128 KiB (131072 bytes), 512 KiB (524288 bytes) from pgoff 0x0: legs healthy, recovering, 4 of 4 regions to be copied
│        ├─ log: file @/log from pgoff 0x0
│        ├─ leg: file @/b from pgoff 0x0
│        └─ leg: file @/b from pgoff 0x80
└─ snapshot in chunks of 16 KiB (16384 bytes), 512 KiB (524288 bytes) from pgoff 0x80: 0 of 32 chunks in use
   ├─ origin: table base from pgoff 0x0
   │  └─ linear, 512 KiB (524288 bytes) from pgoff 0x0
   │     └─ file @/a from pgoff 0x0
   └─ changes: file @/cow from pgoff 0x0
extents:
  pgoff 0x0, 128 pages: not direct, mirror writes to several places at once
  pgoff 0x80, 128 pages: not direct, snapshot keeps what is written apart from its origin
stores:
  @/log: 8 KiB (8192 bytes), read-write, persistent
  @/b: 1 MiB (1048576 bytes), read-write, persistent
  @/a: 1 MiB (1048576 bytes), read-only, persistent
  @/cow: 1 MiB (1048576 bytes), read-write, persistent
window: served, because a part of the region can't be mapped by a frontend: 128 pages can't be accessed directly: mirror writes to several places at once
";
    assert_eq!(shown, expected);
    for name in ["cow", "log"] {
        assert!(std::fs::read(place.path(name)).unwrap().iter().all(|byte| *byte == 0), "{name}");
    }
}

#[test]
fn check_of_fine_stripes_counts_them_and_serves() {
    let (output, shown) = check(&Place::new(), "0 2048 striped 2 8 @/a 0 @/b 0\n2048 1024 zero\n");
    assert!(output.status.success(), "{output:?}");
    assert!(shown.contains("\n  and 193 more\n"), "{shown}");
    assert!(shown.contains("\nwindow: served, because the region lies in more than 64 extents"));
    assert!(shown.ends_with("; behind its end are zeroes, up to 2 MiB (2097152 bytes)\n"));
}

#[test]
fn check_of_what_cannot_be_served_says_why_and_fails() {
    let place = Place::new();
    let (output, shown) = check(&place, "0 1024 linear @/a 0\n1024 512 linear @/b 0\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.ends_with("\nwindow: none\n"), "{shown}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("vhost-pmemd: cannot be served: the region has 786432 bytes"),
        "{stderr}"
    );

    let (output, _) = check(&place, "0 8 linear @/c 0\n");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("/c: no such file; create it"), "{stderr}");
}
