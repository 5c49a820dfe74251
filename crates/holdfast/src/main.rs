//! The `holdfast` program: the server, and the operator's commands.
//!
//! This crate reads configuration, wires the other crates together and talks to people. What a pod is and how one
//! comes to run is elsewhere.
#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod config;
mod crilog;
mod doctor;
mod find;
mod output;
mod serve;
mod spec_file;
mod units;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Command::Serve(options) => serve::run(options).map(|()| ExitCode::SUCCESS),
        Command::HoldUserNamespace => serve::user_namespaces::hold().map(|()| ExitCode::SUCCESS),
        Command::Config(which) => config::run(&which).map(|()| ExitCode::SUCCESS),
        Command::Doctor(options) => doctor::run(&options, args.global.output),
        command => commands::run(&args.global, command),
    };
    outcome.unwrap_or_else(|error| {
        // `holdfast inspect x | head` has seen enough.
        let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
        if error.downcast_ref().is_some_and(gone) {
            return ExitCode::SUCCESS;
        }
        // The chain on one line: journals and scripts read lines.
        eprintln!("holdfast: {error:#}");
        ExitCode::FAILURE
    })
}
