// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask demo`: the main job, step by step, with proof.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use guest_harness::{Daemon, Lab, target_dir};

use crate::process::{cargo, run as run_command};

/// What the guest fills memory with through a mapping, and how much of it.
const PATTERN: u8 = 0x5a;
const PATTERN_LEN: usize = 64 << 10;

pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    say(1, "obtain QEMU, a kernel and a userland, as Debian packages");
    let lab = Lab::open()?;
    println!(
        "    QEMU {}; {} MiB in target/guest",
        lab.qemu().version(),
        mib_in_use(&target_dir().join("guest"))?
    );

    say(2, "build vhost-pmemd");
    run_command(&mut cargo(["build", "--quiet", "--package", "vhost-pmemd"]))?;

    say(3, "serve a new file");
    let dir = target_dir().join("demo");
    fs::create_dir_all(&dir)?;
    let file = dir.canonicalize()?.join("pmem.img");
    if file.exists() {
        fs::remove_file(&file)?;
    }
    let program = target_dir().join("debug/vhost-pmemd");
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), "512M".as_ref()];
    let daemon = Daemon::start(program, args)?;
    println!(
        "    $ vhost-pmemd --socket-path {} --file {} --size 512M",
        daemon.socket().display(),
        file.display()
    );

    say(4, "boot a guest on it, which says:");
    let words = format!("Persistent greetings, number {}.", unique()?);
    let vm = lab.vm().vhost_user_pmem(daemon.socket()).script(&script(&words));
    // What its kernel has to say is shown if the guest fails.
    let echo = |line: &str| {
        if !line.starts_with('[') {
            println!("    guest | {line}");
        }
    };
    let outcome = vm.on_line(echo).run()?;
    println!("    the guest powered off after {:.1?}; the daemon logged:", outcome.elapsed);
    daemon.wait_for_log("frontend left")?;
    let (status, log) = daemon.terminate()?;
    log.lines().for_each(|line| println!("    daemon | {line}"));
    ensure!(status.success(), "the daemon failed ({status})");

    say(5, "look at the file, on this host");
    check(&lab, &file, &words)?;
    println!("the demo worked, in {:.0?}; the guest's memory is still there:", began.elapsed());
    println!("    {}", file.display());
    Ok(())
}

fn say(step: usize, what: &str) {
    println!("[{step}/5] {what}");
}

/// What the guest does. It prints each command that matters.
fn script(words: &str) -> String {
    let len = PATTERN_LEN;
    format!(
        "set -eu
        run() {{ echo \"# $*\"; \"$@\"; }}
        run ls -l /dev/pmem0
        run mkfs.ext4 -qF -b 4096 /dev/pmem0
        run mount -o dax=always /dev/pmem0 /mnt
        run grep /dev/pmem0 /proc/mounts
        echo '# echo {words} > /mnt/hello'
        echo '{words}' > /mnt/hello
        run xfs_io -f -c 'truncate {len}' -c 'mmap 0 {len}' -c 'mwrite -S {PATTERN:#x} 0 {len}' -c 'msync -s' /mnt/mapped
        run sync
        run umount /mnt"
    )
}

/// Finds in `file` what the guest wrote, first as bytes, then as a filesystem.
fn check(lab: &Lab, file: &Path, words: &str) -> Result<()> {
    let metadata = fs::metadata(file)?;
    println!(
        "    {} MiB, of which {} MiB take space",
        metadata.len() >> 20,
        metadata.blocks() >> 11
    );
    let mut bytes = Vec::new();
    File::open(file)?.read_to_end(&mut bytes)?;

    let found = find(&bytes, words.as_bytes()).context("the guest's words are not in the file")?;
    println!("    written: {words:?} is at byte {found:#x}");
    let found =
        find(&bytes, &[PATTERN; PATTERN_LEN]).context("the guest's pattern is not in the file")?;
    println!("    mapped: {PATTERN_LEN} bytes of {PATTERN:#x} are at byte {found:#x}");

    let fsck = lab.host_tool("e2fsck")?.arg("-fn").arg(file).output()?;
    ensure!(fsck.status.success(), "the filesystem is damaged: {fsck:?}");
    println!("    e2fsck finds the filesystem clean");
    let cat = lab.host_tool("debugfs")?.args(["-R", "cat /hello"]).arg(file).output()?;
    let read = String::from_utf8_lossy(&cat.stdout);
    ensure!(read.trim_end() == words, "debugfs reads {read:?}");
    println!("    debugfs reads /hello: {:?}", read.trim_end());
    Ok(())
}

/// Where in `bytes`, at the start of a page, `pattern` is.
fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    (0..bytes.len()).step_by(4096).find(|&at| bytes[at..].starts_with(pattern))
}

/// A number that no earlier run has left anywhere.
fn unique() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

/// The space that a directory takes.
fn mib_in_use(dir: &Path) -> Result<u64> {
    fn blocks(dir: &Path) -> Result<u64> {
        let mut sum = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            sum += metadata.blocks();
            if metadata.is_dir() {
                sum += blocks(&entry.path())?;
            }
        }
        Ok(sum)
    }
    Ok(blocks(dir)? >> 11)
}
