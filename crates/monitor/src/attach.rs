//! Attach: taps on a container's output, and who is still there to read them. The copying is the pump's.

use std::os::fd::OwnedFd;

use holdfast_monitor_api::Stdio;
use holdfast_monitor_api::message::{Attach, Failure, FailureKind};

use crate::containers::nonblocking;
use crate::error::{failed, failure};
use crate::frame::Stream;
use crate::monitor::{Asker, Monitor};
use crate::poller::{Poller, Token};
use crate::pump::{Pump, Tap};

/// Taps on one container; a client has one for each stream.
const TAPS: usize = 128;

impl Monitor {
    pub(crate) fn attach(
        &mut self,
        asker: Asker,
        request: &Attach,
        ends: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let wanted = [(request.stdout, Stream::Stdout), (request.stderr, Stream::Stderr)];
        let streams: Vec<Stream> = wanted
            .iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, stream)| *stream)
            .collect();
        if ends.len() != streams.len() {
            let text = format!(
                "an attach with {} descriptors where {} are due",
                ends.len(),
                streams.len()
            );
            return Err(failure(FailureKind::Invalid, text));
        }
        let container = self.known(&request.container_id)?;
        container.running()?;
        let (key, id) = (container.key, container.id.clone());
        if container.log.taps.len() + streams.len() > TAPS {
            let text = format!("container {id} has {TAPS} streams attached already");
            return Err(failure(FailureKind::Exhausted, text));
        }
        for (stream, end) in streams.into_iter().zip(ends) {
            self.add_tap(key, stream, end)
                .map_err(|error| failed(&format!("cannot attach to container {id}"), &error))?;
        }
        if request.release_stdin
            && let Some(held) = self.container(key).and_then(|it| it.descriptors.as_mut())
            && let Stdio::Pipes { stdin, .. } = &mut held.stdio
        {
            *stdin = None;
        }
        self.answer_done(asker, Ok(()));
        Ok(())
    }

    fn add_tap(&mut self, key: u32, stream: Stream, end: OwnedFd) -> std::io::Result<()> {
        let tap = self.key();
        let Some(container) = self.containers.iter_mut().find(|container| container.key == key) else {
            return Ok(());
        };
        let ended = match (container.descriptors.as_ref().map(|held| &held.stdio), stream) {
            (Some(Stdio::Tty { .. }), Stream::Stderr) => true,
            (_, Stream::Stdout) => container.log.stdout_ended,
            (_, Stream::Stderr) => container.log.stderr_ended,
        };
        if ended {
            // Closed here, it reads as the stream's end there.
            return Ok(());
        }
        nonblocking(&end)?;
        self.poller.watch_reader(&end, Token::Tap(tap))?;
        let tapped = container.log.tap(Tap::new(tap, stream, end));
        if tapped.is_err() {
            drop_taps(&self.poller, &mut container.log, |it| it.key == tap);
        }
        tapped
    }

    /// The reader of a tap is gone.
    pub(crate) fn tap_gone(&mut self, tap: u32) {
        for container in &mut self.containers {
            drop_taps(&self.poller, &mut container.log, |it| it.key == tap);
        }
    }

    /// Nothing comes on this stream any more.
    pub(crate) fn stream_ended(&mut self, key: u32, stream: Stream) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.key == key) {
            drop_taps(&self.poller, &mut container.log, |tap| tap.stream == stream);
        }
    }
}

fn drop_taps(poller: &Poller, log: &mut Pump, which: impl Fn(&Tap) -> bool) {
    log.taps.retain(|tap| {
        let goes = which(tap);
        if goes {
            poller.forget(&tap.fd);
        }
        !goes
    });
    if log.taps.is_empty() {
        log.taps = Vec::new();
    }
}
