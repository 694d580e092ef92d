// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! pjdfstest: what POSIX says of each system call, by its results and errors.

use guest_harness::crate_program;

use crate::place::Place;
use crate::results::{Case, Verdict, read_lines};
use crate::suite::Suite;

pub(crate) const SUITE: Suite = Suite {
    name: "pjdfstest",
    equip: |vm| Ok(vm.file(crate_program("pjdfstest")?, "usr/bin/pjdfstest")),
    script,
    read,
    operations: |_| None,
    // Beside `fsck`, all that 0.2.2 has for Linux.
    cases_min: |_| 399,
};

/// All that these filesystems have. The users have to exist in the guest.
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nobody"], ["tests", "tests"]]
"#;

/// Those that make the filesystem read-only first have a process of their own: others leave files open
/// for writing, with which nothing can be made read-only.
fn script(place: Place) -> String {
    place.filesystem.with_dax(&format!(
        "cat >/etc/passwd <<END
root:x:0:0::/:/bin/sh
nobody:x:65534:65534::/:/bin/sh
tests:x:1000:1000::/:/bin/sh
END
        cut -d: -f1,3 /etc/passwd | sed 's/:/:x:/; s/$/:/' >/etc/group
        mkdir /run/other
        mount -t tmpfs none /run/other
        cat >template <<'END'\n{SETTINGS}END
        sed s/REMOUNT/true/ template >remounting.toml
        sed s/REMOUNT/false/ template >others.toml
        export NO_COLOR=1
        # It returns 1 for a case that failed.
        pjdfstest -c remounting.toml -p /mnt -s /run/other erofs || [ $? = 1 ]
        pjdfstest -c others.toml -p /mnt -s /run/other || [ $? = 1 ]
        umount /run/other"
    ))
}

/// Reads `NAME ok`, `NAME FAILED` and `NAME skipped`, the latter two with why in the next line.
fn read(printed: &str) -> Vec<Case> {
    let mut cases = read_lines(printed);
    let mut lines = printed.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(word), None) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if !name.contains("::") {
            continue;
        }
        let mut why =
            || lines.next_if(|line| line.starts_with('\t')).map_or("", str::trim).to_owned();
        let verdict = match word {
            "ok" => Verdict::Passed,
            "skipped" => Verdict::Skipped(why()),
            "FAILED" => Verdict::Failed(why()),
            _ => continue,
        };
        // What the first process ran, the second one skips.
        if !cases.iter().any(|case| case.name == name) {
            cases.push(Case { name: name.to_owned(), verdict });
        }
    }
    cases
}

#[test]
fn cases_are_read_and_those_that_the_second_process_skips_count_once() {
    let printed = "\
open::erofs_named                 ok

Summary: 0 failed, 0 skipped, 1 passed, 0 expected failures, 1 total
open::erofs_named                 skipped
\tRemounts (allow_remount) are not allowed in the configuration file
link::flags                       skipped
\trequires features: chflags
chown::changes                    FAILED
\tassertion failed: 3 == 4
ok fsck
";
    let case = |name: &str, verdict| Case { name: name.to_owned(), verdict };
    let expected = [
        case("fsck", Verdict::Passed),
        case("open::erofs_named", Verdict::Passed),
        case("link::flags", Verdict::Skipped("requires features: chflags".to_owned())),
        case("chown::changes", Verdict::Failed("assertion failed: 3 == 4".to_owned())),
    ];
    assert_eq!(read(printed), expected);
}
