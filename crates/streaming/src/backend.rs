//! What the server asks of whoever runs containers.

use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use async_trait::async_trait;
use tokio::net::TcpStream;

/// Why something could not be started or has failed. Its text and those of its sources are what the client reads.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Resolves when what the streams belong to has ended: for exec to the exit code of the command, for attach to that
/// of the container (which attach does not report; any number will do).
pub type Exit = Pin<Box<dyn Future<Output = Result<i32, BackendError>> + Send>>;

/// Of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// Sets the size of a terminal. Must not block; errors are the implementation's to log.
pub type Resize = Box<dyn Fn(TerminalSize) + Send + Sync>;

/// A command to run in a container. It was validated: at least one stream is wanted, and no stderr with a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    pub container: String,
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A running container to attach to. Validated like [`ExecRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    pub container: String,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A command or container and the near ends of its streams.
///
/// The descriptors are non-blocking and can be polled: pipes, sockets, or a terminal's master. With a terminal `stdin`
/// and `stdout` are duplicates of the one master. A stream that was not asked for, or that the container does not
/// have, is `None`; whatever arrives for it is discarded.
///
/// Closing `stdin` is how its end is told. `stdout` and `stderr` are read until their end (or EIO, for a terminal); after
/// [`Exit`] they are drained, though not for ever, since a child in the background may hold them open. Dropping the
/// whole hangs up: a command whose client went away finds its pipes closed.
pub struct Process {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub resize: Option<Resize>,
    pub exit: Exit,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .field("terminal", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}

/// Runs commands in containers, attaches to them, and connects to ports in pods.
///
/// Calls are dropped when their client goes away before they are done; an implementation undoes what it had begun.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// With a terminal, `size` is what it is to begin with, if the client has told it in time.
    async fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Result<Process, BackendError>;

    /// Nothing is replayed. With `stdin`, closing it closes the container's only if that was made with `stdin_once`.
    async fn attach(&self, request: AttachRequest) -> Result<Process, BackendError>;

    /// A connection to a port on the loopback addresses of a pod's network namespace, IPv4 before IPv6.
    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<TcpStream, BackendError>;
}
