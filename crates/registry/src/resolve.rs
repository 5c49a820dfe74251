//! From a reference to the manifest for one platform: tag or digest, then through an index if there is one.

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use crate::client::{Capability, Pull};
use crate::digest::{Digest, DigestMismatch};
use crate::error::{Error, Fault};
use crate::manifest::{self, Descriptor, Document, Index, Manifest, MediaType};
use crate::platform::Platform;
use crate::request::Ask;
use crate::transport::{Body, Response};

/// An index may point to an index; deeper than this nobody goes.
const MAX_DEPTH: usize = 3;

/// A manifest or index as it was served.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
}

/// What a reference is on one platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the reference itself names: an index or the manifest. Its digest is the one for `RepoDigests`.
    pub root: Fetched,
    /// The manifest's own document; the same as `root` if no index was between.
    pub document: Fetched,
    pub manifest: Manifest,
    /// The platform by which an index offered it.
    pub platform: Option<Platform>,
}

impl Pull {
    /// Fetches and checks the manifest for `platform`.
    pub async fn resolve(&self, platform: &Platform) -> Result<Resolved, Error> {
        let reference = self.reference();
        let (name, capability) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (digest.to_string(), Capability::Pull),
            (None, tag) => (tag.unwrap_or("latest").to_owned(), Capability::Resolve),
        };
        let (root, mut document) = self.document(&name, capability, reference.digest(), None).await?;
        let mut current = root.clone();
        let mut offered = None;
        for _ in 0..MAX_DEPTH {
            let index = match document {
                Document::Manifest(manifest) => {
                    return Ok(Resolved {
                        root,
                        document: current,
                        manifest: *manifest,
                        platform: offered,
                    });
                }
                Document::Index(index) => index,
            };
            let entry = choose(&index, platform).ok_or_else(|| Error::NoPlatform {
                reference: reference.to_string(),
                digest: current.digest.clone(),
                wanted: platform.to_string(),
                offered: offers(&index),
            })?;
            offered = entry.platform.clone().or(offered);
            (current, document) = self
                .document(
                    entry.digest.as_str(),
                    Capability::Pull,
                    Some(&entry.digest),
                    Some(entry),
                )
                .await?;
        }
        match document {
            Document::Manifest(manifest) => Ok(Resolved {
                root,
                document: current,
                manifest: *manifest,
                platform: offered,
            }),
            Document::Index(_) => Err(self.bad(
                &root.digest,
                format!("indexes are nested more than {MAX_DEPTH} deep"),
            )),
        }
    }

    /// The digest that the reference names now, by a HEAD request, which registries do not count as a pull. `None` if
    /// the registry does not say.
    pub async fn head(&self) -> Result<Option<Digest>, Error> {
        let reference = self.reference();
        if let Some(digest) = reference.digest() {
            return Ok(Some(digest.clone()));
        }
        let path = format!("manifests/{}", reference.tag().unwrap_or("latest"));
        let ask = Ask {
            method: Method::HEAD,
            path,
            accept: manifest::ACCEPT,
            range: None,
        };
        let mut attempts = Vec::new();
        for (n, tries) in self.candidates(Capability::Resolve)? {
            match self
                .inner
                .session
                .ask(&self.inner.endpoints[n], &ask, tries)
                .await
            {
                Ok(response) => return Ok(stated_digest(&response.headers)),
                Err(fault) => attempts.push((n, fault)),
            }
        }
        Err(self.failed(attempts))
    }

    async fn document(
        &self,
        name: &str,
        capability: Capability,
        expected: Option<&Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<(Fetched, Document), Error> {
        let ask = Ask {
            method: Method::GET,
            path: format!("manifests/{name}"),
            accept: manifest::ACCEPT,
            range: None,
        };
        let mut attempts = Vec::new();
        for (n, tries) in self.candidates(capability)? {
            match self.fetch(n, tries, &ask, expected, entry).await {
                Ok((digest, content_type, bytes)) => {
                    let header = entry
                        .map(|e| e.media_type.clone())
                        .filter(|t| !t.is_empty())
                        .or(content_type);
                    let (media_type, document) = manifest::parse(&bytes, header.as_deref())
                        .map_err(|reason| self.bad(&digest, reason))?;
                    return Ok((
                        Fetched {
                            digest,
                            media_type,
                            bytes,
                        },
                        document,
                    ));
                }
                Err(fault) => attempts.push((n, fault)),
            }
        }
        Err(self.failed(attempts))
    }

    /// One host: the request, repeated where that can help, its body read within bounds, and its digest.
    async fn fetch(
        &self,
        n: usize,
        tries: u32,
        ask: &Ask,
        expected: Option<&Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<(Digest, Option<String>, Bytes), Fault> {
        let session = &self.inner.session;
        let limit = session.limits.manifest_size;
        let mut attempt = 1;
        loop {
            let Response {
                headers, mut body, ..
            } = session.ask(&self.inner.endpoints[n], ask, tries).await?;
            let size = entry.map(|e| e.size);
            let read = read_whole(&headers, &mut body, limit, size, session.limits.stall);
            let fault = match tokio::time::timeout(session.limits.document, read).await {
                Ok(Ok(bytes)) => {
                    let content_type = headers
                        .get(CONTENT_TYPE)
                        .and_then(|v| v.to_str().ok())
                        .map(str::to_owned);
                    return Ok((check(&bytes, expected, &headers)?, content_type, bytes));
                }
                Ok(Err(fault)) => fault,
                Err(_) => Fault::Deadline {
                    what: "the manifest",
                    after: session.limits.document,
                },
            };
            if attempt >= tries || !fault.is_transient() {
                return Err(fault);
            }
            tokio::time::sleep(crate::backoff::delay(attempt, None)).await;
            attempt += 1;
        }
    }

    fn bad(&self, digest: &Digest, reason: String) -> Error {
        Error::Manifest {
            reference: self.reference().to_string(),
            digest: digest.clone(),
            reason,
        }
    }
}

async fn read_whole(
    headers: &http::HeaderMap,
    body: &mut Body,
    limit: u64,
    size: Option<u64>,
    stall: std::time::Duration,
) -> Result<Bytes, Fault> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<u64>().ok());
    let too_big = |announced: String| Fault::Limit {
        what: "manifest",
        announced,
        limit,
    };
    for n in [announced, size].into_iter().flatten() {
        if n > limit {
            return Err(too_big(n.to_string()));
        }
    }
    if let (Some(announced), Some(expected)) = (announced, size)
        && announced != expected
    {
        return Err(Fault::Size {
            what: "manifest".into(),
            announced,
            expected,
        });
    }
    let mut out = BytesMut::new();
    while let Some(chunk) = body.chunk(stall).await? {
        out.extend_from_slice(&chunk);
        if out.len() as u64 > limit {
            return Err(too_big(format!("more than {limit}")));
        }
    }
    if let Some(expected) = announced.or(size)
        && (out.len() as u64) < expected
    {
        return Err(Fault::Truncated {
            what: "manifest".into(),
            got: out.len() as u64,
            expected,
        });
    }
    Ok(out.freeze())
}

/// The digest of what came, checked against what was asked for and what the registry says of it.
fn check(bytes: &[u8], expected: Option<&Digest>, headers: &http::HeaderMap) -> Result<Digest, Fault> {
    for (wanted, what) in [
        (expected, "manifest"),
        (
            stated_digest(headers).as_ref(),
            "manifest (by its Docker-Content-Digest)",
        ),
    ] {
        if let Some(wanted) = wanted {
            let actual = Digest::of(wanted.algorithm(), bytes);
            if actual != *wanted {
                let mismatch = DigestMismatch {
                    expected: wanted.clone(),
                    actual,
                };
                return Err(Fault::Mismatch {
                    what: what.into(),
                    mismatch,
                });
            }
        }
    }
    Ok(expected.cloned().unwrap_or_else(|| Digest::sha256(bytes)))
}

fn stated_digest(headers: &http::HeaderMap) -> Option<Digest> {
    Digest::parse(headers.get("docker-content-digest")?.to_str().ok()?.trim()).ok()
}

/// The best entry; one without a platform serves if no other does. Attestations have the platform `unknown`.
fn choose<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let ranked = index.manifests.iter().filter_map(|m| match &m.platform {
        Some(p) => Some((platform.rank(p)?, m)),
        None => Some((u32::MAX, m)),
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, m)| m)
}

fn offers(index: &Index) -> String {
    let mut names: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .map(ToString::to_string)
        .collect();
    names.retain(|n| n != "unknown/unknown");
    names.dedup();
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    if names.is_empty() {
        return "nothing".into();
    }
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{tail}", crate::text::clip(&names.join(", "), 300))
}
