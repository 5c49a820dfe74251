//! The per-pod monitor. See `main.rs` for what it is; this library is its inside, so that tests can reach it.
//!
//! | module | owns |
//! |---|---|
//! | `monitor` | the loop, timers, who is called for which event |
//! | `requests` | the daemon's requests that need no module of their own |
//! | `sandbox`, `containers`, `exec` | what a request about them does, step by step |
//! | `handlers` | containers that an OCI runtime makes in place of the launcher |
//! | `stream`, `attach`, `sockets` | exec, attach and port-forward: the daemon's descriptors and ours |
//! | `exits` | reaping, exit records, the OOM fact |
//! | `logs` | when a container's pump is started, and what its notices lead to |
//! | `pump` | container output to CRI logs, in a child that comes and goes |
//! | `frame`, `clock` | the CRI log format, pure |
//! | `output` | what an exec printed |
//! | `job` | work that may hang, in a child |
//! | `adopt`, `reexec`, `snapshot` | carrying on for a dead monitor, and for an older program of this process |
//! | `link`, `poller` | sockets, epoll |

#![forbid(unsafe_code)]

mod adopt;
mod attach;
mod cgroup;
mod clock;
mod containers;
mod error;
mod exec;
mod exits;
mod frame;
mod handlers;
mod job;
mod link;
mod logs;
mod monitor;
mod output;
mod poller;
mod program;
mod pump;
mod reexec;
mod requests;
mod sandbox;
mod snapshot;
mod sockets;
mod stream;

pub use error::Error;

/// What `main` does with the arguments after the program's name.
pub fn main(arguments: &[String]) -> Result<(), Error> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => {
            let unprotected = program::protect();
            monitor::start(unprotected)?.run()
        }
        // Descriptors that are handed on stay open: the old program has made them so.
        ["--resume", memfd] => {
            if let Some(unprotected) = program::protect() {
                eprintln!("holdfast-monitor: {unprotected}");
            }
            reexec::resume(memfd)?.run()
        }
        ["--probe", memfd] => reexec::probe(memfd),
        _ => Err(Error::Usage),
    }
}

/// An error with all its causes in one line.
pub fn explain(error: &Error) -> String {
    error::chain(error)
}
