// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whoever asks for metrics, and doesn't do it as one should.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};

use super::scrape::ask;
use super::{DAEMON, PATIENCE, Place};
use crate::vmm::{Abilities, Vmm};

fn daemon(place: &Place) -> Daemon {
    let file = place.file("pmem", 1 << 20);
    place.serve(&["--file".as_ref(), file.as_os_str()]).unwrap()
}

#[test]
fn request_that_is_none_for_metrics_is_refused() {
    let place = Place::new();
    let _daemon = daemon(&place);
    let huge = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    let cases: [(&[u8], &str); 8] = [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metric HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", "405 Method Not Allowed"),
        (b"{\"version\":1,\"command\":\"reload\"}\n\n", "400 Bad Request"),
        (&[0, 255, 22, 3, 1, 13, 10, 13, 10], "400 Bad Request"),
        (huge.as_bytes(), "400 Bad Request"),
        (many.as_bytes(), "400 Bad Request"),
    ];
    for (request, expected) in cases {
        let shown = String::from_utf8_lossy(request.get(..40).unwrap_or(request)).into_owned();
        let response = ask(&place.path("metrics"), request);
        assert!(response.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{shown}: {response}");
        assert_eq!(response.contains("Allow: GET\r\n"), expected.starts_with("405"), "{shown}");
        assert!(response.ends_with("\r\n\r\nthis is for GET /metrics\n"), "{shown}: {response}");
    }
    // Closed with something unread, a connection would be reset, and what was answered lost.
    let mut stream = UnixStream::connect(place.path("metrics")).unwrap();
    stream.write_all(huge.get(..60_000).unwrap().as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut response = String::new();
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
    place.scrape();
}

#[test]
fn clients_that_are_slow_hold_up_nobody_and_are_gone_after_a_while() {
    let place = Place::new();
    let daemon = daemon(&place);
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    let tasks = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count();
    let before = tasks();
    let connect = || UnixStream::connect(place.path("metrics")).unwrap();
    let mut slow: Vec<_> = (0..200).map(|_| connect()).collect();
    slow.iter_mut().for_each(|one| _ = one.write_all(b"G"));
    // Some read nothing, too.
    let mut deaf = connect();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    place.scrape();
    assert_eq!(vmm.driver.flush(), 0);
    assert!(tasks() <= before + 64, "{before} threads, then {}", tasks());

    let deadline = Instant::now() + patience(PATIENCE);
    while tasks() > before {
        assert!(Instant::now() < deadline, "their threads are there still");
        // A byte now and then is not what is waited for.
        slow.iter_mut().for_each(|one| _ = one.write_all(b"E"));
        std::thread::sleep(Duration::from_millis(100));
    }
    place.scrape();
}

#[test]
fn port_of_this_host_is_answered_at() {
    let place = Place::new();
    let file = place.file("pmem", 1 << 20);
    let args = ["--metrics", "127.0.0.1:0", "--file"].map(AsRef::as_ref);
    let daemon = Daemon::start(DAEMON, args.into_iter().chain([file.as_os_str()])).unwrap();
    let log = daemon.log();
    let address = log.split_once("metrics address=").unwrap().1.lines().next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience(PATIENCE))).unwrap();
    let huge = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(500_000));
    stream.write_all(huge.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience(PATIENCE))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.contains("\nvhost_pmem_up{device=\"device\"} 1\n"), "{response}");
}

#[test]
fn port_that_other_hosts_reach_is_refused() {
    for address in ["0.0.0.0:9100", "[::]:9100", "192.0.2.7:80"] {
        let output = Command::new(DAEMON)
            .args(["--file", "/none", "--socket-path", "/none/socket", "--metrics", address])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!(
            "{address} can be reached from other hosts, and nobody who asks for metrics is \
             authenticated; use 127.0.0.1:PORT"
        );
        assert!(said.contains(&expected), "{said}");
        assert_eq!(output.status.code(), Some(2));
    }
}
