// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! As much of HTTP as it takes to be asked for metrics: one request a connection, its head alone.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::exposition::CONTENT_TYPE;
use crate::clients::HangUp;

/// No request's head is longer.
const HEAD_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// What is read of what comes behind a head, so that the answer isn't lost with it.
const REST_MAX: usize = 1 << 20;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client's connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Does the same with either.
macro_rules! on {
    ($stream:expr, $one:ident => $does:expr) => {
        match $stream {
            Stream::Unix($one) => $does,
            Stream::Tcp($one) => $does,
        }
    };
}

impl HangUp for Stream {
    fn hang_up(&self) {
        // It is closed already, if it can't be.
        let _ = on!(self, one => one.shutdown(Shutdown::Both));
    }
}

impl Stream {
    fn read(&self, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        loop {
            let left = time_left(until)?;
            let read = on!(self, one => {
                one.set_read_timeout(Some(left))?;
                let mut one = one;
                one.read(buffer)
            });
            if !was_interrupted(&read) {
                return read;
            }
        }
    }

    fn write_all(&self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = time_left(until)?;
            let written = on!(self, one => {
                one.set_write_timeout(Some(left))?;
                let mut one = one;
                one.write(bytes)
            });
            if !was_interrupted(&written) {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// By a signal: with a time limit the kernel doesn't go on by itself, and a fleet's devices come and go.
fn was_interrupted(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
}

/// A client that is slow, byte by byte, is given no more time than one that says nothing.
fn time_left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// What is answered, but for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    BadRequest,
    NotFound,
    NotAllowed,
}

/// Reads a request, and answers it: with `metrics`, or nothing if that has none to give.
pub(super) fn answer(stream: &Stream, metrics: impl FnOnce() -> Option<String>) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let request = read_head(stream, until)?;
    let (status, more, body) = match request.map(metrics_or) {
        Ok(Ok(())) => match metrics() {
            Some(text) => ("200 OK", "", text),
            None => ("503 Service Unavailable", "", "the daemon is ending\n".to_owned()),
        },
        Ok(Err(refusal)) | Err(refusal) => {
            let (status, more) = match refusal {
                Refusal::BadRequest => ("400 Bad Request", ""),
                Refusal::NotFound => ("404 Not Found", ""),
                Refusal::NotAllowed => ("405 Method Not Allowed", "Allow: GET\r\n"),
            };
            (status, more, "this is for GET /metrics\n".to_owned())
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {}\r\n{more}\
         Connection: close\r\n\r\n",
        body.len()
    );
    // What it took to collect the metrics isn't the client's fault.
    let until = Instant::now() + PATIENCE;
    stream.write_all((head + &body).as_bytes(), until)?;
    on!(stream, one => one.shutdown(Shutdown::Write))?;
    // Closed with something unread, TCP would take back what was answered.
    let (mut rest, mut read) = ([0; 4096], 0);
    while read < REST_MAX {
        match stream.read(&mut rest, until)? {
            0 => break,
            some => read += some,
        }
    }
    Ok(())
}

/// A request's method and path.
type Asked = (String, String);

fn metrics_or((method, path): Asked) -> Result<(), Refusal> {
    let path = path.split('?').next().unwrap_or_default();
    match (method.as_str(), path) {
        ("GET", "/metrics") => Ok(()),
        (_, "/metrics") => Err(Refusal::NotAllowed),
        _ => Err(Refusal::NotFound),
    }
}

/// Reads until a head has ended; or finds that it is none.
fn read_head(stream: &Stream, until: Instant) -> io::Result<Result<Asked, Refusal>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stream.read(&mut piece, until)?;
        head.extend_from_slice(piece.get(..read).unwrap_or_default());
        if head.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match parse(&head) {
            Ok(None) if read == 0 || head.len() > HEAD_MAX => return Ok(Err(Refusal::BadRequest)),
            Ok(None) => {}
            Ok(Some(asked)) => return Ok(Ok(asked)),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
}

/// Nothing as long as more is to come.
fn parse(head: &[u8]) -> Result<Option<Asked>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => Ok(None),
        Ok(httparse::Status::Complete(_)) => {
            let word = |word: Option<&str>| word.unwrap_or_default().to_owned();
            Ok(Some((word(request.method), word(request.path))))
        }
        Err(_) => Err(Refusal::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_for_metrics_or_refused_with_the_reason() {
        use Refusal::{BadRequest, NotAllowed, NotFound};
        let cases = [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Ok(())),
            ("GET /metrics HTTP/1.0\r\n\r\n", Ok(())),
            ("GET /metrics?collect=x HTTP/1.1\r\nHost: x\r\n\r\n", Ok(())),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", Err(NotAllowed)),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Err(NotAllowed)),
            ("GET / HTTP/1.1\r\n\r\n", Err(NotFound)),
            ("GET /metrics/../etc HTTP/1.1\r\n\r\n", Err(NotFound)),
            ("GET /metrics\r\n\r\n", Err(BadRequest)),
            ("\u{1}\u{2}\u{3} garbage\r\n\r\n", Err(BadRequest)),
            ("{\"version\":1,\"command\":\"status\"}\n", Err(BadRequest)),
        ];
        for (request, expected) in cases {
            let asked = parse(request.as_bytes()).and_then(|asked| metrics_or(asked.unwrap()));
            assert_eq!(asked, expected, "{request:?}");
        }
        assert_eq!(parse(b"GET /metrics HTTP/1.1\r\nHost"), Ok(None));
    }
}
