//! `holdfast-bench`: what any CRI runtime costs in time and memory, beside what the kernel itself costs.
//!
//! Owns: the measurements, the images they need, the floor of bare system calls, the table. Leaves out: starting the
//! runtimes (`hack/bench` does that) and judging: it prints figures and asserts nothing.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod floor;
mod floor_client;
mod image;
mod logs;
mod memory;
mod parallel;
mod pods;
mod pull;
mod report;
mod stats;
mod target;

use clap::Parser as _;

use crate::args::{Args, Command};

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The floor clones, so it stays a process of one thread: no runtime there.
    if let Some(Command::Floor { scratch }) = &args.command {
        return floor::serve(scratch);
    }
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("a TLS provider was installed before main");
    }
    // One thread: a call's answer is not handed from thread to thread before its time is taken.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(bench::run(&args))
}
