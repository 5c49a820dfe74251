//! A blob as a stream that survives: resumed by range after a break, moved to the next host if one gives up, and
//! checked for size and digest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{Method, StatusCode};

use crate::client::{Capability, Pull};
use crate::digest::{Digest, DigestMismatch, Verifier};
use crate::error::{Error, Fault};
use crate::manifest::Descriptor;
use crate::request::Ask;
use crate::transport::{Body, Response};

/// Progress that makes a host worth another full set of attempts.
const WORTHWHILE: u64 = 1 << 20;
/// Breaks of one blob in all, however much came between them.
const MAX_BREAKS: u32 = 64;

/// Who hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// [`Blob::chunk`] does, on the caller's task; the end of the stream then means that the digest was right.
    Here,
    /// The caller does, with [`Digest::verifier`], on a thread of its own. Only the size is checked here.
    Consumer,
}

/// A blob being read. Nothing that it gave is to be trusted before [`Blob::chunk`] gave `None`.
pub struct Blob {
    pull: Pull,
    digest: Digest,
    size: u64,
    position: u64,
    verifier: Option<Verifier>,
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
    pub(crate) async fn open(pull: Pull, descriptor: &Descriptor, verify: Verify) -> Result<Self, Error> {
        let mut blob = Self {
            hosts: pull.candidates(Capability::Pull)?,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            position: 0,
            verifier: (verify == Verify::Here).then(|| descriptor.digest.verifier()),
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

    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The size that the descriptor promised; what comes is exactly as long, or an error.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes given so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, of up to 512 KiB and without a copy, or `None` at a good end. An error is final.
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
                Ok(None) => return self.finish().map(|()| None),
                Err(fault) => self.break_off(fault).await?,
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl futures::Stream<Item = Result<Bytes, Error>> + Send + Unpin {
        Box::pin(futures::stream::try_unfold(self, |mut blob| async move {
            Ok(blob.chunk().await?.map(|bytes| (bytes, blob)))
        }))
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
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&bytes);
        }
        Ok(Some(bytes))
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.body = None;
        let Some(verifier) = self.verifier.take() else {
            return Ok(());
        };
        verifier.finish().map_err(|mismatch| self.mismatch(mismatch))
    }

    /// For a consumer that hashes: says that the digest was wrong. As after a mismatch found here, later blobs of the
    /// same pull avoid the host that gave it while there is another.
    ///
    /// # Errors
    /// What failed, if no other host is left. Otherwise the blob is to be asked for once more.
    pub fn reject(mut self, mismatch: DigestMismatch) -> Result<(), Error> {
        let error = self.mismatch(mismatch);
        if !self.pull.has_another() {
            return Err(error);
        }
        tracing::warn!(digest = %self.digest, %error, "a host gave a wrong blob, another is asked");
        Ok(())
    }

    /// Blames the hosts before this one that gave a part and broke off, else this one.
    fn mismatch(&mut self, mismatch: DigestMismatch) -> Error {
        let present = self.hosts[self.host].0;
        if self.gave.is_empty() {
            self.gave.push(present);
        }
        for endpoint in self.gave.drain(..) {
            self.pull.avoid(endpoint);
        }
        let what = self.name();
        self.attempts.push((present, Fault::Mismatch { what, mismatch }));
        self.fail()
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
        format!("blob {}", self.digest)
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
