// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-pmemd`: serves files as a virtio-pmem device to a vhost-user frontend.

mod address;
mod backing;
mod capabilities;
mod chain;
mod check;
mod cli;
mod clients;
mod confinement;
mod control;
mod fleet;
mod image;
mod janitor;
mod log;
mod marks;
mod merge;
mod metrics;
mod overlay;
mod printable;
mod progress;
mod relay;
mod resync;
mod sandbox;
mod service;
mod shutdown;
mod size;
mod socket;
mod user;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use tracing::{debug, field, info, warn};
use vhost_pmem::{Device, Layered, ServeError, ServedThread};

use crate::backing::Backing;
use crate::cli::{Cli, Command, ControlArgs, MergeArgs};
use crate::control::{ClientSource, Operator, OwnProcess, Request};
use crate::janitor::Leavings;
use crate::log::Log;
use crate::printable::printable_lines;
use crate::sandbox::Role;
use crate::size::ByteSize;
use crate::socket::Endpoint;

/// How long to wait where the system has nothing left for a frontend's connection.
const PAUSE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Whoever asks for the capabilities gets them, whatever else stands on the command line.
    if std::env::args_os().skip(1).any(|argument| argument == "--print-capabilities") {
        println!("{}", capabilities::json());
        return ExitCode::SUCCESS;
    }
    if let Some(tasks) = janitor::tasks() {
        return end(Log::PLAIN, &janitor::run(tasks));
    }
    let cli = Cli::parse();
    let log = Log::of(&cli);
    log.begin(cli.name.clone());
    if cli.command.is_none() {
        service::raise_open_files();
    }
    let result = match (&cli.command, &cli.config) {
        (Some(command), _) => operate(command),
        (None, Some(config)) => fleet::run(config, &cli, log),
        (None, None) => serve(&cli),
    };
    let code = end(log, &result);
    if let (Err(error), true) = (&result, cli.end_with_parent) {
        // It is in the log already.
        let _ = fleet::tell_why(error);
    }
    code
}

fn end(log: Log, result: &anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.end(error);
            ExitCode::FAILURE
        }
    }
}

/// A writer whose reader may have seen enough, as `head` and `grep -q` have.
struct UntilClosed<W>(W);

impl<W: Write> Write for UntilClosed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_closed(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_closed(self.0.flush(), ())
    }
}

fn unless_closed<T>(done: io::Result<T>, closed: T) -> io::Result<T> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(closed),
        done => done,
    }
}

/// Has a daemon do something, or merges an overlay.
fn operate(command: &Command) -> anyhow::Result<()> {
    use control::Command as Request;
    // Colours are for a terminal, if it is one and NO_COLOR doesn't forbid them.
    let out = &mut UntilClosed(anstream::stdout().lock());
    let (control, request) = match command {
        Command::Check { table, window } => {
            let mut shown = Vec::new();
            let checked = check::run(table, (*window).into(), &mut shown);
            out.write_all(printable_lines(&String::from_utf8_lossy(&shown)).as_bytes())?;
            return checked;
        }
        Command::Merge {
            at: MergeArgs { file: Some(file), overlay: Some(overlay), accept_base, .. },
            ..
        } => {
            return merge::run(file, overlay, overlay::origins(*accept_base), out);
        }
        Command::Merge { at: MergeArgs { control: Some(control), device, .. }, json } => {
            let (control, device) = (control.clone(), device.clone());
            return control::run(
                &ControlArgs { control, device, json: *json },
                Request::Merge,
                out,
            );
        }
        Command::Merge { .. } => bail!("give --control, or --file and --overlay"),
        Command::Unmark { file } => return marks::unmark(file, out),
        Command::List { control } => return control::list(control, out),
        Command::Status { control } => (control, Request::Status),
        Command::Snapshot { control, cow } => {
            (control, Request::Snapshot { cow: std::path::absolute(cow)? })
        }
        Command::Drop { control } => (control, Request::Drop),
        Command::Resync { control } => (control, Request::Resync),
        Command::Replace { control, leg, path } => {
            (control, Request::Replace { leg: leg.clone(), path: std::path::absolute(path)? })
        }
        Command::ClearFailure { control } => (control, Request::ClearFailure),
        Command::Reload { control } => (control, Request::Reload),
    };
    control::run(control, request, out)
}

fn serve(cli: &Cli) -> anyhow::Result<()> {
    if cli.end_with_parent {
        fleet::end_with_parent()?;
    }
    vhost_pmem::check_host()?;
    confinement::check(&cli.sandbox)?;
    let has_socket = cli.endpoint.socket_path.is_some() || cli.endpoint.fd.is_some();
    backing::check(&cli.backing, has_socket)?;
    // What is published is seen in the namespace that we were started in only.
    if backing::may_be_served(&cli.backing) && cli.backing.publish.is_none() {
        // Before there is any other thread.
        if let Err(error) = vhost_pmem::allow_served_windows() {
            debug!(%error, "no user namespace; served windows take the right to mount");
        }
    }
    let mut endpoint = Endpoint::open(&cli.endpoint, confinement::options(&cli.sandbox))?;
    let publish = cli.backing.publish.as_deref();
    let user = cli.sandbox.user;
    let mut control =
        cli.control.as_deref().map(|path| Endpoint::control(path, user)).transpose()?;
    let mut metrics =
        cli.metrics.as_ref().map(|at| metrics::Listener::open(at, user)).transpose()?;
    let Backing { region, stores, mirrors, snapshots, overlay, cows } =
        backing::open(&cli.backing)?;
    let nr_pages = region.nr_pages();
    let size = ByteSize(nr_pages.bytes());
    let content = Layered { region, cows, origins: overlay::origins(cli.backing.accept_base) };
    let sandbox = Arc::new(confinement::lay_out(cli, &content, &stores, &mirrors)?);
    let own = Arc::clone(&sandbox);
    vhost_pmem::confine_served_threads(move |thread| {
        own.enter(match thread {
            ServedThread::Layers => Role::Layers,
            _ => Role::Worker,
        });
    });
    let device = backing::device(content, &cli.backing, user)?;
    // Now that the changes are known to fit; and before anything is written.
    backing::mark_legs(&mirrors)?;
    let device = device.with_polling(Duration::from_micros(cli.poll_us.into()));
    let device = Arc::new(match cli.max_syncs {
        Some(per_second) => device.with_limit(per_second),
        None => device,
    });
    for store in stores.iter().map(|pagemap| pagemap.store()).filter(|one| !one.is_persistent()) {
        warn!(store = store.name(), "in memory: all that is flushed is lost without power");
    }
    let sockets = [&mut endpoint, &mut control].map(|one| one.as_mut().and_then(Endpoint::leave));
    let metrics_socket = metrics.as_mut().and_then(metrics::Listener::leave);
    let sockets = sockets.into_iter().chain([metrics_socket]).flatten().collect();
    let leavings = match sandbox.ends_tidying() {
        false => Leavings::to_ourselves(sockets),
        true => Leavings::to_janitor(sockets, &device)
            .context("cannot leave the unpublishing to a process")?,
    };
    sandbox.leave_the_host();
    let mut sources = Vec::new();
    if let Some(endpoint) = &control {
        sources.push(ClientSource::Listener(endpoint.listener()?));
    }
    if cli.end_with_parent {
        sources.push(ClientSource::Channel(fleet::inherited_channel()?));
    }
    if !sources.is_empty() || metrics.is_some() {
        let from_table =
            snapshots.into_iter().map(|(position, snapshot)| (position.to_string(), snapshot));
        let overlay = overlay.map(|snapshot| ("overlay".to_owned(), snapshot));
        let operator = Operator {
            name: cli.name.clone().unwrap_or_else(|| "device".to_owned()),
            device: Arc::clone(&device),
            size: nr_pages,
            stores,
            mirrors: Mutex::new(mirrors.clone()),
            snapshots: from_table.chain(overlay).collect(),
            process: OwnProcess::open().ok(),
            changing: Mutex::default(),
            sandbox: Arc::clone(&sandbox),
        };
        let carry_out = Arc::new(move |request: &Request| operator.carry_out(request));
        if let Some(listener) = &metrics {
            let carry_out = Arc::clone(&carry_out);
            let collect = Arc::new(move || carry_out(&Request::status()));
            metrics::serve(listener, collect, None, sandbox.pass(Role::Metrics))
                .context("cannot set up metrics")?;
        }
        for source in sources {
            // To find out who has it mapped.
            let window = device.served_file().map(|window| window.store().fd());
            let window = window.map(|window| window.try_clone_to_owned()).transpose()?;
            let pass = sandbox.pass(Role::Operator).with_file(window);
            let carry_out = Arc::clone(&carry_out);
            control::serve(source, carry_out, pass).context("cannot set up control")?;
        }
    }
    resync::begin(mirrors, sandbox.pass(Role::Resync)).context("cannot begin to resync")?;
    let (pass, is_member) = (sandbox.pass(Role::Signals), cli.end_with_parent);
    shutdown::on_signal(Arc::clone(&device), is_member, pass, leavings.tidying())
        .context("cannot set up signals")?;
    backing::warn_of_tail(device.window(), nr_pages, &cli.backing);
    backing::warn_of_size(device.window(), nr_pages);
    let window = backing::describe(device.window(), nr_pages);
    service::ready();
    sandbox.wait_for_all();
    sandbox.enter(Role::Device);
    if let Some(path) = publish {
        info!(%size, %window, path = %path.display(), "published");
    }
    if let Some(endpoint) = &endpoint {
        let gpa = device.gpa().map(|start| field::display(format!("{start:#x}")));
        info!(%size, %window, gpa, socket = %endpoint, "waiting for a frontend");
    }
    if cli.end_with_parent {
        // Who becomes another user has forgotten.
        fleet::end_with_parent()?;
        fleet::tell_begun().context("cannot tell the process that started this one")?;
    }
    let served = match &endpoint {
        Some(endpoint) => serve_frontends(&device, endpoint),
        // Until a signal comes.
        None => loop {
            std::thread::park();
        },
    };
    device.withdraw();
    served
}

fn serve_frontends(device: &Arc<Device>, endpoint: &Endpoint) -> anyhow::Result<()> {
    // Logs the first failure of a row, and how many there were.
    let mut failures = 0u64;
    loop {
        let listener = endpoint.listener().map_err(ServeError::Accept);
        match listener.and_then(|listener| device.serve_next(listener)) {
            Ok(()) if endpoint.is_single() => return Ok(()),
            Ok(()) if failures > 0 => {
                info!(failures, "frontends can be served again");
                failures = 0;
            }
            Ok(()) => {}
            Err(error) if error.is_temporary() && !endpoint.is_single() => {
                failures += 1;
                if failures.is_power_of_two() {
                    let error = format!("{:#}", anyhow::anyhow!(error));
                    warn!(failures, error, "no frontend can be served now; trying again");
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
