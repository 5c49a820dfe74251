//! The daemon's end of a monitor's socket: concurrent typed calls, and the stream of events.
//!
//! A [`Client`] is cheap to clone. Every call has a deadline; when the monitor closes the socket or dies, all calls fail
//! with [`Error::Gone`] and the event stream yields [`MonitorEvent::Gone`] and ends. A call whose future is dropped is
//! forgotten on this side only: the monitor finishes what it began, and `inventory` tells what that was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::codec::{self, MAX_DESCRIPTORS, MAX_INLINE};
use crate::descriptors::{ContainerDescriptors, SandboxDescriptors, Shape};
use crate::message::{
    Adopt, AdoptContainer, ContainerCreated, ContainerEntry, ContainerRef, ContainerStarted, CreateContainer,
    CreateSandbox, Empty, Envelope, ExecFinished, ExecSync, Exit, Failure, FailureKind, Hello, Init,
    Inventory, LogTrouble, Request, SandboxCreated, Signal, event, reply, request,
};
use crate::pending::{Pending, Ticket};
use crate::{Error, FEATURES, REVISION};

/// Deadline of a call unless [`Client::with_deadline`] sets another.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// What ExecSync may take over its own timeout: the kill and the drain.
const EXEC_GRACE: Duration = Duration::from_secs(15);
/// Events that may wait to be taken, [`MonitorEvent::Lagged`] apart.
const EVENT_QUEUE: usize = 1024;

/// A connection to one monitor. It closes with the last clone; the event stream alone does not hold it open.
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
    pub(crate) deadline: Duration,
}

struct Link {
    socket: Arc<UnixStream>,
    pending: Pending,
    reader: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        // Nobody is left to hand answers on: who still waits for one must not wait for ever.
        self.pending.fail_all();
    }
}

/// What a monitor says of its own accord.
#[derive(Debug)]
pub enum MonitorEvent {
    Exited(Exit),
    PauseExited(Exit),
    LogTrouble(LogTrouble),
    /// Events were not taken in time and some were dropped: ask for the inventory.
    Lagged,
    /// The last item: the connection has ended.
    Gone,
}

/// The events of one connection, in order.
pub struct EventStream {
    receiver: mpsc::Receiver<MonitorEvent>,
    ended: bool,
}

impl EventStream {
    /// The next event; `None` after [`MonitorEvent::Gone`]. Cancel-safe.
    pub async fn next(&mut self) -> Option<MonitorEvent> {
        if self.ended {
            return None;
        }
        let event = self.receiver.recv().await.unwrap_or(MonitorEvent::Gone);
        self.ended = matches!(event, MonitorEvent::Gone);
        Some(event)
    }
}

/// A sandbox as the monitor made it.
#[derive(Debug)]
pub struct Sandbox {
    pub pause_pid: i32,
    pub warnings: Vec<String>,
    pub descriptors: SandboxDescriptors,
}

/// A container that waits at its exec barrier.
#[derive(Debug)]
pub struct Container {
    pub pid: i32,
    pub warnings: Vec<String>,
    pub descriptors: ContainerDescriptors,
}

/// Everything a monitor knows.
#[derive(Debug, Default)]
pub struct MonitorInventory {
    pub sandbox: Option<Sandbox>,
    pub pause_exit: Option<Exit>,
    pub containers: Vec<InventoryContainer>,
}

#[derive(Debug)]
pub struct InventoryContainer {
    pub entry: ContainerEntry,
    /// None once it has exited and its output is drained.
    pub descriptors: Option<ContainerDescriptors>,
}

/// What a replacement for a dead monitor is told; see [`Client::adopt`].
pub struct AdoptPlan<'a> {
    pub init: Init,
    pub create_sandbox: CreateSandbox,
    pub pause_pid: i32,
    pub sandbox: &'a SandboxDescriptors,
    pub containers: Vec<AdoptedContainer<'a>>,
}

pub struct AdoptedContainer<'a> {
    pub create: CreateContainer,
    /// As last seen; the fields that describe descriptors are filled in by the client.
    pub entry: ContainerEntry,
    /// None for one that has exited.
    pub descriptors: Option<&'a ContainerDescriptors>,
}

impl Client {
    /// Connects to `<state_dir>/monitor.sock` of a running monitor and says hello.
    pub async fn connect(path: &Path) -> Result<(Client, EventStream, Hello), Error> {
        let failed = |errno: rustix::io::Errno| Error::Connect {
            path: path.to_path_buf(),
            source: errno.into(),
        };
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .map_err(failed)?;
        // A unix socket connects at once or not at all: there is nothing to wait for.
        let (_dir, address) = crate::socket_address(path).map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        let (client, events) = Client::from_socket(socket)?;
        let hello = client.hello().await?;
        Ok((client, events, hello))
    }

    /// Takes over one end of a SEQPACKET pair. Must be called in a tokio runtime.
    pub fn from_socket(socket: OwnedFd) -> Result<(Client, EventStream), Error> {
        let failed = |source| Error::Socket {
            action: "prepare",
            source,
        };
        rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| failed(errno.into()))?;
        // tokio's UnixStream only waits for readiness here; the datagrams are ours to send and receive.
        let socket = UnixStream::from_std(socket.into()).map_err(failed)?;
        let socket = Arc::new(socket);
        let pending = Pending::default();
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE + 1);
        let reader = tokio::spawn(read_all(socket.clone(), pending.clone(), sender));
        let link = Link {
            socket,
            pending,
            reader: reader.abort_handle(),
        };
        let client = Client {
            link: Arc::new(link),
            deadline: DEFAULT_DEADLINE,
        };
        let events = EventStream {
            receiver,
            ended: false,
        };
        Ok((client, events))
    }

    /// The same connection with another deadline for its calls.
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client {
            link: self.link.clone(),
            deadline,
        }
    }

    /// One request, one reply. A failure that the monitor reports is [`Error::Refused`].
    pub async fn call(
        &self,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(reply::Body, Vec<OwnedFd>), Error> {
        let what = name_of(&body);
        let exchange = async {
            let mut ticket = self.send(body, descriptors).await?;
            accepted(ticket.next().await?)
        };
        within(what, self.deadline, exchange).await
    }

    pub async fn hello(&self) -> Result<Hello, Error> {
        let own = Hello {
            revision: REVISION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.iter().map(|name| (*name).to_owned()).collect(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            sandbox_id: String::new(),
        };
        match self.call(request::Body::Hello(own), &[]).await? {
            (reply::Body::Hello(hello), _) => Ok(hello),
            _ => Err(unexpected("Hello")),
        }
    }

    pub async fn init(&self, init: Init) -> Result<(), Error> {
        self.done(request::Body::Init(init)).await
    }

    pub async fn create_sandbox(&self, create: CreateSandbox) -> Result<Sandbox, Error> {
        match self.call(request::Body::CreateSandbox(create), &[]).await? {
            (reply::Body::SandboxCreated(created), fds) => sandbox(created, &mut fds.into_iter()),
            _ => Err(unexpected("CreateSandbox")),
        }
    }

    pub async fn create_container(&self, create: CreateContainer) -> Result<Container, Error> {
        let body = request::Body::CreateContainer(create);
        match self.call(body, &[]).await? {
            (reply::Body::ContainerCreated(created), fds) => container(created, fds),
            _ => Err(unexpected("CreateContainer")),
        }
    }

    /// Releases the exec barrier; returns once execve has been seen to succeed.
    pub async fn start(&self, container_id: &str) -> Result<ContainerStarted, Error> {
        let body = request::Body::StartContainer(reference(container_id));
        match self.call(body, &[]).await? {
            (reply::Body::ContainerStarted(started), _) => Ok(started),
            _ => Err(unexpected("StartContainer")),
        }
    }

    /// Signals the container's init, or with `all` (SIGKILL only) every process of the container.
    pub async fn signal(&self, container_id: &str, signal: i32, all: bool) -> Result<(), Error> {
        self.done(request::Body::Signal(Signal {
            container_id: container_id.to_owned(),
            signal,
            all,
        }))
        .await
    }

    /// Runs a process to its end. The deadline is the request's timeout and some grace; without a timeout, none.
    pub async fn exec_sync(&self, exec: ExecSync) -> Result<ExecFinished, Error> {
        let timeout = exec.timeout_ms;
        let exchange = async {
            let mut ticket = self.send(request::Body::ExecSync(exec), &[]).await?;
            accepted(ticket.next().await?)
        };
        let answer = if timeout == 0 {
            exchange.await?
        } else {
            let limit = Duration::from_millis(timeout).saturating_add(EXEC_GRACE);
            within("ExecSync", limit, exchange).await?
        };
        match answer {
            (reply::Body::ExecFinished(finished), fds) => output(finished, fds),
            _ => Err(unexpected("ExecSync")),
        }
    }

    pub async fn reopen_log(&self, container_id: &str) -> Result<(), Error> {
        self.done(request::Body::ReopenLog(reference(container_id))).await
    }

    /// Kills what is left of the container, removes its cgroup, forgets it. Unknown ids are fine.
    pub async fn remove(&self, container_id: &str) -> Result<(), Error> {
        self.done(request::Body::RemoveContainer(reference(container_id)))
            .await
    }

    /// Kills pause and closes the namespaces. Containers must have exited.
    pub async fn stop_sandbox(&self) -> Result<(), Error> {
        self.done(request::Body::StopSandbox(Empty {})).await
    }

    /// The exit is in the daemon's records; the monitor may delete its own.
    pub async fn forget_exit(&self, container_id: &str) -> Result<(), Error> {
        self.done(request::Body::ForgetExit(reference(container_id)))
            .await
    }

    /// Everything the monitor knows, with a fresh set of descriptors.
    pub async fn inventory(&self) -> Result<MonitorInventory, Error> {
        let exchange = async {
            let body = request::Body::Inventory(Empty {});
            let mut ticket = self.send(body, &[]).await?;
            let mut whole = MonitorInventory::default();
            loop {
                let (part, fds) = match accepted(ticket.next().await?)? {
                    (reply::Body::Inventory(part), fds) => (part, fds),
                    _ => return Err(unexpected("Inventory")),
                };
                if !whole.add(part, fds)? {
                    return Ok(whole);
                }
            }
        };
        within("Inventory", self.deadline, exchange).await
    }

    /// Replaces the monitor's program by `executable`, in place. On failure the old one runs on.
    pub async fn reexec(&self, executable: BorrowedFd<'_>) -> Result<(), Error> {
        let body = request::Body::Reexec(Empty {});
        match self.call(body, &[executable]).await? {
            (reply::Body::Done(_), _) => Ok(()),
            _ => Err(unexpected("Reexec")),
        }
    }

    /// Hands a dead monitor's pod to this one, which must be fresh (no `Init` yet).
    pub async fn adopt(&self, plan: AdoptPlan<'_>) -> Result<(), Error> {
        let mut message = Adopt {
            init: Some(plan.init),
            create_sandbox: Some(plan.create_sandbox),
            sandbox: Some(plan.sandbox.announce(plan.pause_pid, Vec::new())),
            containers: Vec::new(),
        };
        let mut fds = plan.sandbox.as_fds();
        for adopted in plan.containers {
            let own = adopted
                .descriptors
                .map(ContainerDescriptors::as_fds)
                .unwrap_or_default();
            // One less than the limit: a large request's first descriptor is its body.
            if fds.len() + own.len() >= MAX_DESCRIPTORS {
                self.adopt_part(std::mem::take(&mut message), &fds).await?;
                fds.clear();
            }
            message.containers.push(AdoptContainer {
                entry: Some(describe(adopted.entry, adopted.descriptors, own.len())),
                create: Some(adopted.create),
            });
            fds.extend(own);
        }
        self.adopt_part(message, &fds).await
    }

    async fn adopt_part(&self, part: Adopt, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.call(request::Body::Adopt(part), fds).await? {
            (reply::Body::Done(_), _) => Ok(()),
            _ => Err(unexpected("Adopt")),
        }
    }

    /// Asks the monitor to leave. It refuses while a process of the pod lives.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.done(request::Body::Shutdown(Empty {})).await
    }

    async fn done(&self, body: request::Body) -> Result<(), Error> {
        let what = name_of(&body);
        match self.call(body, &[]).await? {
            (reply::Body::Done(_), _) => Ok(()),
            _ => Err(unexpected(what)),
        }
    }

    pub(crate) async fn send(
        &self,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Ticket, Error> {
        let ticket = self.link.pending.register()?;
        let datagram = codec::encode(&Envelope {
            id: ticket.id,
            request: Some(Request { body: Some(body) }),
            ..Envelope::default()
        })?;
        let socket = &*self.link.socket;
        loop {
            socket.writable().await.map_err(|_| Error::Gone)?;
            let sent = socket.try_io(Interest::WRITABLE, || {
                nonblocking(codec::send(socket.as_fd(), &datagram, descriptors))
            });
            if let Ok(outcome) = sent {
                return outcome.map(|()| ticket);
            }
        }
    }
}

impl MonitorInventory {
    /// Adds one reply; returns whether another follows.
    fn add(&mut self, part: Inventory, fds: Vec<OwnedFd>) -> Result<bool, Error> {
        let mut fds = fds.into_iter();
        if let Some(created) = part.sandbox {
            self.sandbox = Some(sandbox(created, &mut fds)?);
        }
        if part.pause_exit.is_some() {
            self.pause_exit = part.pause_exit;
        }
        for entry in part.containers {
            let descriptors = match entry.descriptors {
                0 => None,
                _ => Some(ContainerDescriptors::take(Shape::from(&entry), &mut fds)?),
            };
            self.containers.push(InventoryContainer { entry, descriptors });
        }
        Ok(part.more)
    }
}

async fn read_all(socket: Arc<UnixStream>, pending: Pending, events: mpsc::Sender<MonitorEvent>) {
    let mut buffer = vec![0; MAX_INLINE + 1024];
    // The last place in the queue is for `Lagged`. It is taken up again before any event is queued: where that cannot be
    // done the queue is as full as it was, with the `Lagged` that was sent last in it, which tells of what is dropped now
    // as well.
    let mut reserved = None;
    loop {
        if socket.readable().await.is_err() {
            break;
        }
        let received = socket.try_io(Interest::READABLE, || {
            nonblocking(codec::receive(socket.as_fd(), &mut buffer))
        });
        let (envelope, fds) = match received {
            Err(_) => continue,
            Ok(Ok(message)) => message,
            // Broken, not only closed: there is no way to find the next message's meaning.
            Ok(_) => break,
        };
        if let Some(reply) = envelope.reply.and_then(|reply| reply.body) {
            pending.answer(envelope.id, (reply, fds));
        } else if let Some(event) = envelope.event.and_then(|event| event.body) {
            let event = match event {
                event::Body::Exited(exit) => MonitorEvent::Exited(exit),
                event::Body::PauseExited(exit) => MonitorEvent::PauseExited(exit),
                event::Body::LogTrouble(trouble) => MonitorEvent::LogTrouble(trouble),
            };
            reserved = reserved.or_else(|| events.clone().try_reserve_owned().ok());
            if let Some(place) = reserved.take() {
                match events.try_send(event) {
                    Ok(()) => reserved = Some(place),
                    Err(_) => drop(place.send(MonitorEvent::Lagged)),
                }
            }
        }
    }
    pending.fail_all();
    // The end of the channel reads as `Gone`, after everything that is still queued.
}

/// `Err` only for would-block, as `try_io` wants it; any other outcome is inside.
fn nonblocking<T>(outcome: Result<T, Error>) -> std::io::Result<Result<T, Error>> {
    match outcome {
        Err(error) if codec::would_block(&error) => Err(std::io::ErrorKind::WouldBlock.into()),
        other => Ok(other),
    }
}

pub(crate) async fn within<T>(
    call: &'static str,
    limit: Duration,
    exchange: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, exchange)
        .await
        .unwrap_or(Err(Error::Deadline { call, limit }))
}

pub(crate) fn accepted(answer: (reply::Body, Vec<OwnedFd>)) -> Result<(reply::Body, Vec<OwnedFd>), Error> {
    match answer.0 {
        reply::Body::Error(Failure { kind, message, errno }) => Err(Error::Refused {
            kind: FailureKind::try_from(kind).unwrap_or(FailureKind::Internal),
            message,
            errno,
        }),
        _ => Ok(answer),
    }
}

fn sandbox(created: SandboxCreated, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<Sandbox, Error> {
    Ok(Sandbox {
        descriptors: SandboxDescriptors::take(&created, fds)?,
        pause_pid: created.pause_pid,
        warnings: created.warnings,
    })
}

fn container(created: ContainerCreated, fds: Vec<OwnedFd>) -> Result<Container, Error> {
    Ok(Container {
        descriptors: ContainerDescriptors::take(Shape::from(&created), &mut fds.into_iter())?,
        pid: created.pid,
        warnings: created.warnings,
    })
}

fn output(mut finished: ExecFinished, fds: Vec<OwnedFd>) -> Result<ExecFinished, Error> {
    let mut fds = fds.into_iter();
    let mut take = |wanted: bool, bytes: &mut Vec<u8>| {
        if wanted {
            let memfd = fds.next().ok_or(Error::Descriptors { expected: 1, got: 0 })?;
            *bytes = codec::read_sealed(memfd)?;
        }
        Ok::<(), Error>(())
    };
    take(finished.stdout_in_descriptor, &mut finished.stdout)?;
    take(finished.stderr_in_descriptor, &mut finished.stderr)?;
    (finished.stdout_in_descriptor, finished.stderr_in_descriptor) = (false, false);
    Ok(finished)
}

fn describe(
    mut entry: ContainerEntry,
    descriptors: Option<&ContainerDescriptors>,
    count: usize,
) -> ContainerEntry {
    entry.descriptors = u32::try_from(count).unwrap_or(u32::MAX);
    if let Some(descriptors) = descriptors {
        let shape = descriptors.shape();
        entry.tty = shape.tty;
        entry.has_stdin = shape.has_stdin;
        entry.has_log_state = shape.has_log_state;
        entry.has_mounts = shape.has_mounts;
    }
    entry
}

fn reference(container_id: &str) -> ContainerRef {
    ContainerRef {
        container_id: container_id.to_owned(),
    }
}

pub(crate) fn unexpected(call: &str) -> Error {
    Error::protocol(format!("an answer to {call} of another kind"))
}

pub(crate) fn name_of(body: &request::Body) -> &'static str {
    match body {
        request::Body::Hello(_) => "Hello",
        request::Body::Init(_) => "Init",
        request::Body::CreateSandbox(_) => "CreateSandbox",
        request::Body::CreateContainer(_) => "CreateContainer",
        request::Body::StartContainer(_) => "StartContainer",
        request::Body::Signal(_) => "Signal",
        request::Body::ExecSync(_) => "ExecSync",
        request::Body::ReopenLog(_) => "ReopenLog",
        request::Body::RemoveContainer(_) => "RemoveContainer",
        request::Body::StopSandbox(_) => "StopSandbox",
        request::Body::ForgetExit(_) => "ForgetExit",
        request::Body::Inventory(_) => "Inventory",
        request::Body::Reexec(_) => "Reexec",
        request::Body::Adopt(_) => "Adopt",
        request::Body::Shutdown(_) => "Shutdown",
        request::Body::ExecStream(_) => "ExecStream",
        request::Body::Attach(_) => "Attach",
        request::Body::PodSockets(_) => "PodSockets",
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
