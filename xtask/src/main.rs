// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's own commands: `cargo xtask demo`, `cargo xtask test` and more.

#[allow(dead_code, reason = "the daemon uses all of it")]
#[path = "../../src/address.rs"]
mod address;
mod bench;
#[allow(dead_code, reason = "the daemon reads it")]
#[path = "../../src/cli.rs"]
mod command_line;
mod dashboard;
mod demo;
mod deny;
mod docs;
mod fstests;
mod fuzz;
mod guest;
mod kvm;
mod package;
mod plot;
mod process;
#[allow(dead_code, reason = "the daemon uses all of it")]
#[path = "../../src/size.rs"]
mod size;
mod soak;
mod suites;
mod test;
mod toolchain;
mod tools;
#[allow(dead_code, reason = "the daemon uses all of it")]
#[path = "../../src/user.rs"]
mod user;

use std::process::ExitCode;

use clap::Parser;

/// The project's own commands. Each obtains what it needs, into `target/`.
#[derive(Parser)]
enum Command {
    /// Boot a real guest whose /dev/pmem0 is a file served by vhost-pmemd, and show on the host
    /// what the guest wrote
    Demo,
    /// Boot a guest on daemons that run, with a shell in it; or run there what comes from a pipe
    Guest(guest::Options),
    /// Check formatting, lints, docs and licences, and run all tests, real guests among them
    Test(test::Args),
    /// Measure what a served window costs beside a direct one, in time and in the host's memory, what
    /// a flush costs, on the host and in a guest, and a stack beside raw I/O; then do as plot does
    Bench,
    /// Draw the charts in docs/ of what the benchmarks found last
    Plot,
    /// Draw docs/dashboard.svg: the dashboard for Grafana, with what Prometheus answers while a guest works
    Dashboard,
    /// Build the site of docs/ with mdBook, and its page of commands from the command line itself
    Docs,
    /// Build a Debian package, with units for systemd, manual pages and completions
    Package(package::Options),
    /// Run xfstests, which you bring, built, in guests on two devices of ours, and tell which tests fail
    Fstests(fstests::Options),
    /// Run the filesystem suites in guests, in each window, and make the table in docs/suites.md anew
    Suites(suites::Options),
    /// Have guests reboot, flood, lose their device and be killed, in any order, on daemons that stay, and
    /// check that what they have synced is there and that nothing leaks
    Soak(soak::Options),
    /// Feed what is read from files, guests and frontends to a second reader too, and look for inputs
    /// that the two don't agree on
    Fuzz {
        /// One target only: table, the table language; cow, a snapshot's COW store; queue, the request
        /// queue; config, the configuration space; or messages, those of a frontend
        target: Option<String>,
        /// How long, for each
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Demo => demo::run(),
        Command::Guest(options) => guest::run(&options),
        Command::Test(args) => test::run_chosen(args),
        Command::Bench => bench::run_all().and_then(|()| plot::draw_all()),
        Command::Plot => plot::draw_all(),
        Command::Dashboard => dashboard::draw(),
        Command::Docs => docs::build(),
        Command::Package(options) => package::run_chosen(&options),
        Command::Fstests(options) => fstests::run(&options),
        Command::Suites(options) => suites::run_all(&options),
        Command::Soak(options) => soak::soak(&options),
        Command::Fuzz { target, seconds } => fuzz::run_targets(target.as_deref(), seconds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
