//! Ends: reaping, the OOM fact, exit records, and the events that follow them.
//!
//! A record is in `<state_dir>/exits/<id>` before anybody is told, and stays until the daemon says that it has its own.
//! What is not known is recorded as unknown, never guessed.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_monitor_api::message::{Exit, FailureKind, Phase, event};
use holdfast_sys::pidfd::{self, Ended};
use nix::sys::signalfd::siginfo;
use prost::Message;

use crate::cgroup;
use crate::clock;
use crate::error::failure;
use crate::job::Outcome;
use crate::monitor::{Monitor, Purpose};
use crate::pump::Streams;
use crate::sandbox::PAUSE;

/// How long an exit event waits for the container's last output to reach the log. Whoever reads the log because of the
/// event finds it whole, unless the disk hangs.
const DRAIN_WAIT: Duration = Duration::from_millis(500);
/// How often and how long an adopted process's exit code is asked for: the kernel has it once its new parent reaps it.
const ASK_EVERY: Duration = Duration::from_millis(50);
const ASK_FOR: Duration = Duration::from_secs(4);
/// Ends of children that are not yet known by pid.
const EARLY: usize = 256;
const EXITS: &str = "exits";

/// Children that ended before their builder's report was read.
#[derive(Debug, Default)]
pub(crate) struct Early(VecDeque<(i32, Ended)>);

impl Early {
    fn add(&mut self, pid: i32, ended: Ended) {
        if self.0.len() >= EARLY {
            self.0.pop_front();
        }
        self.0.push_back((pid, ended));
    }

    /// The end of this process, if it has been reaped. What is known of its number alone may be of one that had it
    /// before: then this one is still there, if only as a zombie, and can be signalled.
    pub fn take(&mut self, pid: i32, pidfd: BorrowedFd<'_>) -> Option<Ended> {
        let newest = self.0.iter().rfind(|(early, _)| *early == pid)?.1;
        self.0.retain(|(early, _)| *early != pid);
        let signalled = pidfd::signal(pidfd, 0);
        let reaped = signalled.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH));
        reaped.then_some(newest)
    }

    /// With no builder at work nobody will ask, and pids are used again.
    pub fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}

impl Monitor {
    pub(crate) fn take_signals(&mut self) {
        let mut child = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            child |= is_child(&info);
            // SIGTERM and the like: a monitor leaves when its pod has, not when somebody tidies up processes.
        }
        if child {
            self.reap();
        }
    }

    pub(crate) fn reap(&mut self) {
        while let Ok(Some(reaped)) = pidfd::reap_any() {
            self.child_ended(reaped.pid, reaped.ended);
        }
    }

    fn child_ended(&mut self, pid: i32, ended: Ended) {
        if let Some(container) = self
            .containers
            .iter()
            .find(|c| c.pid == pid && c.ours && c.ended.is_none())
        {
            let key = container.key;
            return self.container_ended(key, Some(ended));
        }
        if self
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.pause_pid == pid && sandbox.ours)
        {
            return self.pause_ended(Some(ended));
        }
        if let Some(key) = self
            .execs
            .iter()
            .find(|exec| exec.pid == pid)
            .map(|exec| exec.key)
        {
            return self.exec_ended(key, ended);
        }
        let pumps = self
            .containers
            .iter_mut()
            .filter_map(|container| container.log.running.as_mut());
        for pump in pumps.filter(|pump| pump.pid == pid) {
            pump.reaped = true;
        }
        if self.probe_ended(pid, ended) {
            return;
        }
        if !self.builds.is_empty() {
            self.early.add(pid, ended);
        }
    }

    /// Init is dead; `None`: nobody saw how.
    pub(crate) fn container_ended(&mut self, key: u32, ended: Option<Ended>) {
        // If a start still waits, its answer comes first.
        self.barrier_over(key);
        let Some(container) = self.container(key) else {
            return;
        };
        if container.ended.is_some() {
            return;
        }
        if container.starting.is_some() {
            container.held_end = Some(ended);
            return;
        }
        if container.creating.is_some() {
            let text = format!(
                "the init of container {} was killed before it was complete",
                container.id
            );
            return self.create_failed(key, failure(FailureKind::Internal, text));
        }
        container.ended = Some((ended, clock::now()));
        container.retry = None;
        let kill_rest = !container.own_pid_namespace;
        let killed = ended == Some(Ended::Signaled(libc::SIGKILL)) && !container.killed_by_us;
        let cgroup = container.cgroup.clone();
        // One that is being removed we killed ourselves, with all its processes.
        let settle = (kill_rest || killed) && container.removing.is_empty();
        if settle && !cgroup.path.is_empty() {
            let purpose = Purpose::Settle { container: key };
            let before = container.slice_kills;
            self.start_cgroup_job(purpose, move |all| {
                cgroup::settle(all, &cgroup, kill_rest, before)
            });
        } else {
            self.settled(key, Ok(0));
        }
    }

    /// Everything about the end is known: record it, tell it.
    pub(crate) fn settled(&mut self, key: u32, outcome: Outcome) {
        let Some(container) = self.container(key) else {
            return;
        };
        let Some((ended, finished_at)) = container.ended else {
            return;
        };
        let oom_kills = outcome.unwrap_or_else(|failure| {
            eprintln!(
                "holdfast-monitor: container {}: {}",
                container.id, failure.message
            );
            0
        });
        let oom = oom_kills > 0 && !container.killed_by_us;
        let exit = exit(&container.id, ended, oom, finished_at);
        container.exit = Some(exit.clone());
        container.phase = Phase::Exited;
        container.event_due = Some(Instant::now() + DRAIN_WAIT);
        let gone = container.gone_by.is_some();
        self.record(&exit);
        self.delete_traces(key);
        if gone {
            return self.finish_removal(key, &Ok(()));
        }
        self.finish_log(key);
    }

    /// Has what the pipes still hold written; the event follows.
    pub(crate) fn finish_log(&mut self, key: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return;
        };
        let streams = container
            .descriptors
            .as_ref()
            .and_then(|descriptors| Streams::of(descriptors, &container.log_path));
        match streams {
            Some(streams) => container.log.finish(&self.poller, streams),
            None => container.log.drained = true,
        }
        if container.log.drained {
            self.log_drained(key);
        } else {
            self.watch_pump(key);
        }
    }

    /// Sends the exit event, once.
    pub(crate) fn send_exit(&mut self, key: u32) {
        let Some(container) = self.container(key) else {
            return;
        };
        let due = container.event_due.take();
        if let (Some(_), Some(exit)) = (due, container.exit.clone()) {
            self.event(event::Body::Exited(exit));
        }
    }

    pub(crate) fn pause_ended(&mut self, ended: Option<Ended>) {
        let Some(sandbox) = &mut self.sandbox else {
            return;
        };
        if sandbox.exit.is_some() {
            return;
        }
        let exit = exit(PAUSE, ended, false, clock::now());
        sandbox.exit = Some(exit.clone());
        (sandbox.retry_at, sandbox.retry_until) = (None, None);
        self.record(&exit);
        self.event(event::Body::PauseExited(exit));
        self.clean_sandbox();
    }

    /// The pidfd of an adopted container says that it is dead.
    pub(crate) fn adopted_ended(&mut self, key: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return;
        };
        if container.ended.is_some() {
            return;
        }
        let Some(descriptors) = &container.descriptors else {
            return;
        };
        let pidfd = descriptors.pidfd.as_fd();
        match ask(pidfd, &mut container.retry) {
            Answer::Ended(ended) => {
                self.poller.forget(pidfd);
                self.container_ended(key, ended);
            }
            // It stays readable; the next look is on time.
            Answer::Later => self.poller.forget(pidfd),
        }
    }

    pub(crate) fn adopted_pause_ended(&mut self) {
        let Some(sandbox) = &mut self.sandbox else {
            return;
        };
        let Some(descriptors) = &sandbox.descriptors else {
            sandbox.retry_at = None;
            return;
        };
        let mut retry = sandbox.retry_at.zip(sandbox.retry_until);
        self.poller.forget(&descriptors.pidfd);
        let answer = ask(descriptors.pidfd.as_fd(), &mut retry);
        (sandbox.retry_at, sandbox.retry_until) = retry.unzip();
        if let Answer::Ended(ended) = answer {
            self.pause_ended(ended);
        }
    }

    fn record(&self, exit: &Exit) {
        let Some(init) = &self.init else {
            return;
        };
        if let Err(error) = write(Path::new(&init.state_dir), exit) {
            eprintln!(
                "holdfast-monitor: cannot record the exit of {}: {error}",
                exit.container_id
            );
        }
    }

    pub(crate) fn forget_exit(&self, id: &str) {
        if let Some(init) = &self.init {
            let _ = fs::remove_file(place(Path::new(&init.state_dir), id));
        }
    }
}

enum Answer {
    Ended(Option<Ended>),
    Later,
}

/// Asks how a dead process that is not our child ended. Since Linux 6.15 the kernel tells, once it has been reaped;
/// before, it never does.
fn ask(pidfd: BorrowedFd<'_>, retry: &mut Option<(Instant, Instant)>) -> Answer {
    if let Ok(Some(ended)) = pidfd::exit_status(pidfd) {
        return Answer::Ended(Some(ended));
    }
    let now = Instant::now();
    let until = retry.map_or(now + ASK_FOR, |(_, until)| until);
    if now >= until || !kernel_tells() {
        return Answer::Ended(None);
    }
    *retry = Some((now + ASK_EVERY, until));
    Answer::Later
}

fn kernel_tells() -> bool {
    let uname = rustix::system::uname();
    release_at_least(&uname.release().to_string_lossy(), (6, 15))
}

fn release_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

fn exit(id: &str, ended: Option<Ended>, oom: bool, finished_at: i64) -> Exit {
    let signal = match ended {
        Some(Ended::Signaled(signal)) => signal,
        _ => 0,
    };
    Exit {
        container_id: id.to_owned(),
        exit_code: ended.map_or(0, Ended::code),
        signal,
        // A rise alone may be a child of init that the kernel chose.
        oom_killed: oom && signal == libc::SIGKILL,
        finished_at,
        unknown: ended.is_none(),
    }
}

fn is_child(info: &siginfo) -> bool {
    info.ssi_signo == libc::SIGCHLD.unsigned_abs()
}

pub(crate) fn prepare(state_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(state_dir.join(EXITS))
}

fn place(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(EXITS).join(id)
}

fn write(state_dir: &Path, exit: &Exit) -> io::Result<()> {
    let path = place(state_dir, &exit.container_id);
    // A leading dot: no id has one, so a reader of the directory can tell.
    let beside = place(state_dir, &format!(".{}", exit.container_id));
    fs::write(&beside, exit.encode_to_vec())?;
    fs::rename(&beside, &path)
}

/// The record that an earlier monitor of this pod has left.
pub(crate) fn read(state_dir: &Path, id: &str) -> Option<Exit> {
    let bytes = fs::read(place(state_dir, id)).ok()?;
    Exit::decode(bytes.as_slice())
        .ok()
        .filter(|exit| exit.container_id == id)
}

#[cfg(test)]
mod tests {
    use holdfast_sys::clone;

    use super::*;

    #[test]
    fn oom_needs_both_the_signal_and_the_count() {
        for (ended, kills, expected) in [
            (Some(Ended::Signaled(9)), true, true),
            (Some(Ended::Signaled(9)), false, false),
            (Some(Ended::Signaled(15)), true, false),
            (Some(Ended::Exited(137)), true, false),
            (None, true, false),
        ] {
            assert_eq!(
                exit("x", ended, kills, 0).oom_killed,
                expected,
                "{ended:?} {kills}"
            );
        }
        let killed = exit("x", Some(Ended::Signaled(9)), false, 3);
        assert_eq!((killed.exit_code, killed.signal, killed.finished_at), (137, 9, 3));
        assert!(exit("x", None, false, 0).unknown);
    }

    #[test]
    fn records_are_read_back_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path()).unwrap();
        assert_eq!(read(dir.path(), "a"), None);
        let record = exit("a", Some(Ended::Exited(7)), false, 1);
        write(dir.path(), &record).unwrap();
        assert_eq!(read(dir.path(), "a"), Some(record));
        fs::write(place(dir.path(), "b"), b"\xff\xff").unwrap();
        assert_eq!(read(dir.path(), "b"), None);
    }

    #[test]
    fn releases() {
        for (release, expected) in [
            ("6.15.0", true),
            ("6.18.44-fc-v669", true),
            ("7.0-rc1", true),
            ("6.12.3-amd64", false),
            ("5.20", false),
            ("", false),
        ] {
            assert_eq!(release_at_least(release, (6, 15)), expected, "{release}");
        }
    }

    #[test]
    fn early_ends_are_taken_once_and_bounded() {
        let gone = clone::fork(|| 0).unwrap();
        pidfd::reap(gone.pidfd.as_fd()).unwrap();
        let gone = gone.pidfd.as_fd();
        let mut early = Early::default();
        for pid in 0..1000 {
            early.add(pid, Ended::Exited(pid));
        }
        assert_eq!(early.take(999, gone), Some(Ended::Exited(999)));
        assert_eq!(early.take(999, gone), None);
        assert_eq!(early.take(0, gone), None);
        assert!(early.0.len() <= EARLY);
    }

    /// A helper of the launcher ended while a builder was at work, and the builder's process got its number.
    #[test]
    fn an_early_end_of_another_is_not_believed() {
        let (ours, theirs) = holdfast_sys::scm::pair().unwrap();
        let child = clone::fork(|| {
            let _told = holdfast_sys::scm::recv(theirs.as_fd(), &mut [0]);
            7
        });
        let child = child.unwrap();
        let mut early = Early::default();
        early.add(child.pid, Ended::Exited(1));
        assert_eq!(early.take(child.pid, child.pidfd.as_fd()), None, "it lives");
        holdfast_sys::scm::send(ours.as_fd(), b"x", &[]).unwrap();
        cgroup::wait_for_death(child.pidfd.as_fd());
        early.add(child.pid, Ended::Exited(1));
        assert_eq!(early.take(child.pid, child.pidfd.as_fd()), None, "a zombie");
        let ended = pidfd::reap(child.pidfd.as_fd()).unwrap();
        early.add(child.pid, Ended::Exited(1));
        early.add(child.pid, ended);
        assert_eq!(early.take(child.pid, child.pidfd.as_fd()), Some(Ended::Exited(7)));
    }
}
