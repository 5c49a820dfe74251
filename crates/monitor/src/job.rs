//! Work that may hang, in a child that can be given up: cgroup files, unmounts, the check of a new program.
//!
//! The child inherits a copy of the monitor and reports one line over a socket. Killed, crashed or silent: the job has
//! failed, and the loop goes on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_monitor_api::message::{Failure, FailureKind};
use holdfast_sys::{clone, process, scm};
use prost::Message;

use crate::error::failure;

/// What a job ends with: a number whose meaning is the job's own.
pub type Outcome = Result<u64, Failure>;

#[derive(Clone, PartialEq, prost::Message)]
struct Report {
    #[prost(uint64, tag = "1")]
    value: u64,
    #[prost(message, optional, tag = "2")]
    failure: Option<Failure>,
}

/// Longest report.
const REPORT: usize = 8 * 1024;

/// A child at work.
#[derive(Debug)]
pub struct Job<P> {
    pub key: u32,
    pub purpose: P,
    pub pid: i32,
    pidfd: OwnedFd,
    report: OwnedFd,
    pub deadline: Instant,
}

impl<P> Job<P> {
    /// Forks a child that runs `work`; the descriptors that it makes come with its outcome.
    pub fn start(
        key: u32,
        purpose: P,
        limit: Duration,
        work: impl FnOnce() -> (Outcome, Vec<OwnedFd>),
    ) -> io::Result<Self> {
        let (report, theirs) = scm::pair()?;
        let child = clone::fork(|| {
            // The child holds duplicates of all that the monitor has: it must not outlive it.
            let _ = process::control(process::Control::ParentDeathSignal(libc::SIGKILL));
            let (outcome, fds) = work();
            let report = match outcome {
                Ok(value) => Report { value, failure: None },
                Err(failure) => Report {
                    value: 0,
                    failure: Some(failure),
                },
            };
            let mut bytes = report.encode_to_vec();
            if bytes.len() > REPORT {
                bytes = Report {
                    value: 0,
                    failure: Some(failure(FailureKind::Internal, "a job's report is too long")),
                }
                .encode_to_vec();
            }
            // A report of value 0 is empty, and an empty datagram would read as the end.
            bytes.push(0);
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            i32::from(scm::send(theirs.as_fd(), &bytes, &fds).is_err())
        })?;
        Ok(Job {
            key,
            purpose,
            pid: child.pid,
            pidfd: child.pidfd,
            report,
            deadline: Instant::now() + limit,
        })
    }

    /// The same child, for this purpose.
    pub fn with<Q>(self, purpose: Q) -> Job<Q> {
        Job {
            key: self.key,
            purpose,
            pid: self.pid,
            pidfd: self.pidfd,
            report: self.report,
            deadline: self.deadline,
        }
    }

    /// Readable when [`Job::poll`] has an answer.
    pub fn fd(&self) -> &OwnedFd {
        &self.report
    }

    pub fn poll(&self) -> Option<(Outcome, Vec<OwnedFd>)> {
        let mut buffer = [0; REPORT + 1];
        let (length, fds) = match scm::try_recv(self.report.as_fd(), &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => (0, Vec::new()),
            Ok(received) => (received.length, received.fds),
        };
        Some((outcome(&buffer[..length]), fds))
    }

    /// Gives the child up.
    pub fn kill(&self) {
        let _ = holdfast_sys::pidfd::signal(self.pidfd.as_fd(), libc::SIGKILL);
    }
}

fn outcome(report: &[u8]) -> Outcome {
    let Some(length) = report.len().checked_sub(1) else {
        return Err(failure(
            FailureKind::Internal,
            "a helper process of the monitor ended without a report",
        ));
    };
    match Report::decode(&report[..length]) {
        Ok(Report {
            failure: Some(failure),
            ..
        }) => Err(failure),
        Ok(report) => Ok(report.value),
        Err(error) => Err(failure(FailureKind::Internal, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(work: impl FnOnce() -> Outcome) -> Outcome {
        let work = || (work(), Vec::new());
        let job = Job::start(1, (), Duration::from_secs(5), work).unwrap();
        loop {
            if let Some((outcome, fds)) = job.poll() {
                assert!(fds.is_empty());
                return outcome;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_job_reports_or_has_failed() {
        assert_eq!(outcome(|| Ok(0)), Ok(0));
        assert_eq!(outcome(|| Ok(u64::MAX)), Ok(u64::MAX));
        let refused = failure(FailureKind::Invalid, "no");
        assert_eq!(outcome(|| Err(refused.clone())), Err(refused.clone()));
        let long = failure(FailureKind::Invalid, "x".repeat(REPORT));
        assert!(outcome(|| Err(long)).unwrap_err().message.contains("too long"));
        let died = outcome(|| holdfast_sys::process::exit_now(3)).unwrap_err();
        assert!(died.message.contains("without a report"));
    }
}
