//! Exec, attach and port-forward: what carries a container's streams to `kubectl` and `crictl`.
//!
//! A CRI call is answered with a URL that holds a token, good once and for a minute ([`Server`]). Whoever claims it
//! upgrades the HTTP connection to SPDY/3.1 or to WebSocket, and is then joined with what the [`Backend`] has started.
//! The protocols are those of Kubernetes (`k8s.io/streaming`, KEP-4006): channel.k8s.io up to v5, portforward.k8s.io.
//! What runs in a container is reached through [`Backend`], which the engine implements; nothing here knows of pods.
//!
//! Everything that is buffered, awaited or counted has a bound: see the constants at the head of each module.
#![forbid(unsafe_code)]
// `fuzzing` is set by cargo-fuzz, which cargo's own check of such names does not know.
#![allow(unexpected_cfgs)]

mod activity;
mod backend;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
mod negotiate;
mod pipe;
mod remote;
mod server;
mod session;
mod spdy;
mod status;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod writer;
mod ws;

pub use backend::{AttachRequest, Backend, BackendError, ExecRequest, Exit, Process, Resize, TerminalSize};
pub use server::{Bound, Config, RequestError, Server, StartError};
pub use tls::{TlsError, TlsFiles};
pub use tokens::TokenError;
