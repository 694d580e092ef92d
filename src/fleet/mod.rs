// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many devices: one process each, started and kept by this one, as a configuration file says.
//!
//! A device that fails, or a guest that brings its process down, is no other's concern. This
//! process holds none of what they serve, and shares no memory with guests.

mod config;
mod member;

use std::collections::BTreeMap;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info};

use self::config::Config;
use self::member::{Launcher, Member, PATIENCE, Standing};
use crate::address::Address;
use crate::cli::Cli;
use crate::confinement;
use crate::control::{self, ClientSource, Command, OwnProcess, Report, Request, State};
use crate::log::Log;
use crate::metrics;
use crate::sandbox::{Role, Sandbox};
use crate::service;
use crate::socket::Endpoint;

pub(crate) use self::member::{end_with_parent, inherited_channel, tell_begun, tell_why};

/// What the fleet has to do.
enum Event {
    Signal(i32),
    /// Read the configuration again; the answer is whether it could be.
    Reload(Sender<Result<(), String>>),
    /// Tell of all devices how each stands.
    List(Sender<BTreeMap<String, Standing>>),
}

/// Serves the devices of the file `config` until a signal ends it.
///
/// The process keeps its rights, for its members to begin with, and give up themselves; but not
/// its threads that do what others ask for.
pub(crate) fn run(config: &Path, cli: &Cli, log: Log) -> anyhow::Result<()> {
    confinement::check(&cli.sandbox)?;
    let Config { metrics, devices } = config::read(config)?;
    let (send, events) = channel();
    // Before any child there is.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?;
    let told = send.clone();
    let relay = move || {
        // The fleet outlives its senders.
        signals.forever().for_each(|signal| _ = told.send(Event::Signal(signal)));
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(relay)?;
    let endpoint = cli.control.as_deref().map(|path| Endpoint::control(path, None)).transpose()?;
    let listener = metrics.as_ref().map(|at| metrics::Listener::open(at, None)).transpose()?;
    let operator = Arc::new(Operator { fleet: send, silent: Mutex::default() });
    let sandbox = Arc::new(Sandbox::new(confinement::options(&cli.sandbox)));
    if let Some(listener) = &listener {
        let operator = Arc::clone(&operator);
        let collect = Arc::new(move || operator.carry_out(&Request::status()));
        metrics::serve(listener, collect, OwnProcess::open().ok(), sandbox.pass(Role::Fleet))
            .context("cannot set up metrics")?;
    }
    if let Some(endpoint) = &endpoint {
        let carry_out = move |request: &Request| operator.carry_out(request);
        let clients = ClientSource::Listener(endpoint.listener()?);
        control::serve(clients, Arc::new(carry_out), sandbox.pass(Role::Fleet))
            .context("cannot set up control")?;
    }
    let launcher = Launcher { log, sandbox: confinement::arguments(&cli.sandbox) };
    let mut fleet = Fleet {
        config: config.to_owned(),
        metrics,
        launcher,
        members: BTreeMap::new(),
        ready: false,
        watchdog: service::watchdog(),
    };
    fleet.want(devices);
    fleet.keep(&events);
    Ok(())
}

struct Fleet {
    config: PathBuf,
    /// Where metrics are to be had, for as long as it runs.
    metrics: Option<Address>,
    launcher: Launcher,
    members: BTreeMap<String, Member>,
    /// Whether all that can be served was.
    ready: bool,
    /// How often systemd wants to hear of us.
    watchdog: Option<Duration>,
}

/// How many devices are asked at once.
const AT_ONCE: usize = 16;

/// How long a reload waits for devices to begin or end.
const SETTLING: Duration = Duration::from_secs(10);

/// How often to look whether a device that was started is ready.
const TICK: Duration = Duration::from_millis(20);

impl Fleet {
    /// Has the devices be these. Those that are as they were are not touched.
    fn want(&mut self, mut devices: config::Devices) {
        for (name, member) in &mut self.members {
            match devices.remove(name) {
                Some(args) if member.has(&args) => {}
                args => member.want(args),
            }
        }
        for (name, args) in devices {
            let member = self.members.entry(name.clone()).or_insert_with(|| Member::new(&name));
            member.want(Some(args));
        }
    }

    /// Keeps all devices as they are wanted, until a signal says that they are to end.
    fn keep(&mut self, events: &Receiver<Event>) {
        let mut ending = false;
        loop {
            let next = self.settle();
            if ending && self.members.is_empty() {
                return;
            }
            let event = match next {
                None => events.recv().ok(),
                Some(when) => {
                    match events.recv_timeout(when.saturating_duration_since(Instant::now())) {
                        Ok(event) => Some(event),
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => None,
                    }
                }
            };
            match event {
                Some(Event::Signal(SIGCHLD)) => {}
                Some(Event::Signal(SIGHUP)) => _ = self.reload(),
                // The thread that waits for signals is there as long as this one.
                Some(Event::Signal(_)) | None => {
                    info!("ending");
                    service::stopping();
                    if ending {
                        self.members.values_mut().for_each(Member::hurry);
                    }
                    ending = true;
                    self.members.values_mut().for_each(|member| member.want(None));
                }
                // Who asked and went away needs no answer.
                Some(Event::Reload(answer)) => _ = answer.send(self.reload()),
                Some(Event::List(answer)) => {
                    let one = |(name, one): (&String, &mut Member)| (name.clone(), one.standing());
                    _ = answer.send(self.members.iter_mut().map(one).collect());
                }
            }
        }
    }

    /// Does what is to be done, and says when there is more.
    fn settle(&mut self) -> Option<Instant> {
        let next = self.members.values_mut().filter_map(|one| one.settle(&self.launcher)).min();
        self.members.retain(|_, member| !member.is_gone());
        if !self.ready && self.members.values().all(Member::is_settled) {
            self.ready = true;
            info!(devices = self.members.len(), "all devices that can be are served");
            service::ready();
        }
        if self.watchdog.is_some() {
            service::alive();
        }
        let look = (!self.ready).then_some(TICK);
        // Twice as often as is asked for.
        let alive = self.watchdog.map(|interval| interval / 2);
        let sooner = look.into_iter().chain(alive).min().map(|wait| Instant::now() + wait);
        next.into_iter().chain(sooner).min()
    }

    fn reload(&mut self) -> Result<(), String> {
        let read = config::read(&self.config).and_then(|config| {
            if config.metrics != self.metrics {
                bail!(
                    "metrics can't be had elsewhere while it runs; start the daemon anew for that"
                );
            }
            Ok(config.devices)
        });
        match read {
            Ok(devices) => {
                info!(devices = devices.len(), "configuration read again");
                self.want(devices);
                Ok(())
            }
            Err(error) => {
                let error = format!("{error:#}");
                error!(error, "the configuration is refused; all stays as it was");
                Err(error)
            }
        }
    }
}

/// Operates a fleet, and its devices by asking each one's process.
struct Operator {
    fleet: Sender<Event>,
    /// The devices that didn't answer when they were asked last, and since when.
    silent: Mutex<BTreeMap<String, Instant>>,
}

impl Operator {
    fn silent(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device that was asked at that time didn't answer. How long it hasn't.
    fn is_silent(&self, name: &str, asked: Instant) -> Duration {
        self.silent().entry(name.to_owned()).or_insert(asked).elapsed()
    }

    fn carry_out(&self, request: &Request) -> anyhow::Result<Vec<Report>> {
        let members = match (&request.command, &request.device) {
            (Command::Reload, Some(_)) => bail!("all devices are reloaded, or none"),
            (Command::Reload, None) => {
                self.ask(Event::Reload)?.map_err(|refused| anyhow!(refused))?;
                self.wait_until_settled()?
            }
            (Command::Status, None) => self.ask(Event::List)?,
            (_, device) => {
                let mut members = self.ask(Event::List)?;
                match device {
                    Some(name) => {
                        let one = members.remove(name).ok_or_else(|| {
                            anyhow!("there is no such device; there are {}", names(&members))
                        })?;
                        BTreeMap::from([(name.clone(), one)])
                    }
                    None if members.len() == 1 => members,
                    None => bail!("which one? Give --device; there are {}", names(&members)),
                }
            }
        };
        let command = match &request.command {
            Command::Reload => &Command::Status,
            command => command,
        };
        let members: Vec<_> = members.into_iter().collect();
        members.chunks(AT_ONCE).flat_map(|some| self.relay_to_each(some, command)).collect()
    }

    /// Waits until each device is there that can be, unless one takes very long; how all stand.
    fn wait_until_settled(&self) -> anyhow::Result<BTreeMap<String, Standing>> {
        let until = Instant::now() + SETTLING;
        loop {
            let members = self.ask(Event::List)?;
            if members.values().all(|one| one.settled) || Instant::now() >= until {
                return Ok(members);
            }
            std::thread::sleep(TICK);
        }
    }

    /// Has each device do something, all at once: one that hangs has the others wait no longer than
    /// itself.
    fn relay_to_each(
        &self,
        members: &[(String, Standing)],
        command: &Command,
    ) -> Vec<anyhow::Result<Report>> {
        std::thread::scope(|scope| {
            let begin = members.iter().map(|(name, standing)| {
                let relay = move || self.relay(name, standing, command);
                std::thread::Builder::new().name("relay".to_owned()).spawn_scoped(scope, relay)
            });
            let begun: Vec<_> = begin.collect();
            let end = |begun: io::Result<ScopedJoinHandle<'_, anyhow::Result<Report>>>| {
                begun.context("no thread")?.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            begun.into_iter().map(end).collect()
        })
    }

    /// Has one device do something. That may take its time, unless it is a status; so one is asked for
    /// first, to find out whether it answers at all.
    fn relay(&self, name: &str, standing: &Standing, command: &Command) -> anyhow::Result<Report> {
        if !matches!(command, Command::Status) {
            let Report { state, .. } = self.relay_alone(name, standing, &Command::Status)?;
            if let State::Down { reason } = state {
                bail!("{name} {reason}");
            }
        }
        self.relay_alone(name, standing, command)
    }

    fn relay_alone(
        &self,
        name: &str,
        Standing { down, restarts, channel, .. }: &Standing,
        command: &Command,
    ) -> anyhow::Result<Report> {
        // All else may take its time.
        let patience = matches!(command, Command::Status).then_some(PATIENCE);
        let starting = "is starting".to_owned();
        let down = down.as_ref().or(channel.is_none().then_some(&starting));
        let state = match (down, channel, command) {
            (Some(reason), _, Command::Status) => State::Down { reason: reason.clone() },
            (Some(reason), ..) => bail!("{name} {reason}"),
            (None, None, _) => bail!("{name} {starting}"),
            (None, Some(channel), _) => {
                let asked = Instant::now();
                let answer = control::ask_over(channel, command.clone(), patience);
                let hangs = answer.as_ref().is_err_and(control::is_timeout);
                if !hangs {
                    self.silent().remove(name);
                }
                match answer {
                    Ok(Ok(reports)) => match reports.into_iter().next() {
                        Some(report) => report.state,
                        None => bail!("{name} says nothing"),
                    },
                    Ok(Err(refused)) => bail!(refused),
                    Err(_) if hangs => {
                        let seconds = self.is_silent(name, asked).as_secs();
                        let reason = format!("is not answering for {seconds} s");
                        match command {
                            Command::Status => State::Down { reason },
                            _ => bail!("{name} {reason}"),
                        }
                    }
                    Err(error) if matches!(command, Command::Status) => {
                        State::Down { reason: format!("is ending: {error:#}") }
                    }
                    Err(error) => return Err(error.context(name.to_owned())),
                }
            }
        };
        Ok(Report { name: name.to_owned(), restarts: Some(*restarts), state })
    }

    fn ask<T>(&self, event: impl FnOnce(Sender<T>) -> Event) -> anyhow::Result<T> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (answer, is_answered) = channel();
        let ended = || anyhow!("the daemon is ending");
        self.fleet.send(event(answer)).map_err(|_| ended())?;
        is_answered.recv_timeout(PATIENCE).map_err(|_| ended())
    }
}

fn names<T>(members: &BTreeMap<String, T>) -> String {
    let names: Vec<_> = members.keys().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
