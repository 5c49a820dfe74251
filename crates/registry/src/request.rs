//! One request to one host: headers, authentication, redirects, repetition.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;

use crate::auth::Credential;
use crate::backoff;
use crate::challenge;
use crate::client::Limits;
use crate::error::{Fault, Quote};
use crate::hosts::{Endpoint, Entry, Origin};
use crate::text::percent_encode;
use crate::tls::TlsFiles;
use crate::token::{self, Challenged, Grant, Key, TokenCache};
use crate::transport::{Pool, Response, Route};

/// Of an error's body, before it is cut for the message.
const MAX_ERROR_BODY: usize = 8 << 10;

/// What all requests of a pull share.
pub(crate) struct Session {
    pub limits: Limits,
    pub user_agent: String,
    pub registry: String,
    pub repository: String,
    pub credential: Credential,
    pub tokens: Arc<TokenCache>,
    pub pool: Arc<Pool>,
}

/// A request of the distribution API, on whatever host.
pub(crate) struct Ask {
    pub method: Method,
    /// After the repository: `manifests/latest`.
    pub path: String,
    pub accept: &'static str,
    /// The first byte wanted.
    pub range: Option<u64>,
}

/// A request as it goes from host to host.
pub(crate) struct Hop {
    pub method: Method,
    pub uri: Uri,
    /// For every host on the way.
    pub public: HeaderMap,
    /// Credentials and the like, for the first host only.
    pub private: HeaderMap,
    pub body: Bytes,
    pub home: Origin,
    pub own: Route,
    pub foreign: Route,
}

impl Session {
    /// Asks one host, up to `tries` times. The response has status 200 or 206.
    pub async fn ask(&self, endpoint: &Endpoint, ask: &Ask, tries: u32) -> Result<Response, Fault> {
        let mut attempt = 1;
        loop {
            let fault = match self.once(endpoint, ask).await {
                Ok(response) => return Ok(response),
                Err(fault) => fault,
            };
            if attempt >= tries || !fault.is_transient() {
                return Err(fault);
            }
            let wait = backoff::delay(attempt, fault.retry_after());
            tracing::debug!(host = %endpoint.origin, path = %ask.path, attempt, error = %fault, "registry request failed, will be repeated");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn once(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Response, Fault> {
        let (secret, id) = self
            .credential
            .for_host(&endpoint.origin.authority, endpoint.is_registry);
        let key = Key {
            host: endpoint.origin.to_string(),
            repository: self.repository.clone(),
            credential: id,
        };
        let slot = self.tokens.slot(key);
        let mut header = slot
            .lock()
            .await
            .as_ref()
            .filter(|g| g.is_fresh())
            .map(|g| g.header.clone());
        let mut obtained = false;
        loop {
            let (response, foreign) = self.follow(self.hop(endpoint, ask, header.as_ref())?).await?;
            if matches!(response.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                return Ok(response);
            }
            let challenges = challenge::read(&response.headers);
            let in_machine = response.in_machine;
            let is_challenge = response.status == StatusCode::UNAUTHORIZED && !foreign;
            let mut secrets = secret.strings();
            secrets.extend(
                header
                    .as_ref()
                    .and_then(|h| h.to_str().ok()?.split_once(' ').map(|(_, t)| t.to_owned())),
            );
            let fault = status_fault(response, secrets, !foreign, self.limits.stall).await;
            if !is_challenge {
                return Err(fault);
            }
            let mut grant = slot.lock().await;
            if obtained {
                *grant = None;
                return Err(fault);
            }
            match grant
                .as_ref()
                .filter(|g| g.is_fresh() && Some(&g.header) != header.as_ref())
            {
                // Another layer's request was faster.
                Some(newer) => header = Some(newer.header.clone()),
                None => {
                    *grant = None;
                    let challenged = Challenged {
                        endpoint,
                        challenges: &challenges,
                        in_machine,
                    };
                    let new: Option<Grant> = token::obtain(self, &challenged, secret).await?;
                    let Some(new) = new else { return Err(fault) };
                    header = Some(new.header.clone());
                    *grant = Some(new);
                    obtained = true;
                }
            }
        }
    }

    fn hop(&self, endpoint: &Endpoint, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Hop, Fault> {
        let mut text = format!(
            "{}{}/{}/{}",
            endpoint.origin, endpoint.path, self.repository, ask.path
        );
        // A mirror of several registries learns from `ns` which one is meant, as containerd does it.
        if endpoint.origin.authority
            != Entry::default_for(&self.registry, TlsFiles::default())
                .origin
                .authority
        {
            text.push_str("?ns=");
            text.push_str(&percent_encode(&self.registry));
        }
        let uri: Uri = text.parse().map_err(|_| Fault::Protocol {
            reason: format!("{} makes no valid URL", endpoint.origin),
        })?;
        let mut public = HeaderMap::new();
        public.insert(ACCEPT, HeaderValue::from_static(ask.accept));
        if let Some(first) = ask.range {
            public.extend(
                HeaderValue::from_str(&format!("bytes={first}-"))
                    .ok()
                    .map(|value| (RANGE, value)),
            );
        }
        let mut private = HeaderMap::new();
        for (name, value) in &endpoint.headers {
            private.append(name.clone(), value.clone());
        }
        if let Some(value) = authorization {
            private.insert(AUTHORIZATION, value.clone());
        }
        let route = |tls: &Arc<rustls::ClientConfig>, into_machine| Route {
            tls: tls.clone(),
            connect: endpoint.connect,
            into_machine,
        };
        Ok(Hop {
            method: ask.method.clone(),
            uri,
            public,
            private,
            body: Bytes::new(),
            home: endpoint.origin.clone(),
            own: route(&endpoint.tls.own, true),
            foreign: route(&endpoint.tls.redirect, false),
        })
    }

    /// Sends a request and follows its redirects; tells whether another host than the first answered.
    pub async fn follow(&self, hop: Hop) -> Result<(Response, bool), Fault> {
        let mut uri = hop.uri.clone();
        let mut foreign = false;
        // Who is in this machine may point into it.
        let mut from_machine = false;
        for _ in 0..=self.limits.redirects {
            let mut request = Request::new(Full::new(hop.body.clone()));
            *request.method_mut() = hop.method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = hop.public.clone();
            request.headers_mut().extend(
                HeaderValue::from_str(&self.user_agent)
                    .ok()
                    .map(|value| (USER_AGENT, value)),
            );
            // What is hashed is what was pushed, not a coding of it.
            request
                .headers_mut()
                .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if !foreign {
                for (name, value) in &hop.private {
                    request.headers_mut().append(name.clone(), value.clone());
                }
            }
            let mut route = if foreign { &hop.foreign } else { &hop.own }.clone();
            route.into_machine |= from_machine;
            let response = self.pool.send(&route, request, self.limits.response).await?;
            from_machine = response.in_machine;
            let redirected = matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirected {
                return Ok((response, foreign));
            }
            let refuse = |reason: String| Fault::Redirect {
                from: response.host.clone(),
                reason,
            };
            if hop.method == Method::POST {
                return Err(refuse(
                    "a request with a credential in its body is not sent elsewhere".into(),
                ));
            }
            let location = response.headers.get(LOCATION).and_then(|v| v.to_str().ok());
            let target = location
                .and_then(|l| join(&uri, l))
                .ok_or_else(|| refuse("it has no valid Location".into()))?;
            check_redirect(&uri, &target).map_err(refuse)?;
            foreign |= Origin::of(&target).as_ref() != Some(&hop.home);
            uri = target;
            // Read to its end, so that the connection can be used again.
            response
                .body
                .beginning(MAX_ERROR_BODY, Duration::from_secs(1).min(self.limits.stall))
                .await;
        }
        Err(Fault::Redirect {
            from: hop.home.to_string(),
            reason: format!("there are more than {}", self.limits.redirects),
        })
    }
}

/// Turns an unwanted status into a fault. What a redirect target says is not quoted: it may be a service that only this
/// machine can reach, and its words would end up in a pod's events.
pub(crate) async fn status_fault(
    response: Response,
    secrets: Vec<String>,
    quote: bool,
    wait: Duration,
) -> Fault {
    let retry_after = backoff::retry_after(&response.headers);
    let (status, host) = (response.status.as_u16(), response.host.clone());
    let body = response
        .body
        .beginning(MAX_ERROR_BODY, wait.min(Duration::from_secs(5)))
        .await;
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let body = if quote {
        crate::text::error_body(&body, &secrets)
    } else {
        String::new()
    };
    Fault::Status {
        status,
        host,
        body: Quote(body),
        retry_after,
    }
}

fn check_redirect(from: &Uri, to: &Uri) -> Result<(), String> {
    let (Some(a), Some(b)) = (Origin::of(from), Origin::of(to)) else {
        return Err("its target is not an http or https URL without user name".into());
    };
    if a.https && !b.https {
        return Err(format!("to {b} is a step from https to http"));
    }
    if b.is_into_machine() && !a.is_into_machine() {
        return Err(format!("to {b} is into this machine"));
    }
    Ok(())
}

/// Resolves a `Location` against the URI that it came from (RFC 3986, 5.2, without dot segments).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.trim().split('#').next()?;
    if location.is_empty() {
        return None;
    }
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let is_absolute = location.find("://").is_some_and(|at| {
        location[..at]
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    let text = if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let directory = &base.path()[..=base.path().rfind('/')?];
        format!("{scheme}://{authority}{directory}{location}")
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations() {
        let base = uri("https://r.io:8443/v2/x/blobs/y?z=1");
        for (location, wanted) in [
            ("https://cdn.io/a?b=c#d", "https://cdn.io/a?b=c"),
            ("//cdn.io/a", "https://cdn.io/a"),
            ("/a", "https://r.io:8443/a"),
            ("a", "https://r.io:8443/v2/x/blobs/a"),
            ("?q", "https://r.io:8443/v2/x/blobs/y?q"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), wanted);
        }
        assert!(join(&base, "").is_none());
        assert!(join(&base, "https://bad host/").is_none());
    }

    #[test]
    fn forbidden_redirects() {
        for (from, to, part) in [
            ("https://r.io/", "http://r.io/", "https to http"),
            ("https://r.io/", "ftp://r.io/", "not an http"),
            ("https://r.io/", "https://u:p@r.io/", "without user name"),
            (
                "http://r.io/",
                "http://169.254.169.254/latest",
                "into this machine",
            ),
            ("https://r.io/", "https://127.0.0.1/", "into this machine"),
            ("https://r.io/", "https://[::1]:5000/", "into this machine"),
            (
                "https://r.io/",
                "https://[::ffff:127.0.0.1]/",
                "into this machine",
            ),
            (
                "http://r.io/",
                "http://[::ffff:169.254.169.254]/latest",
                "into this machine",
            ),
            ("https://r.io/", "https://[fe80::1]/", "into this machine"),
            ("https://r.io/", "https://[fd00:ec2::254]/", "into this machine"),
        ] {
            assert!(
                check_redirect(&uri(from), &uri(to)).unwrap_err().contains(part),
                "{to}"
            );
        }
        check_redirect(&uri("http://127.0.0.1:5000/"), &uri("http://localhost:6000/")).unwrap();
        check_redirect(&uri("https://r.io/"), &uri("https://10.0.0.1/")).unwrap();
    }
}
