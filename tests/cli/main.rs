// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's command line: what it answers to bad input, and how it starts and ends.

mod arguments;
mod chains;
mod changes;
mod check;
mod control;
mod documents;
mod fsync;
mod load;
mod log;
mod mirror_changes;
mod mirrors;
mod overlays;
mod prefetch;
mod publish;
mod terminal;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::Signal;
use tempfile::TempDir;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

/// A directory to serve from; `@` in arguments and expectations stands for it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn expand(&self, text: &str) -> String {
        text.replace('@', self.0.path().to_str().unwrap())
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(DAEMON);
        command.args(self.expand(args).split_whitespace()).stdin(Stdio::null());
        command
    }

    /// Runs the daemon, which must not come to serve.
    fn run(&self, args: &str) -> Output {
        let mut child =
            self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }

    /// Checks that the daemon refuses `args` with exactly one line, `expected`.
    #[track_caller]
    fn refuses(&self, args: &str, expected: &str) {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let expected = format!("vhost-pmemd: {}\n", self.expand(expected));
        assert_eq!(stderr, expected, "for {args}");
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
    }

    /// The same, for a file of `size` bytes.
    #[track_caller]
    fn refuses_file_of(&self, size: u64, args: &str, expected: &str) {
        fs::File::create(self.path("file")).unwrap().set_len(size).unwrap();
        self.refuses(&format!("--socket-path @/socket --file @/file {args}"), expected);
        assert_eq!(fs::metadata(self.path("file")).unwrap().len(), size, "the file was touched");
    }

    /// The same, for a table over two files of 1 MiB.
    #[track_caller]
    fn refuses_table(&self, table: &str, expected: &str) {
        self.refuses_table_with(table, "", expected);
    }

    /// The same, with more arguments.
    #[track_caller]
    fn refuses_table_with(&self, table: &str, args: &str, expected: &str) {
        for name in ["a", "b"] {
            fs::File::create(self.path(name)).unwrap().set_len(1 << 20).unwrap();
        }
        fs::write(self.path("table"), self.expand(table)).unwrap();
        self.refuses(&format!("--socket-path @/socket --table @/table {args}"), expected);
    }
}

#[test]
fn file_missing_says_how_to_create_it() {
    Place::new().refuses(
        "--socket-path @/socket --file @/none",
        "cannot serve @/none: no such file; give --size SIZE to create it",
    );
}

#[test]
fn file_in_missing_directory_is_refused() {
    Place::new().refuses(
        "--socket-path @/socket --file @/none/file --size 1M",
        "cannot serve @/none/file: cannot open it: No such file or directory (os error 2)",
    );
}

#[test]
fn file_that_is_a_directory_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("dir")).unwrap();
    let expected = "cannot serve @/dir: a directory, not a file";
    place.refuses("--socket-path @/socket --file @/dir", expected);
    place.refuses("--socket-path @/socket --file @/dir --size 1M", expected);
}

#[test]
fn file_that_is_a_device_is_refused() {
    Place::new().refuses(
        "--socket-path @/socket --file /dev/null",
        "cannot serve /dev/null: neither a regular file nor a block device",
    );
}

#[test]
fn file_empty_says_how_to_grow_it() {
    Place::new().refuses_file_of(
        0,
        "",
        "cannot serve @/file: unusable size: empty, but at least one page of 4096 bytes is needed; \
         give --size SIZE to grow it",
    );
}

#[test]
fn file_of_broken_pages_names_the_next_size() {
    Place::new().refuses_file_of(
        1_000_000,
        "",
        "cannot serve @/file: unusable size: 1000000 bytes is not a multiple of 4096 bytes; \
         the next one is 1003520; give --size SIZE to grow it to whole pages",
    );
}

#[test]
fn file_not_power_of_two_names_the_mend() {
    Place::new().refuses_file_of(
        3 << 20,
        "",
        "the region has 3145728 bytes, which is not a power of two, as a frontend needs; \
         the next one is 4194304; give --size 4194304 to grow the file, sparsely and without \
         touching what is in it, or --window served, which shows zeroes behind its end",
    );
}

#[test]
fn file_that_is_another_kind_of_image_is_refused_and_not_grown() {
    let place = Place::new();
    let mut image = vec![0; 1 << 20];
    image[..4].copy_from_slice(b"QFI\xfb");
    fs::write(place.path("file"), &image).unwrap();
    let expected = "cannot serve @/file: it looks like a qcow2 image, not a raw one; convert it with \
                    \"qemu-img convert -O raw @/file NEW\" and serve NEW (a table serves it as it is)";
    for args in ["", "--size 2M", "--read-only", "--overlay @/cow"] {
        place.refuses(&format!("--socket-path @/socket --file @/file {args}"), expected);
    }
    assert!(fs::read(place.path("file")).unwrap() == image && !place.path("cow").exists());
    fs::write(place.path("table"), place.expand("0 2048 linear @/file 0")).unwrap();
    let table = place.path("table");
    let daemon = Daemon::start(DAEMON, ["--table".as_ref(), table.as_os_str()]).unwrap();
    let log = daemon.log();
    assert!(log.contains("looks like a disk image; its bytes are served as they are"), "{log}");
    drop(daemon);
    let shown = place.run("check --table @/table");
    assert!(String::from_utf8(shown.stdout).unwrap().contains(", looks like a qcow2 image"));
}

#[test]
fn region_too_small_for_linux_is_warned_of() {
    let place = Place::new();
    let file = place.path("file");
    for (size, is_warned) in [("1M", true), ("2M", false)] {
        let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), size.as_ref()];
        let log = Daemon::start(DAEMON, args).unwrap().log();
        let warning = "Linux guests have no /dev/pmem0 for less than 2 MiB";
        assert_eq!(log.contains(warning), is_warned, "{log}");
    }
}

#[test]
fn file_longer_than_size_is_never_shrunk() {
    Place::new().refuses_file_of(
        2 << 20,
        "--size 1M",
        "cannot serve @/file: 2097152 bytes long, more than the 1048576 bytes asked for; \
         a file is never shrunk",
    );
}

#[test]
fn size_of_broken_pages_is_refused() {
    Place::new().refuses(
        "--socket-path @/socket --file @/file --size 5000",
        "--size 5000: 5000 bytes is not a multiple of 4096 bytes; the next one is 8192",
    );
}

#[test]
fn size_not_power_of_two_is_refused_before_the_file_is_touched() {
    let place = Place::new();
    place.refuses(
        "--socket-path @/socket --file @/file --size 3M",
        "--size 3145728: the region has 3145728 bytes, which is not a power of two, as a frontend \
         needs; the next one is 4194304; give --size 4194304, or --window served, which shows any \
         size, with zeroes after its end",
    );
    assert!(!place.path("file").exists());
}

#[test]
fn file_served_by_another_process_is_refused() {
    let place = Place::new();
    let file = place.path("file");
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), "1M".as_ref()];
    let other = Daemon::start(DAEMON, args).unwrap();
    place.refuses(
        "--socket-path @/socket --file @/file",
        "cannot serve @/file: locked: another process serves it",
    );
    drop(other);
    assert!(!place.path("socket").exists(), "a socket was left behind");
}

#[test]
fn socket_of_live_daemon_is_refused_and_kept() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("socket")).unwrap();
    place.refuses(
        "--socket-path @/socket --file @/file --size 1M",
        "cannot listen on @/socket: another process listens there",
    );
    UnixStream::connect(place.path("socket")).unwrap();
    drop(listener);
    assert!(!place.path("file").exists(), "the file was created for nothing");
}

#[test]
fn socket_path_of_another_file_is_refused_and_kept() {
    let place = Place::new();
    fs::write(place.path("socket"), "precious").unwrap();
    place.refuses(
        "--socket-path @/socket --file @/file --size 1M",
        "cannot listen on @/socket: there is a file of that name, and it isn't a socket",
    );
    assert_eq!(fs::read(place.path("socket")).unwrap(), b"precious");
}

#[test]
fn socket_that_is_stale_is_replaced() {
    let place = Place::new();
    drop(UnixListener::bind(place.path("socket")).unwrap());
    let mut child = place
        .command("--socket-path @/socket --file @/file --size 1M")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    while UnixStream::connect(place.path("socket")).is_err() {
        assert!(Instant::now() < deadline, "nobody listens");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn fd_that_is_no_listening_socket_is_refused() {
    let place = Place::new();
    let args = |fd: &str| format!("--fd {fd} --file @/file --size 1M");
    place.refuses(&args("99"), "cannot use --fd 99: no such file descriptor was inherited");
    place.refuses(&args("2"), "cannot use --fd 2: 0, 1 and 2 are standard input, output and error");
    let refuses = |socket: &OwnedFd, expected: &str| {
        fcntl_setfd(socket, FdFlags::empty()).unwrap();
        let fd = socket.as_raw_fd().to_string();
        place.refuses(&args(&fd), &format!("cannot use --fd {fd}: {expected}"));
        fcntl_setfd(socket, FdFlags::CLOEXEC).unwrap();
    };
    let elsewhere =
        "a socket of address family 2, not a Unix socket, which alone carries file descriptors";
    refuses(&TcpListener::bind("127.0.0.1:0").unwrap().into(), elsewhere);
    refuses(&UdpSocket::bind("127.0.0.1:0").unwrap().into(), elsewhere);
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    refuses(&datagrams.into(), "a Unix socket of type 2, not SOCK_STREAM");
    let alone = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    refuses(&alone, "a Unix socket that neither listens nor is connected");
    refuses(&fs::File::open("/dev/null").unwrap().into(), "not a socket");
    assert!(!place.path("file").exists(), "the file was created for nothing");
}

#[test]
fn table_missing_is_refused() {
    Place::new().refuses(
        "--socket-path @/socket --table @/table",
        "table @/table: No such file or directory (os error 2)",
    );
}

#[test]
fn table_empty_is_refused() {
    Place::new().refuses_table(
        "# nothing\n",
        "table @/table: line 1, column 1: no line without a name; those are the device itself",
    );
}

#[test]
fn table_with_gap_names_the_line_behind_it() {
    Place::new().refuses_table(
        "0 2048 linear @/a 0\n4096 2048 linear @/b 0\n",
        "table @/table: line 2, column 1: gap: pages from 0x100 on have no target; let the line start at sector 2048",
    );
}

#[test]
fn table_with_overlap_names_the_line() {
    Place::new().refuses_table(
        "0 2048 linear @/a 0\n1024 2048 linear @/b 0\n",
        "table @/table: line 2, column 1: overlap: the target before reaches to page 0x100; let the line start at sector 2048",
    );
}

#[test]
fn table_with_unknown_target_names_the_known() {
    Place::new().refuses_table(
        "0 2048 raid5 @/a 0\n",
        "table @/table: line 1, column 8: unknown target \"raid5\"; these are known: linear, striped, mirror, snapshot, zero, error",
    );
}

#[test]
fn table_past_end_of_file_is_refused() {
    Place::new().refuses_table(
        "0 2048 linear @/a 1024\n",
        "table @/table: line 1, column 15: @/a: pgoff 0x80 + 256 pages reaches past the end at 256 pages; end it there, or make @/a larger",
    );
}

#[test]
fn table_with_missing_file_is_refused() {
    Place::new().refuses_table(
        "0 2048 linear @/none 0\n",
        "table @/table: line 1, column 15: @/none: no such file; create it, with the size it is to have",
    );
}

#[test]
fn table_with_pages_twice_is_refused() {
    Place::new().refuses_table(
        "0 2048 linear @/a 0\n2048 1024 linear @/b 0\n3072 1024 linear @/a 0\n",
        "table @/table: @/a is used twice, from pgoff 0x0 on",
    );
}

#[test]
fn table_not_power_of_two_names_where_to_end() {
    Place::new().refuses_table(
        "0 2048 linear @/a 0\n2048 1024 linear @/b 0\n",
        "the region has 1572864 bytes, which is not a power of two, as a frontend needs; \
         the next one is 2097152; let the table end at sector 4096, with a further file for what \
         is missing, or give --window served, which shows zeroes behind its end",
    );
}

#[test]
fn table_with_pages_that_cannot_be_mapped_is_not_shown_directly() {
    Place::new().refuses_table_with(
        "0 2048 linear @/a 0\n2048 2048 zero\n",
        "--window direct",
        "a part of the region can't be mapped by a frontend: 256 pages can't be accessed directly: \
         zero forgets what is written; give --window served",
    );
}

#[test]
fn overlay_that_is_none_is_refused_and_kept() {
    let place = Place::new();
    fs::write(place.path("cow"), vec![7; 1 << 20]).unwrap();
    place.refuses_file_of(
        1 << 20,
        "--overlay @/cow",
        "cannot serve @/file: overlay @/cow: the COW store can't be used: not a COW store, and not \
         blank; to make it one, and lose what is on it, fill its first MiB with zeroes",
    );
    assert!(fs::read(place.path("cow")).unwrap() == vec![7; 1 << 20]);
}

#[test]
fn overlay_over_a_missing_file_is_refused_and_not_created() {
    let place = Place::new();
    place.refuses(
        "--socket-path @/socket --file @/none --overlay @/cow",
        "cannot serve @/none: no such file",
    );
    assert!(!place.path("cow").exists());
}

#[test]
fn read_only_file_is_not_shown_directly() {
    Place::new().refuses_file_of(
        1 << 20,
        "--read-only --window direct",
        "@/file is read-only, and a direct window can't keep a guest from writing to it; \
         give --window served",
    );
}

#[test]
fn print_capabilities_ignores_all_else() {
    let output = Place::new().run("--nonsense --print-capabilities --file @/none");
    assert!(output.status.success());
    assert_eq!(output.stdout, b"{\"features\":[],\"type\":\"pmem\"}\n");
    assert!(output.stderr.is_empty());
}

#[test]
fn size_creates_then_grows_and_says_so() {
    let place = Place::new();
    let file = place.path("file");
    for (size, said) in [("1M", "created, sparse"), ("4M", "grown, sparse"), ("4M", "")] {
        let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), size.as_ref()];
        let (status, log) = Daemon::start(DAEMON, args).unwrap().terminate().unwrap();
        assert!(status.success());
        assert!(log.contains(said), "{log}");
        assert_eq!(said.is_empty(), !log.contains("sparse"), "{log}");
    }
    assert_eq!(fs::metadata(&file).unwrap().len(), 4 << 20);
}

#[test]
fn signal_ends_it_with_success_and_takes_the_socket_away() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = Place::new();
        let mut child = place
            .command("--socket-path @/socket --file @/file --size 1M")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(log.any(|line| line.contains("waiting for a frontend")));
        assert!(place.path("socket").exists());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!place.path("socket").exists());
    }
}

/// As nohup(1) has it.
#[test]
fn hangup_that_was_ignored_at_the_start_stays_ignored() {
    let place = Place::new();
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", DAEMON])
        .args(place.expand("--socket-path @/socket --file @/file --size 1M").split_whitespace())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("waiting for a frontend")));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    assert_speaks_vhost_user(&mut UnixStream::connect(place.path("socket")).unwrap());
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn inherited_listening_socket_is_served() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("socket")).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let fd = listener.as_raw_fd();
    let mut child = place
        .command(&format!("--fd {fd} --file @/file --size 1M --log-level off"))
        .spawn()
        .unwrap();
    drop(listener);
    for _ in 0..2 {
        let mut stream = UnixStream::connect(place.path("socket")).unwrap();
        assert_speaks_vhost_user(&mut stream);
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(place.path("socket").exists(), "the socket's path belongs to whoever made it");
}

#[test]
fn inherited_connected_socket_is_served_until_it_is_closed() {
    let place = Place::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let fd = theirs.as_raw_fd();
    let mut child = place
        .command(&format!("--fd {fd} --file @/file --size 1M --log-level off"))
        .spawn()
        .unwrap();
    drop(theirs);
    assert_speaks_vhost_user(&mut ours);
    assert_speaks_vhost_user(&mut ours);
    drop(ours);
    assert!(child.wait().unwrap().success());
}

/// Asks for the features, and gets them.
fn assert_speaks_vhost_user(stream: &mut UnixStream) {
    const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    stream.set_read_timeout(Some(patience(Duration::from_secs(20)))).unwrap();
    stream.write_all(&GET_FEATURES).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..12], [1, 0, 0, 0, 1 | 4, 0, 0, 0, 8, 0, 0, 0]);
}
