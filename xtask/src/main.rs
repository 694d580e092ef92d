// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's own commands: `cargo xtask demo` and `cargo xtask test`.

mod demo;
mod deny;
mod process;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;

/// The project's own commands. Each obtains what it needs, into `target/`.
#[derive(Parser)]
enum Command {
    /// Boot a real guest whose /dev/pmem0 is a file served by vhost-pmemd, and show on the host
    /// what the guest wrote
    Demo,
    /// Check formatting, lints, docs and licences, and run all tests, real guests among them
    Test,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Demo => demo::run(),
        Command::Test => test::run_all(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
