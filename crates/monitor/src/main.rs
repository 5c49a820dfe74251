//! `holdfast-monitor`: one per pod, started by the daemon with its socket as descriptor 0.
//!
//! It is the parent and subreaper of all the pod's processes, holds their standard streams, writes their logs, runs
//! execs and records exits, whatever becomes of the daemon. One thread, one epoll loop, no allocation that stays.
//! Arguments are for its own use: `--resume N` and `--probe N` (see `reexec`).

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match holdfast_monitor::main(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-monitor: {}", holdfast_monitor::explain(&error));
            ExitCode::FAILURE
        }
    }
}
