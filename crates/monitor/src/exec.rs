//! Execs: one process in a running container, its end awaited. With ExecSync its output is collected here; with ExecStream
//! (see `stream`) its streams are the daemon's.
//!
//! ExecSync's answer goes out when the process has ended and its pipes were drained once: a grandchild that still holds them
//! does not matter. At the time-out the exec's leaf cgroup is killed; without one, the process and what descends from
//! it. Output is in a memfd as soon as it is more than a few KiB.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_launcher::{Barrier, Built, CgroupRef, ExecPlan, Stdio, kill_tree};
use holdfast_monitor_api::message::{ExecFinished, ExecSync, Failure, FailureKind, reply};
use holdfast_sys::pidfd::{self, Ended};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup;
use crate::containers::{check_id, nonblocking};
use crate::error::{failed, failure, kind_of};
use crate::monitor::{Asker, BUILD_LIMIT, Goal, Monitor, Purpose};
use crate::output::{Output, Progress};
use crate::poller::Token;

/// Execs at once in one pod.
const EXECS: usize = 256;
/// Most output that is kept, whatever the request says: one answer of the daemon is a gRPC message of 16 MiB.
pub(crate) const OUTPUT_LIMIT: u64 = 16 * 1024 * 1024;
/// Read at once.
const READ: usize = 64 * 1024;
/// What is drained at most after the end: a pipe's content.
const DRAIN: usize = 1024 * 1024;
/// Reads from one pipe before other events get their turn.
const READS_PER_ROUND: usize = 16;
/// How long killed processes get before the answer goes out without them.
const DIE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Exec {
    pub key: u32,
    pub asker: Asker,
    pub container_id: String,
    pub cgroup: CgroupRef,
    /// Empty: none.
    pub leaf: String,
    /// 0 until built.
    pub pid: i32,
    pub pidfd: Option<OwnedFd>,
    pub barrier: Option<Barrier>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub out: Output,
    pub err: Output,
    pub limit: u64,
    pub times_out: Option<Instant>,
    pub timed_out: bool,
    /// After the kill: when to stop waiting.
    pub dies_by: Option<Instant>,
    /// Why execve failed; the process ends by itself.
    pub failure: Option<Failure>,
    /// Its streams are the daemon's.
    pub streaming: Option<Streaming>,
}

/// What is particular to a streaming exec.
#[derive(Debug, Default)]
pub(crate) struct Streaming {
    /// Until the daemon has it.
    pub terminal: Option<OwnedFd>,
    /// The daemon knows that it has started.
    pub told: bool,
}

/// What both kinds of request say.
pub(crate) struct Wanted<'a> {
    pub container_id: &'a str,
    pub exec_id: &'a str,
    pub process: &'a [u8],
    pub seccomp: &'a [u8],
    pub clamp_privileges: bool,
}

impl Exec {
    pub fn deadline(&self) -> Option<Instant> {
        self.dies_by.or(self.times_out)
    }
}

impl Monitor {
    pub(crate) fn exec_sync(&mut self, asker: Asker, request: &ExecSync) -> Result<(), Failure> {
        let pipes = pipe_with(PipeFlags::CLOEXEC)
            .and_then(|out| Ok((out, pipe_with(PipeFlags::CLOEXEC)?)))
            .map_err(|errno| failed("cannot make an exec's pipes", &errno.into()))?;
        let ((stdout, out), (stderr, err)) = pipes;
        let stdio = Stdio::Pipes {
            stdin: None,
            stdout: Some(out),
            stderr: Some(err),
        };
        let wanted = Wanted {
            container_id: &request.container_id,
            exec_id: &request.exec_id,
            process: &request.process,
            seccomp: &request.seccomp,
            clamp_privileges: request.clamp_privileges,
        };
        let exec = self.launch(asker, &wanted, stdio)?;
        let key = exec.key;
        nonblocking(&stdout)
            .and_then(|()| nonblocking(&stderr))
            .and_then(|()| self.poller.watch(&stdout, Token::ExecOutput(key)))
            .and_then(|()| self.poller.watch(&stderr, Token::ExecOutput(key)))
            .map_err(|error| failed("cannot watch an exec", &error))?;
        let timeout = Some(request.timeout_ms).filter(|timeout| *timeout > 0);
        self.execs.push(Exec {
            stdout: Some(stdout),
            stderr: Some(stderr),
            limit: request.output_limit.min(OUTPUT_LIMIT),
            times_out: timeout.and_then(|timeout| Instant::now().checked_add(Duration::from_millis(timeout))),
            ..exec
        });
        Ok(())
    }

    /// Sets a builder to work on a process with these streams.
    pub(crate) fn launch(
        &mut self,
        asker: Asker,
        wanted: &Wanted<'_>,
        stdio: Stdio,
    ) -> Result<Exec, Failure> {
        check_id(wanted.exec_id)?;
        if self.execs.len() >= EXECS {
            return Err(failure(
                FailureKind::Exhausted,
                format!("{EXECS} execs are running already"),
            ));
        }
        let hierarchy = self.hierarchy()?;
        let container = self.known(wanted.container_id)?;
        let held = container.running()?;
        let handler = container.handler();
        let whole = container.manages_cgroup || container.cgroup.path.is_empty() || !handler.has_leaves();
        let leaf = match whole {
            true => String::new(),
            false => format!("exec-{}", wanted.exec_id),
        };
        let plan = ExecPlan {
            hierarchy: &hierarchy,
            container_id: &container.id,
            name: &container.name,
            process: wanted.process,
            seccomp: wanted.seccomp,
            init_pid: container.pid,
            init: held.pidfd.as_fd(),
            cgroup: container.cgroup.clone(),
            leaf: &leaf,
            stdio,
            clamp_privileges: wanted.clamp_privileges,
        };
        let building = handler
            .exec(plan)
            .map_err(|error| crate::error::launcher(&error))?;
        let (container_id, cgroup) = (container.id.clone(), container.cgroup.clone());
        let key = self.key();
        self.add_build(Goal::Exec(key), building, BUILD_LIMIT)
            .map_err(|error| failed("cannot watch an exec", &error))?;
        Ok(Exec {
            key,
            asker,
            container_id,
            cgroup,
            leaf,
            pid: 0,
            pidfd: None,
            barrier: None,
            stdout: None,
            stderr: None,
            out: Output::default(),
            err: Output::default(),
            limit: 0,
            times_out: None,
            timed_out: false,
            dies_by: None,
            failure: None,
            streaming: None,
        })
    }

    pub(crate) fn exec(&mut self, key: u32) -> Option<&mut Exec> {
        self.execs.iter_mut().find(|exec| exec.key == key)
    }

    pub(crate) fn exec_built(&mut self, key: u32, built: Built) {
        let early = self.early.take(built.pid, built.pidfd.as_fd());
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.key == key) else {
            // Timed out meanwhile: without its barrier the process ends by itself.
            return;
        };
        exec.pid = built.pid;
        exec.pidfd = Some(built.pidfd);
        exec.barrier = built.barrier;
        if let Some(streaming) = &mut exec.streaming {
            streaming.terminal = built.pty_master;
        }
        if let Some(barrier) = &exec.barrier {
            let released = barrier.release().map_err(|error| crate::error::launcher(&error));
            let watched = self.poller.watch(barrier.status_fd(), Token::ExecBarrier(key));
            exec.failure = released.err();
            if let Err(error) = watched {
                exec.failure = Some(failed("cannot watch an exec", &error));
            }
        } else {
            // An external runtime answers when the program runs.
            self.tell_started(key);
        }
        if let Some(ended) = early {
            self.exec_ended(key, ended);
        }
    }

    pub(crate) fn exec_barrier_ready(&mut self, key: u32) {
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.key == key) else {
            return;
        };
        let Some(outcome) = exec.barrier.as_ref().and_then(Barrier::outcome) else {
            return;
        };
        if let Some(barrier) = exec.barrier.take() {
            self.poller.forget(barrier.status_fd());
        }
        match outcome {
            Ok(()) => self.tell_started(key),
            Err(why) => {
                exec.failure = Some(Failure {
                    kind: kind_of(why.kind).into(),
                    message: why.message,
                    errno: why.errno,
                });
            }
        }
    }

    pub(crate) fn exec_output_ready(&mut self, key: u32) {
        let mut scratch = vec![0; READ];
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.key == key) else {
            return;
        };
        for stderr in [false, true] {
            for _ in 0..READS_PER_ROUND {
                match exec.read(stderr, &mut scratch) {
                    Progress::Some(_) => {}
                    Progress::Empty => break,
                    Progress::Ended => {
                        if let Some(fd) = exec.stream(stderr).take() {
                            self.poller.forget(fd);
                        }
                        break;
                    }
                }
            }
        }
    }

    pub(crate) fn exec_failed(&mut self, key: u32, failure: Failure) {
        if let Some(exec) = self.take_exec(key) {
            self.answer(exec.asker, reply::Body::Error(failure));
            self.remove_leaf(&exec);
        }
    }

    pub(crate) fn exec_ended(&mut self, key: u32, ended: Ended) {
        self.exec_barrier_ready(key);
        // Another may hold its end of the barrier for a moment longer; a start is told before an end in any case.
        self.tell_started(key);
        let mut scratch = vec![0; READ];
        if let Some(exec) = self.exec(key) {
            for stderr in [false, true] {
                let mut drained = 0;
                while let Progress::Some(read) = exec.read(stderr, &mut scratch) {
                    drained += read;
                    if drained >= DRAIN {
                        break;
                    }
                }
            }
        }
        self.finish_exec(key, ended.code());
    }

    fn finish_exec(&mut self, key: u32, exit_code: i32) {
        let Some(mut exec) = self.take_exec(key) else {
            return;
        };
        if let Some(failure) = exec.failure.take() {
            self.answer(exec.asker, reply::Body::Error(failure));
            return self.remove_leaf(&exec);
        }
        let discarded = exec.out.discarded + exec.err.discarded;
        let (out, err) = (std::mem::take(&mut exec.out), std::mem::take(&mut exec.err));
        match out.finish().and_then(|out| Ok((out, err.finish()?))) {
            Err(error) => {
                let failure = failed("cannot hand over an exec's output", &error);
                self.answer(exec.asker, reply::Body::Error(failure));
            }
            Ok(((stdout, out), (stderr, err))) => {
                let fds: Vec<BorrowedFd<'_>> = [&out, &err].into_iter().flatten().map(AsFd::as_fd).collect();
                let finished = ExecFinished {
                    exit_code,
                    timed_out: exec.timed_out,
                    stdout,
                    stderr,
                    discarded,
                    stdout_in_descriptor: out.is_some(),
                    stderr_in_descriptor: err.is_some(),
                };
                self.answer_with(exec.asker, reply::Body::ExecFinished(finished), &fds);
            }
        }
        self.remove_leaf(&exec);
    }

    /// Takes an exec off the list and everything of it off the poller.
    fn take_exec(&mut self, key: u32) -> Option<Exec> {
        let index = self.execs.iter().position(|exec| exec.key == key)?;
        let exec = self.execs.swap_remove(index);
        for fd in [&exec.stdout, &exec.stderr].into_iter().flatten() {
            self.poller.forget(fd);
        }
        if let Some(barrier) = &exec.barrier {
            self.poller.forget(barrier.status_fd());
        }
        Some(exec)
    }

    fn remove_leaf(&mut self, exec: &Exec) {
        if !exec.leaf.is_empty() {
            let (cgroup, leaf) = (exec.cgroup.clone(), exec.leaf.clone());
            self.start_cgroup_job(Purpose::Exec, move |all| cgroup::remove_leaf(all, &cgroup, &leaf));
        }
    }

    pub(crate) fn execs_on_time(&mut self, now: Instant) {
        let due: Vec<_> = self
            .execs
            .iter()
            .filter(|exec| exec.deadline().is_some_and(|at| at <= now))
            .map(|exec| exec.key)
            .collect();
        for key in due {
            self.exec_due(key, now);
        }
    }

    /// The time-out, or the end of patience with what was killed.
    fn exec_due(&mut self, key: u32, now: Instant) {
        let Some(exec) = self.exec(key) else {
            return;
        };
        exec.timed_out = true;
        let code = Ended::Signaled(libc::SIGKILL).code();
        if exec.dies_by.is_some() {
            return self.finish_exec(key, code);
        }
        if exec.pid == 0 {
            // Not even built: nothing has run, and nothing will.
            let build = self
                .builds
                .iter()
                .position(|build| matches!(build.goal, Goal::Exec(k) if k == key));
            if let Some(index) = build {
                self.drop_build(index);
            }
            return self.finish_exec(key, code);
        }
        exec.dies_by = Some(now + DIE);
        if let Some(pidfd) = &exec.pidfd {
            if exec.leaf.is_empty() {
                let pid = exec.pid;
                return self.start_job(Purpose::Exec, move || Ok(kill_tree(pid) as u64));
            }
            let _ = pidfd::signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let (cgroup, leaf, pid) = (exec.cgroup.clone(), exec.leaf.clone(), exec.pid);
        self.start_cgroup_job(Purpose::Exec, move |all| {
            cgroup::kill_leaf(all, &cgroup, &leaf).or_else(|_| Ok(kill_tree(pid) as u64))
        });
    }
}

impl Exec {
    fn stream(&mut self, stderr: bool) -> &mut Option<OwnedFd> {
        match stderr {
            false => &mut self.stdout,
            true => &mut self.stderr,
        }
    }

    fn read(&mut self, stderr: bool, scratch: &mut [u8]) -> Progress {
        let room = self.limit - (self.out.size() + self.err.size()).min(self.limit);
        let (fd, output) = match stderr {
            false => (&self.stdout, &mut self.out),
            true => (&self.stderr, &mut self.err),
        };
        match fd {
            Some(fd) => output.read(fd.as_fd(), room, scratch),
            None => Progress::Empty,
        }
    }
}
