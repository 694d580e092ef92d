// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control: what can be done to a device while it is served, over a Unix socket.

mod channel;
mod client;
mod measures;
mod operator;
mod process;
mod protocol;
mod show;
mod work;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

pub(crate) use self::channel::Channel;
pub(crate) use self::client::{ask_over, is_timeout, list, run};
pub(crate) use self::measures::{Cache, Counters};
pub(crate) use self::operator::Operator;
pub(crate) use self::process::{OwnProcess, Process};
pub(crate) use self::protocol::{Command, Cow, Mirror, Placement, Report, Request, State, Status};
use self::protocol::{Outcome, Reply, VERSION};
use crate::clients::{Client, Clients, HangUp};
use crate::sandbox::Pass;

/// No request is longer.
const REQUEST_MAX: u64 = 64 << 10;
/// How long a client may take to send one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait where the system has nothing left for a further connection.
const PAUSE: Duration = Duration::from_secs(1);

/// What carries requests out, and tells how all is then.
pub(crate) type CarryOut = dyn Fn(&Request) -> anyhow::Result<Vec<Report>> + Send + Sync;

/// Where clients come from.
pub(crate) enum ClientSource {
    /// Processes of the user's.
    Listener(UnixListener),
    /// The fleet.
    Channel(Channel),
}

impl ClientSource {
    /// Waits for one; none comes any more if it is nothing.
    fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self {
            Self::Listener(listener) => listener.accept().map(|(stream, _)| Some(stream)),
            Self::Channel(channel) => channel.accept(),
        }
    }
}

/// Answers clients from `source`, each in a thread of its own, as some requests take long; a bounded
/// number at once.
pub(crate) fn serve(source: ClientSource, carry_out: Arc<CarryOut>, pass: Pass) -> io::Result<()> {
    let clients = Clients::new();
    let serve = move || {
        pass.enter();
        let mut failures = 0u64;
        loop {
            let stream = match source.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(error) => {
                    failures += 1;
                    if failures.is_power_of_two() {
                        warn!(failures, %error, "control: a client can't be accepted");
                    }
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let Some(client) = clients.admit(stream) else { continue };
            let carry_out = Arc::clone(&carry_out);
            let answer = move || {
                if let Err(error) = answer(&client, &*carry_out) {
                    debug!(%error, "control: a client was not answered");
                }
            };
            // Without a thread the client sees the connection closed.
            if let Err(error) = std::thread::Builder::new().name("client".to_owned()).spawn(answer)
            {
                debug!(%error, "control: no thread for a client");
            }
        }
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(serve)?;
    Ok(())
}

impl HangUp for UnixStream {
    fn hang_up(&self) {
        // It is closed already, if it can't be.
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// Answers one request.
fn answer(client: &Client<UnixStream>, carry_out: &CarryOut) -> io::Result<()> {
    let mut stream = client.stream();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line)?;
    client.is_busy();
    let result = match serde_json::from_str(&line) {
        Ok(request @ Request { version: VERSION, .. }) => {
            let Request { device, command, .. } = &request;
            if !matches!(command, Command::Status) {
                let (pid, uid) = (peer.pid.as_raw_nonzero(), peer.uid.as_raw());
                info!(device, ?command, pid, uid, "control");
            }
            carry_out(&request).map_err(|error| format!("{error:#}"))
        }
        Ok(Request { version, .. }) => {
            Err(format!("this daemon speaks version {VERSION}, not {version}"))
        }
        Err(error) => Err(format!("not a request: {error}")),
    };
    let result = result.map_or_else(Outcome::Error, Outcome::Ok);
    let mut reply = serde_json::to_vec(&Reply { version: VERSION, result })?;
    reply.push(b'\n');
    stream.write_all(&reply)
}
