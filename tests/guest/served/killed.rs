// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kills, one after another, on files that are carried on: what a guest has synced stays.

use std::time::Duration;

use guest_harness::{Daemon, Lab, Outcome, Random, Rounds, Vm};
use rustix::process::Signal;

use super::{SECTORS, base, can_serve, same, serve_overlay, word};
use crate::filesystem::Filesystem;
use crate::{guest, on_ext4_and_xfs, serve_table, sparse_file};

on_ext4_and_xfs! {
    snapshot_killed_under_load_keeps_what_was_synced
    mirror_killed_under_load_keeps_what_was_synced_on_both_legs
}

fn snapshot_killed_under_load_keeps_what_was_synced(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (base, copy) = base(&lab, filesystem, &dir);
    let cow = dir.path().join("cow");
    kill_rounds(&lab, filesystem, || serve_overlay(&base, &cow));
    assert!(same(&base, &copy), "the base was changed");
}

fn mirror_killed_under_load_keeps_what_was_synced_on_both_legs(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Two that are the same make a mirror without a resync.
    let (one, other) = base(&lab, filesystem, &dir);
    let log = dir.path().join("log");
    sparse_file(&log, 8192);
    let legs = format!("{} 0 {} 0", word(&one), word(&other));
    let table = format!("0 {SECTORS} mirror disk 3 {} 1024 nosync 2 {legs}", word(&log));
    let daemon = kill_rounds(&lab, filesystem, || serve_table(&dir, &table));
    // A guest has come and gone since it began, if there was anything to begin.
    if daemon.log().contains("mirror: comparing") {
        daemon.wait_until_logged("mirror: all legs are the same").unwrap();
    }
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
    assert!(same(&one, &other), "the legs differ");
}

/// Who is killed, in turn.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Daemon,
    Qemu,
    Both,
}

const VICTIMS: [Victim; 3] = [Victim::Daemon, Victim::Qemu, Victim::Both];

/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Boots guests that check what those before them have synced and sync more, until someone is
/// killed; in every fourth round while it still checks. Returns the daemon that the last guest, which
/// only checked, was on.
fn kill_rounds(lab: &Lab, filesystem: Filesystem, serve: impl Fn() -> Daemon) -> Daemon {
    let rounds = Rounds::from_environment("VHOST_PMEM_KILL", VICTIMS.len() as u64);
    let mut random = Random::new(rounds.seed);
    let mut synced = String::new();
    for (round, victim) in (0..rounds.count).zip(VICTIMS.into_iter().cycle()) {
        let daemon = serve();
        let script = filesystem.script(&format!("{}{}", check(&synced), load(round)));
        let vm = guest(lab, filesystem, &[&daemon]).script(&script).boot().unwrap();
        let begin = if round % 4 == 3 { "MARK boot" } else { "MARK synced" };
        vm.wait_for(begin).unwrap();
        let delay = Duration::from_millis(random.below(1500));
        std::thread::sleep(delay);
        let serial = vm.serial();
        assert!(!serial.contains("MARK done"), "the guest failed:\n{serial}");
        let serial = kill(victim, daemon, vm).serial;
        serial.lines().filter_map(sum_and_name).for_each(|line| synced += &line);
        eprintln!(
            "round {round}: {victim:?}, {delay:?} after {begin}; {} files synced",
            synced.lines().count()
        );
    }
    assert!(!synced.is_empty());

    let daemon = serve();
    let script = filesystem.script(&format!("{}umount /mnt", check(&synced)));
    guest(lab, filesystem, &[&daemon]).script(&script).run().unwrap();
    daemon
}

/// What a guest does first: finds a clean filesystem, once its log is replayed, and in it all that
/// was synced.
fn check(synced: &str) -> String {
    format!(
        "mount_dax /dev/pmem0
        umount /mnt
        fsck /dev/pmem0
        mount_dax /dev/pmem0
        cat > sums << END\n{synced}END
        if [ -s sums ] && ! (cd /mnt && md5sum -c /tmp/sums > /tmp/checked); then
            grep -v ': OK$' checked
            exit 1
        fi\n"
    )
}

/// What it does then, until the end. It says what it has synced.
fn load(round: u64) -> String {
    format!(
        "# Something dirty at any time.
        while :; do dd if=/dev/urandom of=/mnt/unsynced bs=1M count=2 status=none; done &
        number=0
        while :; do
            number=$((number + 1))
            name={round}-$number
            head -c 16k /dev/urandom > noise
            sum=$(md5sum < noise)
            cat noise > /mnt/$name
            sync /mnt/$name /mnt
            echo MARK synced $name ${{sum%% *}}
        done"
    )
}

/// A line for `md5sum -c` of one that says what was synced, if the kill has left it whole.
fn sum_and_name(line: &str) -> Option<String> {
    let (name, sum) = line.strip_prefix("MARK synced ")?.split_once(' ')?;
    (sum.len() == 32).then(|| format!("{sum}  {name}\n"))
}

fn kill(victim: Victim, daemon: Daemon, vm: Vm) -> Outcome {
    match victim {
        Victim::Daemon => {
            daemon.kill(PATIENCE).unwrap();
            vm.kill().unwrap()
        }
        Victim::Qemu => {
            let outcome = vm.kill().unwrap();
            let (status, log) = daemon.terminate().unwrap();
            assert!(status.success(), "{log}");
            outcome
        }
        Victim::Both => {
            daemon.signal(Signal::KILL).unwrap();
            let outcome = vm.kill().unwrap();
            daemon.kill(PATIENCE).unwrap();
            outcome
        }
    }
}
