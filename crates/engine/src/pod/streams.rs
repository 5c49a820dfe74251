//! Exec, attach and sockets: what the owner hands out, and to whom.
//!
//! Bytes go between the caller and the container's processes over descriptors that are made here or kept in the vault;
//! the monitor only starts what is at their other end.

use std::io;
use std::os::fd::OwnedFd;

use holdfast_model::{ContainerId, SandboxState};
use holdfast_monitor_api::message::{Attach, ExecStream};
use holdfast_monitor_api::{Client, Error as MonitorError, RunningExec, Stdio};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::owner::Pod;
use super::{Command, Done};
use crate::config::bounds;
use crate::shared::new_exec_id;
use crate::waiters::Reply;
use crate::{Ended, Error, StreamRequest, Streams, Wanted, spec};

/// A command that is about to be sent to the monitor, with our ends of its streams.
struct Launch {
    id: ContainerId,
    client: Client,
    exec: ExecStream,
    near: Near,
    /// The process's own ends.
    far: Vec<OwnedFd>,
    permit: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Near {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// An attach that is about to be sent to the monitor.
struct Tapping {
    id: ContainerId,
    client: Client,
    attach: Attach,
    near: Near,
    far: Vec<OwnedFd>,
    terminal: Option<OwnedFd>,
    ended: oneshot::Receiver<i32>,
}

impl Pod {
    pub(super) fn on_stream_command(&mut self, command: Command) {
        match command {
            Command::StreamExec { id, request, reply } => match self.stream_exec(id, &request) {
                Ok(launch) => drop(self.work.spawn(async move {
                    let _ = reply.send(launch.run().await);
                    Done::Nothing
                })),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Attach { id, wanted, reply } => match self.attach(id, wanted) {
                Ok(tapping) => drop(self.work.spawn(tapping.run(reply))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Sockets { reply } => match self.ready() {
                Ok(client) => {
                    let id = self.id();
                    self.work.spawn(async move {
                        let made = client.pod_sockets().await;
                        let _ = reply.send(made.map_err(Error::monitor("making sockets in pod", id)));
                        Done::Nothing
                    });
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            other => other.refuse(self.no_monitor()),
        }
    }

    /// The monitor of a pod that is ready.
    fn ready(&self) -> Result<Client, Error> {
        if self.record.state != SandboxState::Ready {
            return Err(Error::State {
                what: "pod",
                id: self.id().to_string(),
                state: self.record.state.name(),
                wanted: "it must be ready",
            });
        }
        self.client().ok_or_else(|| self.no_monitor())
    }

    fn stream_exec(&mut self, id: ContainerId, request: &StreamRequest) -> Result<Launch, Error> {
        let permit = self.exec_permit()?;
        let clamp_privileges = self.context.shared.config.clamp_privileges;
        let (container, client) = self.running(id)?;
        let template = container.template()?;
        let process = spec::exec_process(&template.spec, &request.command, request.tty, request.size)?;
        let Wanted {
            stdin,
            stdout,
            stderr,
        } = request.streams;
        let exec = ExecStream {
            container_id: id.to_string(),
            exec_id: new_exec_id()?,
            process: serde_json::to_vec(&process).map_err(|e| Error::Internal {
                what: format!("the exec in {id} cannot be written: {e}"),
            })?,
            seccomp: template.seccomp.clone(),
            clamp_privileges,
            tty: request.tty,
            stdin,
            stdout,
            stderr,
        };
        let (near, far) = match request.tty {
            true => Ok((Near::default(), Vec::new())),
            false => pipes(request.streams),
        }
        .map_err(no_pipes(id))?;
        Ok(Launch {
            id,
            client,
            exec,
            near,
            far,
            permit,
        })
    }

    fn attach(&mut self, id: ContainerId, wanted: Wanted) -> Result<Tapping, Error> {
        let pod = self.id();
        let busy = |reason| Error::Busy {
            id: pod.to_string(),
            reason,
        };
        let (container, client) = self.running(id)?;
        container.attached.retain(|waiting| !waiting.is_closed());
        if container.attached.len() >= bounds::ATTACHED {
            return Err(busy("too many clients are attached to one of its containers"));
        }
        let once = container.record.spec.stdin_once;
        let writes = wanted.stdin && container.record.spec.stdin;
        let vault = container.vault.as_mut();
        let vault = vault.ok_or_else(|| busy("its monitor is being replaced"))?;
        let tty = matches!(vault.stdio, Stdio::Tty { .. });
        let outputs = Wanted {
            stdin: false,
            stderr: wanted.stderr && !tty,
            ..wanted
        };
        let (mut near, far) = taps(outputs).map_err(no_pipes(id))?;
        let (mut terminal, mut release_stdin) = (None, false);
        match &mut vault.stdio {
            Stdio::Tty { master } => {
                terminal = Some(nonblocking(master).map_err(no_pipes(id))?);
                if writes {
                    near.stdin = Some(nonblocking(master).map_err(no_pipes(id))?);
                }
            }
            Stdio::Pipes { stdin, .. } if writes && once => {
                // The first one takes it with him; who comes later finds it closed.
                near.stdin = stdin.take();
                release_stdin = near.stdin.is_some();
            }
            Stdio::Pipes { stdin, .. } => {
                let held = stdin.as_ref().filter(|_| writes);
                near.stdin = held.map(nonblocking).transpose().map_err(no_pipes(id))?;
            }
        }
        let (tell, ended) = oneshot::channel();
        container.attached.push(tell);
        Ok(Tapping {
            id,
            client,
            attach: Attach {
                container_id: id.to_string(),
                stdout: outputs.stdout,
                stderr: outputs.stderr,
                release_stdin,
            },
            near,
            far,
            terminal,
            ended,
        })
    }

    /// An attach that was to take stdin with it has failed.
    pub(super) fn stdin_back(&mut self, id: ContainerId, fd: OwnedFd) {
        let vault = self
            .containers
            .get_mut(&id)
            .and_then(|container| container.vault.as_mut());
        if let Some(Stdio::Pipes { stdin, .. }) = vault.map(|vault| &mut vault.stdio) {
            stdin.get_or_insert(fd);
        }
    }

    /// The monitor that served those who are attached is dead, and its pipes with it.
    pub(super) fn cut_off_attached(&mut self) {
        for container in self.containers.values_mut() {
            container.attached.clear();
        }
    }
}

impl Launch {
    async fn run(self) -> Result<Streams, Error> {
        let (id, tty) = (self.id, self.exec.tty);
        let wanted = (self.exec.stdin, self.exec.stdout);
        let mut running = self
            .client
            .exec_stream(self.exec, self.far)
            .await
            .map_err(Error::monitor("starting a command in container", id))?;
        let mut near = self.near;
        let terminal = running.terminal.take();
        if let Some(master) = &terminal {
            let end = |wanted: bool| {
                wanted
                    .then(|| nonblocking(master))
                    .transpose()
                    .map_err(no_pipes(id))
            };
            (near.stdin, near.stdout) = (end(wanted.0)?, end(wanted.1)?);
        } else if tty {
            return Err(Error::Internal {
                what: format!("the monitor gave no terminal for a command in {id}"),
            });
        }
        Ok(Streams {
            stdin: near.stdin,
            stdout: near.stdout,
            stderr: near.stderr,
            terminal,
            ended: exec_ended(id, running, self.permit),
        })
    }
}

fn exec_ended(id: ContainerId, running: RunningExec, permit: OwnedSemaphorePermit) -> Ended {
    Box::pin(async move {
        let _permit = permit;
        match running.finished().await {
            Ok(finished) => Ok(finished.exit_code),
            Err(MonitorError::Gone) => Err(Error::CutOff {
                what: "a command in container",
                id: id.to_string(),
            }),
            Err(error) => Err(Error::monitor("running a command in container", id)(error)),
        }
    })
}

impl Tapping {
    async fn run(self, reply: Reply<Streams>) -> Done {
        let id = self.id;
        let once = self.attach.release_stdin;
        if let Err(error) = self.client.attach(self.attach, self.far).await {
            let _ = reply.send(Err(Error::monitor("attaching to container", id)(error)));
            return match self.near.stdin.filter(|_| once) {
                Some(stdin) => Done::StdinBack(id, stdin),
                None => Done::Nothing,
            };
        }
        let ended = self.ended;
        let _ = reply.send(Ok(Streams {
            stdin: self.near.stdin,
            stdout: self.near.stdout,
            stderr: self.near.stderr,
            terminal: self.terminal,
            ended: Box::pin(async move {
                ended.await.map_err(|_| Error::CutOff {
                    what: "the attachment to container",
                    id: id.to_string(),
                })
            }),
        }));
        Done::Nothing
    }
}

/// Pipes for a process: our ends, which do not block, and its ends, which do.
fn pipes(wanted: Wanted) -> io::Result<(Near, Vec<OwnedFd>)> {
    let (mut near, mut far) = (Near::default(), Vec::new());
    if wanted.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        near.stdin = Some(write);
        far.push(read);
    }
    for (wanted, end) in [
        (wanted.stdout, &mut near.stdout),
        (wanted.stderr, &mut near.stderr),
    ] {
        if wanted {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            *end = Some(read);
            far.push(write);
        }
    }
    Ok((near, far))
}

/// Pipes for copies of a container's output: nobody blocks on them.
fn taps(wanted: Wanted) -> io::Result<(Near, Vec<OwnedFd>)> {
    let (near, far) = pipes(wanted)?;
    for write in &far {
        rustix::io::ioctl_fionbio(write, true)?;
        let _ = fcntl_setpipe_size(write, bounds::ATTACH_PIPE);
    }
    Ok((near, far))
}

/// A duplicate that does not block, nor does the original any more: the two are one open file.
fn nonblocking(fd: &OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(fd, true)?;
    fd.try_clone()
}

fn no_pipes(id: ContainerId) -> impl Fn(io::Error) -> Error {
    move |error| Error::Internal {
        what: format!("no streams can be made for container {id}: {error}"),
    }
}
