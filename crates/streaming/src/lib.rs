//! Exec, attach and port-forward: what carries a container's streams to `kubectl` and `crictl`.
//!
//! What runs in a container is reached through [`Backend`], which the engine implements; nothing here knows of pods.
#![forbid(unsafe_code)]

mod backend;

pub use backend::{AttachRequest, Backend, BackendError, ExecRequest, Exit, Process, Resize};
