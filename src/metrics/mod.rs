// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Metrics for Prometheus: over HTTP, from what the control protocol tells and nothing else, so that
//! a device and a whole fleet are shown by the same code.

mod exposition;
mod http;
mod render;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{debug, info, warn};

use self::http::Stream;
use crate::address::Address;
use crate::cli::EndpointArgs;
use crate::clients::Clients;
use crate::control::{OwnProcess, Report};
use crate::sandbox::{Options, Pass};
use crate::socket::{Bound, Endpoint};
use crate::user::User;

/// How long to wait where the system has nothing left for a further connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What tells of all devices.
pub(crate) type Collect = dyn Fn() -> anyhow::Result<Vec<Report>> + Send + Sync;

/// Where metrics are asked for.
pub(crate) enum Listener {
    Unix(Endpoint),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `address`. A Unix socket is `user`'s, or else ours, and who may open it is what the
    /// process' umask says.
    pub(crate) fn open(address: &Address, user: Option<User>) -> anyhow::Result<Self> {
        match address {
            Address::Unix(path) => {
                let args = EndpointArgs { socket_path: Some(path.clone()), fd: None };
                let options = Options { user, ..Options::default() };
                let endpoint = Endpoint::open(&args, options)?.context("no socket for metrics")?;
                Ok(Self::Unix(endpoint))
            }
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address);
                Ok(Self::Tcp(listener.with_context(|| format!("cannot listen on {address}"))?))
            }
        }
    }

    /// What is to be removed of a Unix socket at the end, for others to do.
    pub(crate) fn leave(&mut self) -> Option<Bound> {
        match self {
            Self::Unix(endpoint) => endpoint.leave(),
            Self::Tcp(_) => None,
        }
    }

    /// What accepts a client.
    fn accepting(&self) -> io::Result<Box<dyn FnMut() -> io::Result<Stream> + Send>> {
        Ok(match self {
            Self::Unix(endpoint) => {
                let listener = endpoint.listener()?;
                info!(socket = %endpoint, "metrics");
                Box::new(move || listener.accept().map(|(stream, _)| Stream::Unix(stream)))
            }
            Self::Tcp(listener) => {
                let listener = listener.try_clone()?;
                info!(address = %listener.local_addr()?, "metrics");
                Box::new(move || listener.accept().map(|(stream, _)| Stream::Tcp(stream)))
            }
        })
    }
}

/// Answers whoever asks at `listener` with what `collect` tells, and with `own`, a process that is no
/// device's, in threads of its own.
pub(crate) fn serve(
    listener: &Listener,
    collect: Arc<Collect>,
    own: Option<OwnProcess>,
    pass: Pass,
) -> io::Result<()> {
    let mut accept = listener.accepting()?;
    let clients = Clients::new();
    let source = Arc::new(Source { collect, own, last: Mutex::default() });
    let serve = move || {
        pass.enter();
        loop {
            let stream = match accept() {
                Ok(stream) => stream,
                Err(error) => {
                    debug!(%error, "metrics: a client can't be accepted");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let Some(client) = clients.admit(stream) else { continue };
            let source = Arc::clone(&source);
            let answer = move || {
                if let Err(error) = http::answer(client.stream(), || source.text()) {
                    debug!(%error, "metrics: a client was not answered");
                }
            };
            // Without a thread to be had the client sees the connection closed.
            if let Err(error) = std::thread::Builder::new().name("scrape".to_owned()).spawn(answer)
            {
                debug!(%error, "metrics: no thread for a client");
            }
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(serve)?;
    Ok(())
}

/// Where metrics come from.
struct Source {
    collect: Arc<Collect>,
    /// A process that is no device's.
    own: Option<OwnProcess>,
    /// What was told last, and when that was begun to be collected.
    last: Mutex<Option<(Instant, String)>>,
}

impl Source {
    /// What is so now: one collects at a time, and those who came before it began share what it tells,
    /// so that many who ask ask no device more often. Nothing if there is nothing to be had.
    fn text(&self) -> Option<String> {
        let asked = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, text)) = last.as_ref().filter(|(began, _)| *began >= asked) {
            return Some(text.clone());
        }
        let began = Instant::now();
        let devices = (self.collect)().inspect_err(|error| warn!("metrics: {error:#}")).ok()?;
        let own = self.own.as_ref().and_then(OwnProcess::read);
        let text = render::render(&devices, own.as_ref());
        *last = Some((began, text.clone()));
        Some(text)
    }
}
