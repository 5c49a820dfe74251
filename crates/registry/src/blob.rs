//! A blob as a stream that survives: resumed by range after a break, moved to the next host if one gives up, and
//! checked for its size. Whoever reads it hashes it, and says so here if it was the wrong one.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{Method, StatusCode};

use crate::client::{Capability, Pull};
use crate::digest::{Digest, DigestMismatch};
use crate::error::{Error, Fault};
use crate::manifest::Descriptor;
use crate::request::Ask;
use crate::transport::{Body, Response};

/// Progress that makes a host worth another full set of attempts.
const WORTHWHILE: u64 = 1 << 20;
/// Breaks of one blob in all, however much came between them.
const MAX_BREAKS: u32 = 64;

/// What was wrong with a blob that came whole, or as far as anybody read it.
#[derive(Debug, Clone)]
pub(crate) enum Wrong {
    Digest(DigestMismatch),
    /// In the words of who could not use it.
    Unusable(String),
}

impl Wrong {
    pub fn fault(self, what: String) -> Fault {
        match self {
            Self::Digest(mismatch) => Fault::Mismatch { what, mismatch },
            Self::Unusable(reason) => Fault::Unusable { what, reason },
        }
    }
}

/// A blob being read. Nothing that it gave is to be trusted before [`Blob::chunk`] gave `None` and the digest of all of it
/// ([`Digest::verifier`]) was right.
pub struct Blob {
    pull: Pull,
    digest: Digest,
    size: u64,
    position: u64,
    hosts: Vec<(usize, u32)>,
    /// Which of `hosts` is being read.
    host: usize,
    /// Breaks on this host since it last made worthwhile progress, and where that was.
    breaks: u32,
    mark: u64,
    all_breaks: u32,
    body: Option<Body>,
    /// Bytes that a host without ranges sends again.
    skip: u64,
    attempts: Vec<(usize, Fault)>,
    /// Time spent waiting for this host, and the position where it began.
    waited: Duration,
    begun: u64,
    /// Endpoints before this one that gave a part.
    gave: Vec<usize>,
    failed: bool,
}

impl Blob {
    pub(crate) async fn open(pull: Pull, descriptor: &Descriptor) -> Result<Self, Error> {
        let mut blob = Self {
            hosts: pull.candidates(Capability::Pull)?,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            position: 0,
            host: 0,
            breaks: 0,
            mark: 0,
            all_breaks: 0,
            body: None,
            skip: 0,
            attempts: Vec::new(),
            waited: Duration::ZERO,
            begun: 0,
            gave: Vec::new(),
            failed: false,
            pull,
        };
        blob.connect().await?;
        Ok(blob)
    }

    /// The next bytes, of up to 512 KiB and without a copy, or `None` at a good end, when as many have come as the descriptor
    /// promised. An error is final.
    ///
    /// Dropping the future loses nothing; dropping the blob closes the connection.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.failed {
            return Err(self.fail());
        }
        loop {
            if self.body.is_none() && self.position < self.size {
                self.connect().await?;
            }
            match self.step().await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {
                    self.body = None;
                    return Ok(None);
                }
                Err(fault) => self.break_off(fault).await?,
            }
        }
    }

    /// One read of the body, or `None` at its proper end.
    async fn step(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        let limits = &self.pull.inner.session.limits;
        let began = Instant::now();
        let read = body.chunk(limits.stall).await;
        self.waited += began.elapsed();
        let read = read.map_err(|fault| match fault {
            Fault::Http { .. } => Fault::Broken {
                what: self.name(),
                got: self.position,
                expected: self.size,
                source: Box::new(fault),
            },
            other => other,
        });
        let Some(mut bytes) = read? else {
            if self.position < self.size || self.skip > 0 {
                return Err(Fault::Truncated {
                    what: self.name(),
                    got: self.position,
                    expected: self.size,
                });
            }
            return Ok(None);
        };
        let budget = self.pull.patience(self.position - self.begun);
        if self.waited > budget {
            return Err(Fault::Deadline {
                what: "the blob",
                after: budget,
            });
        }
        if self.skip > 0 {
            let n = self.skip.min(bytes.len() as u64);
            self.skip -= n;
            let _ = bytes.split_to(usize::try_from(n).unwrap_or(usize::MAX));
        }
        if bytes.len() as u64 > self.size - self.position {
            return Err(Fault::TooLong {
                what: self.name(),
                expected: self.size,
            });
        }
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Says that the digest was wrong: later blobs of the same pull avoid the host that gave it while there is another.
    ///
    /// # Errors
    /// What failed, if no other host is left. Otherwise the blob is to be asked for once more.
    pub fn reject(mut self, mismatch: DigestMismatch) -> Result<(), Error> {
        let wrong = Wrong::Digest(mismatch);
        if self.leave(&wrong) {
            return Ok(());
        }
        let present = self.hosts[self.host].0;
        self.attempts.push((present, wrong.fault(self.name())));
        Err(self.fail())
    }

    /// Says that the blob could not be used, by somebody who did not read on to its end to see whether it is the right one.
    /// If there is another host, this one is avoided as after a wrong digest, and the blob is to be asked for once more;
    /// `false` if there is none.
    pub fn suspect(&mut self, why: &(dyn std::error::Error + 'static)) -> bool {
        let mut reason = why.to_string();
        let mut source = why.source();
        while let Some(inner) = source {
            reason = format!("{reason}: {inner}");
            source = inner.source();
        }
        self.leave(&Wrong::Unusable(crate::text::clip(&reason, 300)))
    }

    /// Avoids the hosts before this one that gave a part and broke off, else this one; says whether there is another.
    fn leave(&mut self, wrong: &Wrong) -> bool {
        if self.gave.is_empty() {
            self.gave.push(self.hosts[self.host].0);
        }
        for endpoint in &self.gave {
            self.pull.avoid(*endpoint);
        }
        if !self.pull.has_another() {
            return false;
        }
        let error = wrong.clone().fault(self.name());
        for endpoint in self.gave.drain(..) {
            let host = &self.pull.inner.endpoints[endpoint].origin;
            tracing::warn!(%host, %error, "a host gave a wrong blob, another is asked");
            self.pull.remember(endpoint, &self.digest, wrong);
        }
        true
    }

    /// Decides what a break means: another request to the same host, the next host, or the end.
    async fn break_off(&mut self, fault: Fault) -> Result<(), Error> {
        self.body = None;
        if self.position - self.mark >= WORTHWHILE {
            self.mark = self.position;
            self.breaks = 0;
        }
        self.breaks += 1;
        self.all_breaks += 1;
        let (endpoint, tries) = self.hosts[self.host];
        if self.all_breaks >= MAX_BREAKS {
            self.attempts.push((endpoint, fault));
            return Err(self.fail());
        }
        if fault.is_transient() && self.breaks < tries {
            tracing::debug!(digest = %self.digest, position = self.position, error = %fault, "blob broke off, resuming");
            tokio::time::sleep(crate::backoff::delay(self.breaks, None)).await;
            return Ok(());
        }
        self.next_host(fault)
    }

    fn next_host(&mut self, fault: Fault) -> Result<(), Error> {
        let endpoint = self.hosts[self.host].0;
        self.attempts.push((endpoint, fault));
        if self.position > self.begun {
            self.gave.push(endpoint);
        }
        if self.host + 1 >= self.hosts.len() {
            return Err(self.fail());
        }
        self.host += 1;
        self.breaks = 0;
        self.mark = self.position;
        self.waited = Duration::ZERO;
        self.begun = self.position;
        Ok(())
    }

    /// Opens the body at the present position, on this host or one after it.
    async fn connect(&mut self) -> Result<(), Error> {
        loop {
            let (endpoint, tries) = self.hosts[self.host];
            match self.request(endpoint, tries).await {
                Ok(()) => return Ok(()),
                Err(fault) => self.next_host(fault)?,
            }
        }
    }

    async fn request(&mut self, endpoint: usize, tries: u32) -> Result<(), Fault> {
        let inner = &self.pull.inner;
        let ask = Ask {
            method: Method::GET,
            path: format!("blobs/{}", self.digest),
            accept: "application/octet-stream, */*",
            range: (self.position > 0).then_some(self.position),
        };
        let response = inner.session.ask(&inner.endpoints[endpoint], &ask, tries).await?;
        self.skip = self.check_head(&response)?;
        self.body = Some(response.body);
        Ok(())
    }

    /// Checks that the head announces the bytes that are missing; gives how many come again from the beginning.
    fn check_head(&self, response: &Response) -> Result<u64, Fault> {
        let announced = response
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<u64>().ok());
        let rest = self.size - self.position;
        if response.status == StatusCode::PARTIAL_CONTENT {
            let text = response
                .headers
                .get(CONTENT_RANGE)
                .and_then(|v| v.to_str().ok())
                .unwrap_or("");
            let wanted = (self.position, self.size - 1, self.size);
            if self.position == 0 || parse_range(text) != Some(wanted) {
                let reason = format!(
                    "bytes {:?}, {}-{}/{} was wanted",
                    crate::text::clip(text, 60),
                    wanted.0,
                    wanted.1,
                    wanted.2
                );
                return Err(Fault::Range {
                    host: response.host.clone(),
                    reason,
                });
            }
            return self.expect(announced, rest).map(|()| 0);
        }
        self.expect(announced, self.size)?;
        Ok(self.position)
    }

    fn expect(&self, announced: Option<u64>, expected: u64) -> Result<(), Fault> {
        match announced {
            Some(announced) if announced != expected => Err(Fault::Size {
                what: self.name(),
                announced,
                expected,
            }),
            _ => Ok(()),
        }
    }

    fn name(&self) -> String {
        name(&self.digest)
    }

    fn fail(&mut self) -> Error {
        self.failed = true;
        self.body = None;
        self.pull.failed(std::mem::take(&mut self.attempts))
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob")
            .field("digest", &self.digest)
            .field("size", &self.size)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// A blob in errors.
pub(crate) fn name(digest: &Digest) -> String {
    format!("blob {digest}")
}

/// `bytes first-last/total`, where the total may be `*`.
fn parse_range(text: &str) -> Option<(u64, u64, u64)> {
    let (span, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let last = last.trim().parse().ok()?;
    let total = if total.trim() == "*" {
        u64::checked_add(last, 1)?
    } else {
        total.trim().parse().ok()?
    };
    Some((first.trim().parse().ok()?, last, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, 10)));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, 9, 10)));
        for bad in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 5/10",
            "bytes 5-x/10",
            "bytes 5-18446744073709551615/*x",
        ] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }
}
