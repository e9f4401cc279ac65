//! `chiral`: content of peer-to-peer networks as files.
// `eprintln!` panics where stderr is a full disk, and waits where it is not read: `stderr` does neither.
#![cfg_attr(not(test), warn(clippy::print_stderr))]

mod background;
mod cli;
mod commands;
mod daemon;
mod ending;
mod exit;
mod hash;
mod holder;
mod log;
mod mounting;
mod output;
mod piped;
mod printable;
mod progress;
mod settings;
mod signals;
mod stderr;
mod system;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: chiral::sys::Allocator = chiral::sys::Allocator;

fn main() -> ExitCode {
    // First of all: no thread runs yet.
    chiral::sys::settle_signals();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return exit::of_usage(&told),
    };
    let done = log::start(cli.global.log.as_deref()).and_then(|()| commands::run(cli));
    exit::report(done)
}
