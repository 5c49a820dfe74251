//! Who starts a container's log pump and what its notices lead to. The pump itself is in `pump`.

use std::io;

use holdfast_monitor_api::message::{Failure, FailureKind, LogTrouble, event};

use crate::containers::let_go;
use crate::error::{failed, failure};
use crate::monitor::{Asker, Monitor};
use crate::poller::Token;
use crate::pump::{Notice, Reason, Streams};

impl Monitor {
    pub(crate) fn reopen_log(&mut self, asker: Asker, id: &str) -> Result<(), Failure> {
        let container = self.known(id)?;
        let key = container.key;
        if container.log_path.is_empty() || container.descriptors.is_none() {
            // Nothing is being written, so there is nothing to open; the file stays as the kubelet left it.
            let text = format!("container {id} writes no log now");
            return Err(failure(FailureKind::Precondition, text));
        }
        container.reopening.push(asker);
        if container.reopening.len() == 1 && !container.log.reopen() {
            self.start_pump(key, Reason::Open);
        }
        Ok(())
    }

    /// Output has come while no pump ran.
    pub(crate) fn output_ready(&mut self, key: u32) {
        self.start_pump(key, Reason::Output);
    }

    fn start_pump(&mut self, key: u32, reason: Reason) {
        let Some(container) = self.container(key) else {
            return;
        };
        let Some(streams) = container
            .descriptors
            .as_ref()
            .and_then(|descriptors| Streams::of(descriptors, &container.log_path))
        else {
            return;
        };
        if let Err(error) = container.log.start(streams, reason) {
            eprintln!(
                "holdfast-monitor: container {}: cannot start a log pump: {error}",
                container.id
            );
            let text = failed("cannot start a log pump", &error);
            for asker in std::mem::take(&mut container.reopening) {
                self.answer_done(asker, Err(text.clone()));
            }
            return;
        }
        self.watch_pump(key);
    }

    /// Watches a pump that was just started. Its sources are one-shot and need not be taken off the poller.
    pub(crate) fn watch_pump(&mut self, key: u32) {
        let container = self.containers.iter().find(|container| container.key == key);
        if let Some(running) = container.and_then(|container| container.log.running.as_ref()) {
            let _ = self.poller.watch(&running.control, Token::Pump(key));
        }
    }

    /// Watches the streams of a container whose pump rests.
    pub(crate) fn watch_output(&mut self, key: u32) {
        let Some(container) = self.containers.iter().find(|container| container.key == key) else {
            return;
        };
        let log = &container.log;
        if log.running.is_some() || log.drained || log.paused_until.is_some() || container.creating.is_some()
        {
            return;
        }
        let stdio = container
            .descriptors
            .as_ref()
            .map(|descriptors| &descriptors.stdio);
        for (_, fd) in log.sources(stdio) {
            let _ = self.poller.watch_once(fd, Token::Output(key));
        }
    }

    pub(crate) fn pump_ready(&mut self, key: u32) {
        loop {
            let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
                return;
            };
            match container.log.notice() {
                Ok(Some(notice)) => self.pump_says(key, notice),
                Ok(None) => {
                    if let Some(running) = container.log.running.take() {
                        self.poller.forget(&running.control);
                    }
                    return self.pump_ended(key);
                }
                Err(_) => return,
            }
        }
    }

    fn pump_says(&mut self, key: u32, notice: Notice) {
        let Some(container) = self.container(key) else {
            return;
        };
        let container_id = container.id.clone();
        match notice {
            Notice::Opened { errno } => self.log_opened(key, errno),
            Notice::Drained => self.log_drained(key),
            Notice::Trouble { errno, dropped } => self.event(event::Body::LogTrouble(LogTrouble {
                container_id,
                error: io::Error::from_raw_os_error(errno).to_string(),
                dropped_bytes: dropped,
            })),
            Notice::Recovered { dropped } => self.event(event::Body::LogTrouble(LogTrouble {
                container_id,
                error: String::new(),
                dropped_bytes: dropped,
            })),
            Notice::Ended { stream } => self.stream_ended(key, stream),
            Notice::TapGone { key } => self.tap_gone(key),
            // The pump's own book has it already.
            Notice::Hangup | Notice::Missed { .. } => {}
        }
    }

    fn log_opened(&mut self, key: u32, errno: i32) {
        let Some(container) = self.container(key) else {
            return;
        };
        let path = container.log_path.clone();
        let outcome = match errno {
            0 => Ok(()),
            errno => {
                let error = io::Error::from_raw_os_error(errno);
                Err(failed(&format!("cannot open log {path}"), &error))
            }
        };
        if let Some(creating) = &mut container.creating {
            creating.opened = true;
            return match outcome {
                Ok(()) => self.creation_progress(key),
                Err(failure) => self.create_failed(key, failure),
            };
        }
        for asker in std::mem::take(&mut container.reopening) {
            self.answer_done(asker, outcome.clone());
        }
    }

    fn pump_ended(&mut self, key: u32) {
        let Some(container) = self.container(key) else {
            return;
        };
        if container
            .creating
            .as_ref()
            .is_some_and(|creating| !creating.opened)
        {
            let failure = failure(
                FailureKind::Internal,
                "the log pump ended before the log was open",
            );
            return self.create_failed(key, failure);
        }
        if !container.reopening.is_empty() {
            // It ended of itself just as it was asked.
            return self.start_pump(key, Reason::Open);
        }
        if container.log.finishing && !container.log.drained {
            return self.finish_log(key);
        }
        self.watch_output(key);
    }

    /// An ended container's output is all in the log: its descriptors are no longer needed.
    pub(crate) fn log_drained(&mut self, key: u32) {
        let container = self.containers.iter_mut().find(|container| container.key == key);
        if let Some(container) = container.filter(|container| container.exit.is_some()) {
            let_go(&self.poller, container);
            self.send_exit(key);
        }
    }
}
