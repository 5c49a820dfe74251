//! ExecStream: a process whose standard streams are the daemon's. Two answers go out: one when it has executed its
//! program (with its terminal's master, if it has one), one when it has ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_launcher::Stdio;
use holdfast_monitor_api::message::{ExecStarted, ExecStream, Failure, FailureKind, reply};

use crate::error::failure;
use crate::exec::{Exec, Streaming, Wanted};
use crate::monitor::{Asker, Monitor};

impl Monitor {
    pub(crate) fn exec_stream(
        &mut self,
        asker: Asker,
        request: &ExecStream,
        ends: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let wanted = Wanted {
            container_id: &request.container_id,
            exec_id: &request.exec_id,
            process: &request.process,
            seccomp: &request.seccomp,
            clamp_privileges: request.clamp_privileges,
        };
        let exec = self.launch(asker, &wanted, stdio(request, ends)?)?;
        self.execs.push(Exec {
            streaming: Some(Streaming::default()),
            ..exec
        });
        Ok(())
    }

    /// Tells the daemon that a streaming exec runs, once. Nothing of its terminal stays here: when the daemon closes the
    /// master, the kernel hangs up.
    pub(crate) fn tell_started(&mut self, key: u32) {
        let Some(exec) = self.exec(key).filter(|exec| exec.failure.is_none()) else {
            return;
        };
        let (pid, asker) = (exec.pid, exec.asker);
        let Some(streaming) = exec.streaming.as_mut().filter(|streaming| !streaming.told) else {
            return;
        };
        streaming.told = true;
        let terminal = streaming.terminal.take();
        let fds: Vec<BorrowedFd<'_>> = terminal.iter().map(AsFd::as_fd).collect();
        let started = ExecStarted {
            pid,
            has_terminal: terminal.is_some(),
        };
        self.answer_with(asker, reply::Body::ExecStarted(started), &fds);
    }
}

fn stdio(request: &ExecStream, ends: Vec<OwnedFd>) -> Result<Stdio, Failure> {
    let wanted = [request.stdin, request.stdout, request.stderr].map(|wanted| wanted && !request.tty);
    let expected = wanted.iter().filter(|wanted| **wanted).count();
    if ends.len() != expected {
        let text = format!("an exec with {} descriptors where {expected} are due", ends.len());
        return Err(failure(FailureKind::Invalid, text));
    }
    if request.tty {
        return Ok(Stdio::Terminal);
    }
    let mut ends = ends.into_iter();
    let [stdin, stdout, stderr] = wanted.map(|wanted| if wanted { ends.next() } else { None });
    Ok(Stdio::Pipes {
        stdin,
        stdout,
        stderr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_taken_in_order() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let request = |tty, stdin, stdout, stderr| ExecStream {
            tty,
            stdin,
            stdout,
            stderr,
            ..ExecStream::default()
        };
        let Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } = stdio(&request(false, true, false, true), vec![null(), null()]).unwrap()
        else {
            panic!("a terminal");
        };
        assert!(stdin.is_some() && stdout.is_none() && stderr.is_some());
        assert!(stdio(&request(false, true, true, true), vec![null(), null()]).is_err());
        assert!(stdio(&request(true, true, true, false), vec![null()]).is_err());
        let terminal = stdio(&request(true, true, true, false), Vec::new()).unwrap();
        assert!(matches!(terminal, Stdio::Terminal));
    }
}
