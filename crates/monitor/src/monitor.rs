//! The monitor's state and its loop.
//!
//! One thread, one epoll. Nothing in the loop blocks: what could runs in a builder (the launcher's), a pump or a job,
//! each a child that reports over a socket. Everything that waits has a deadline; [`Monitor::next_deadline`] is the
//! least of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_cgroups::Hierarchy;
use holdfast_launcher::Building;
use holdfast_monitor_api::message::{Failure, FailureKind, Init, event, reply};
use holdfast_sys::{heap, process, signals};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Error;
use crate::containers::Container;
use crate::error::failure;
use crate::exec::Exec;
use crate::exits::Early;
use crate::job::{Job, Outcome};
use crate::link::{Link, Listener};
use crate::poller::{Poller, Token};
use crate::reexec::Pending;
use crate::sandbox::Sandbox;

/// Longest that a builder may take before it is given up.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(50);
/// Longest that a job may take.
pub(crate) const JOB_LIMIT: Duration = Duration::from_secs(20);
/// Jobs at once; more is refused.
const JOBS: usize = 256;
/// Requests taken before other events get their turn.
const REQUESTS_PER_ROUND: usize = 16;

/// Who asked, and so who gets the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub generation: u32,
    pub id: u64,
}

/// What a builder builds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    Sandbox(Asker),
    Container(u32),
    Exec(u32),
}

#[derive(Debug)]
pub(crate) struct Build {
    pub key: u32,
    pub goal: Goal,
    pub building: Building,
    pub deadline: Instant,
}

/// Why a job runs.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// Clean up after a sandbox or container that did not come to be, then say so; also to those who wanted it removed.
    Unwind {
        asker: Asker,
        failure: Failure,
        removing: Vec<Asker>,
    },
    /// OOM fact and last processes of a container that has ended.
    Settle {
        container: u32,
    },
    KillAll {
        asker: Asker,
    },
    Remove {
        container: u32,
    },
    /// By way of the container's runtime handler.
    Signal {
        asker: Asker,
    },
    /// What a runtime handler keeps of a container that has ended.
    Delete {
        container: u32,
    },
    StopSandbox,
    /// Execs: nobody waits for the answer.
    Exec,
    /// Port-forward.
    Sockets {
        asker: Asker,
    },
}

pub(crate) struct Monitor {
    pub poller: Poller,
    pub signals: SignalFd,
    pub link: Option<Link>,
    pub generation: u32,
    pub listener: Option<Listener>,
    pub init: Option<Init>,
    /// Builders and jobs inherit its descriptors; `hierarchy()` gives it from `Init` on.
    pub hierarchy: Option<Hierarchy>,
    pub sandbox: Option<Sandbox>,
    pub containers: Vec<Container>,
    pub builds: Vec<Build>,
    pub execs: Vec<Exec>,
    pub jobs: Vec<Job<Purpose>>,
    pub early: Early,
    pub reexec: Option<Pending>,
    /// Why its program is not out of the containers' reach: see `program`.
    pub unprotected: Option<String>,
    pub leaving: bool,
    pub last_key: u32,
}

/// A fresh monitor, with the daemon's socket as descriptor 0. `unprotected` is for its log, once it has one.
pub(crate) fn start(unprotected: Option<String>) -> Result<Monitor, Error> {
    heap::stay_small();
    // Executed by descriptor, it would have that one's number for a name.
    let _ = rustix::thread::set_name(c"holdfast-monito");
    let socket = process::inherited(0).map_err(Error::setup("take the daemon's socket"))?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let null = null.map_err(|errno| Error::setup("open /dev/null")(errno.into()))?;
    process::set_stdio(null.as_fd(), 0).map_err(Error::setup("let go of descriptor 0"))?;
    drop(null);
    // Whatever else the daemon's process had open is not ours; CLOEXEC is not enough for what it inherited itself.
    process::close_all_but(&mut [socket.as_raw_fd()]).map_err(Error::setup("close descriptors"))?;
    // Fails where the daemon made us a group leader already, which serves as well.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    process::control(process::Control::ChildSubreaper(true)).map_err(Error::setup("become a subreaper"))?;
    signals::default_internal().map_err(Error::setup("reset signals"))?;
    let mut monitor = Monitor::new()?;
    monitor.unprotected = unprotected;
    monitor.connect(socket);
    Ok(monitor)
}

impl Monitor {
    pub fn new() -> Result<Self, Error> {
        let signals = watched_signals().map_err(|errno| Error::setup("watch signals")(errno.into()))?;
        let poller = Poller::new().map_err(Error::setup("make an epoll"))?;
        poller
            .watch(&signals, Token::Signals)
            .map_err(Error::setup("watch signals"))?;
        Ok(Monitor {
            poller,
            signals,
            link: None,
            generation: 0,
            listener: None,
            init: None,
            // While a spare waits for its pod there is time. What fails now is tried again by Init, which can tell why.
            hierarchy: crate::cgroup::detect().ok(),
            sandbox: None,
            containers: Vec::new(),
            builds: Vec::new(),
            execs: Vec::new(),
            jobs: Vec::new(),
            early: Early::default(),
            reexec: None,
            unprotected: None,
            leaving: false,
            last_key: 0,
        })
    }

    pub fn run(mut self) -> Result<(), Error> {
        let mut tokens = Vec::new();
        let mut idle_trimmed = false;
        while !self.leaving {
            let mut timeout = self
                .next_deadline()
                .map(|at| at.saturating_duration_since(Instant::now()));
            if timeout.is_none() && !idle_trimmed {
                timeout = Some(Duration::from_millis(500));
            }
            self.poller
                .wait(timeout, &mut tokens)
                .map_err(Error::setup("wait for events"))?;
            if tokens.is_empty() && self.next_deadline().is_none() {
                // Quiet: what the last requests left in the heap goes back.
                heap::trim();
                idle_trimmed = true;
                continue;
            }
            idle_trimmed = false;
            // Signals last: what a child said before it died is heard before it is buried.
            for token in tokens.iter().filter(|token| **token != Token::Signals) {
                self.dispatch(*token);
            }
            if tokens.contains(&Token::Signals) {
                self.take_signals();
            }
            self.on_time();
            self.tend_link();
            self.try_reexec();
        }
        if let Some(link) = &mut self.link {
            link.settle();
        }
        if let Some(listener) = &self.listener {
            listener.remove();
        }
        Ok(())
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Signals => {}
            Token::Link => self.take_requests(),
            Token::Listener => self.accept(),
            Token::Build(key) => self.build_ready(key),
            Token::Barrier(key) => self.barrier_ready(key),
            Token::Output(key) => self.output_ready(key),
            Token::Pump(key) => self.pump_ready(key),
            Token::Pidfd(key) => self.adopted_ended(key),
            Token::PausePidfd => self.adopted_pause_ended(),
            Token::ExecOutput(key) => self.exec_output_ready(key),
            Token::ExecBarrier(key) => self.exec_barrier_ready(key),
            Token::Job(key) => self.job_ready(key),
            Token::Tap(key) => self.tap_gone(key),
        }
    }

    /// When the loop must act even if nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let builds = self.builds.iter().map(|build| build.deadline);
        let jobs = self.jobs.iter().map(|job| job.deadline);
        let execs = self.execs.iter().filter_map(Exec::deadline);
        let containers = self.containers.iter().filter_map(Container::deadline);
        let reexec = self.reexec.iter().map(|pending| pending.deadline);
        let sandbox = self.sandbox.iter().filter_map(|sandbox| sandbox.retry_at);
        builds
            .chain(jobs)
            .chain(execs)
            .chain(containers)
            .chain(reexec)
            .chain(sandbox)
            .min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.give_up_builds(now);
        self.give_up_jobs(now);
        self.execs_on_time(now);
        self.containers_on_time(now);
        if self
            .sandbox
            .as_ref()
            .and_then(|sandbox| sandbox.retry_at)
            .is_some_and(|at| at <= now)
        {
            self.adopted_pause_ended();
        }
    }

    fn give_up_builds(&mut self, now: Instant) {
        while let Some(index) = self.builds.iter().position(|build| build.deadline <= now) {
            let build = self.drop_build(index);
            let seconds = BUILD_LIMIT.as_secs();
            let text = format!("given up after {seconds} s: a mount or an open hangs");
            self.build_failed(build.goal, failure(FailureKind::Internal, text));
        }
    }

    /// Takes a build off the list and kills its builder, without waiting: it may hang in the kernel.
    pub fn drop_build(&mut self, index: usize) -> Build {
        let build = self.builds.swap_remove(index);
        self.poller.forget(build.building.fd());
        // The builder is our child and reaped only by us: until then the number is its own.
        if let Some(pid) = rustix::process::Pid::from_raw(build.building.builder_pid()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.abandon(build.goal, build.building.builder_pid());
        build
    }

    pub fn add_build(&mut self, goal: Goal, building: Building, limit: Duration) -> io::Result<()> {
        let key = self.key();
        self.poller.watch(building.fd(), Token::Build(key))?;
        self.builds.push(Build {
            key,
            goal,
            building,
            deadline: Instant::now() + limit,
        });
        Ok(())
    }

    fn build_ready(&mut self, key: u32) {
        let Some(index) = self.builds.iter().position(|build| build.key == key) else {
            return;
        };
        let outcome = match self.builds[index].building.poll() {
            Ok(None) => return,
            Ok(Some(built)) => Ok(built),
            Err(error) => Err(crate::error::launcher(&error)),
        };
        let build = self.builds.swap_remove(index);
        self.poller.forget(build.building.fd());
        match outcome {
            Ok(built) => match build.goal {
                Goal::Sandbox(asker) => self.sandbox_built(asker, built),
                Goal::Container(key) => self.container_built(key, built),
                Goal::Exec(key) => self.exec_built(key, built),
            },
            Err(failure) => self.build_failed(build.goal, failure),
        }
        if self.builds.is_empty() {
            self.early.clear();
        }
    }

    fn build_failed(&mut self, goal: Goal, failure: Failure) {
        match goal {
            Goal::Sandbox(asker) => self.sandbox_failed(asker, failure),
            Goal::Container(key) => self.create_failed(key, failure),
            Goal::Exec(key) => self.exec_failed(key, failure),
        }
    }

    /// Runs `work` on a cgroup in a child.
    pub fn start_cgroup_job(&mut self, purpose: Purpose, work: impl FnOnce(&Hierarchy) -> Outcome) {
        match self.hierarchy() {
            Ok(hierarchy) => self.start_job(purpose, move || work(&hierarchy)),
            Err(failure) => self.job_done(purpose, Err(failure), &[]),
        }
    }

    pub fn hierarchy(&self) -> Result<Hierarchy, Failure> {
        let known = self.init.as_ref().and(self.hierarchy.clone());
        known.ok_or_else(|| failure(FailureKind::Precondition, "the monitor has not been told its pod"))
    }

    /// Runs `work` in a child. Where that is not possible, the job has failed at once.
    pub fn start_job(&mut self, purpose: Purpose, work: impl FnOnce() -> Outcome) {
        self.start_socket_job(purpose, || (work(), Vec::new()));
    }

    /// The same for work that makes sockets.
    pub fn start_socket_job(&mut self, purpose: Purpose, work: impl FnOnce() -> (Outcome, Vec<OwnedFd>)) {
        let key = self.key();
        match self.fork_job(key, work) {
            Ok(job) => self.jobs.push(job.with(purpose)),
            Err(error) => {
                let failure = crate::error::failed("cannot start a helper process", &error);
                self.job_done(purpose, Err(failure), &[]);
            }
        }
    }

    fn fork_job(&self, key: u32, work: impl FnOnce() -> (Outcome, Vec<OwnedFd>)) -> io::Result<Job<()>> {
        if self.jobs.len() >= JOBS {
            return Err(io::Error::other("too many helper processes at work"));
        }
        let job = Job::start(key, (), JOB_LIMIT, work)?;
        self.poller.watch(job.fd(), Token::Job(key))?;
        Ok(job)
    }

    fn job_ready(&mut self, key: u32) {
        let Some(index) = self.jobs.iter().position(|job| job.key == key) else {
            return;
        };
        if let Some((outcome, fds)) = self.jobs[index].poll() {
            let job = self.jobs.swap_remove(index);
            self.poller.forget(job.fd());
            self.job_done(job.purpose, outcome, &fds);
        }
    }

    fn give_up_jobs(&mut self, now: Instant) {
        while let Some(index) = self.jobs.iter().position(|job| job.deadline <= now) {
            let job = self.jobs.swap_remove(index);
            self.poller.forget(job.fd());
            job.kill();
            let seconds = JOB_LIMIT.as_secs();
            let text = format!("a helper process of the monitor was given up after {seconds} s");
            self.job_done(job.purpose, Err(failure(FailureKind::Internal, text)), &[]);
        }
    }

    fn job_done(&mut self, purpose: Purpose, outcome: Outcome, fds: &[OwnedFd]) {
        match purpose {
            Purpose::Unwind {
                asker,
                failure,
                removing,
            } => {
                self.answer(asker, reply::Body::Error(failure));
                let outcome = outcome.map(drop);
                for asker in removing {
                    self.answer_done(asker, outcome.clone());
                }
            }
            Purpose::Settle { container } => self.settled(container, outcome),
            Purpose::Delete { container } => self.traces_deleted(container, outcome),
            Purpose::KillAll { asker } | Purpose::Signal { asker } => {
                self.answer_done(asker, outcome.map(drop));
            }
            Purpose::Remove { container } => self.removed(container, outcome),
            Purpose::StopSandbox => self.sandbox_cleaned(outcome),
            Purpose::Exec => {}
            Purpose::Sockets { asker } => self.sockets_made(asker, outcome, fds),
        }
    }

    pub fn key(&mut self) -> u32 {
        self.last_key = self.last_key.wrapping_add(1);
        self.last_key
    }

    /// Makes `socket` the connection with the daemon, in place of any other.
    pub fn connect(&mut self, socket: OwnedFd) {
        if let Some(old) = self.link.take() {
            self.poller.forget(&old);
        }
        self.generation = self.generation.wrapping_add(1);
        match Link::new(socket, self.generation) {
            Ok(link) if self.poller.watch(&link, Token::Link).is_ok() => self.link = Some(link),
            _ => eprintln!("holdfast-monitor: cannot use a new connection"),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match listener.accept() {
            Ok(Some(socket)) => self.connect(socket),
            Ok(None) => {}
            Err(error) => eprintln!("holdfast-monitor: cannot accept a connection: {error}"),
        }
    }

    fn take_requests(&mut self) {
        for _ in 0..REQUESTS_PER_ROUND {
            let Some(link) = &mut self.link else {
                return;
            };
            link.flush();
            match link.receive() {
                Err(error) if holdfast_monitor_api::codec::would_block(&error) => return,
                Err(_) => {
                    link.broken = true;
                    return;
                }
                Ok((envelope, descriptors)) => {
                    let asker = Asker {
                        generation: link.generation,
                        id: envelope.id,
                    };
                    match envelope.request {
                        // No body: a request that only a newer monitor knows.
                        Some(request) => self.request(asker, request.body, descriptors),
                        None => return,
                    }
                }
            }
        }
    }

    /// Forgets a broken connection; asks for room where answers wait.
    fn tend_link(&mut self) {
        let Some(link) = &mut self.link else {
            return;
        };
        if link.waiting() {
            link.flush();
        }
        if link.broken {
            self.poller.forget(&*link);
            self.link = None;
            // The daemon died before `Init`: there is no socket by which another could ever find this monitor.
            self.leaving |= self.listener.is_none();
            return;
        }
        let waiting = link.waiting();
        if waiting != link.wants_output {
            link.wants_output = waiting;
            let _ = self.poller.want_output(&*link, Token::Link, waiting);
        }
    }

    pub fn answer(&mut self, asker: Asker, body: reply::Body) {
        self.answer_with(asker, body, &[]);
    }

    pub fn answer_with(&mut self, asker: Asker, body: reply::Body, fds: &[BorrowedFd<'_>]) {
        let link = self.link.as_mut();
        if let Some(link) = link.filter(|link| link.generation == asker.generation) {
            link.reply(asker.id, body, fds);
        }
    }

    pub fn answer_done(&mut self, asker: Asker, outcome: Result<(), Failure>) {
        self.answer(
            asker,
            match outcome {
                Ok(()) => reply::Body::Done(holdfast_monitor_api::message::Empty {}),
                Err(failure) => reply::Body::Error(failure),
            },
        );
    }

    pub fn event(&mut self, body: event::Body) {
        if let Some(link) = &mut self.link {
            link.event(body);
        }
    }
}

/// Blocks the signals that matter or must not kill us, to be read instead. SIGPIPE is ignored by Rust's start-up.
fn watched_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
    ] {
        set.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
