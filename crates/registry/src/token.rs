//! From a challenge to an `Authorization` header: Basic, or a bearer token from the service that the registry names.
//!
//! What is asked for is `pull` on the repository, whatever more a challenge wants. Tokens are remembered by (host,
//! repository, credential), so a pull with another credential, or none, never uses them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde::Deserialize;

use crate::auth::{Secret, basic_header, sensitive};
use crate::challenge::Challenge;
use crate::error::Fault;
use crate::hosts::{Endpoint, Origin};
use crate::request::{Hop, Session};
use crate::text::percent_encode;
use crate::transport::{Response, Route};

/// Registries, repositories and credentials whose tokens are remembered.
const MAX_SLOTS: usize = 1024;
/// Bytes of a token service's answer.
const MAX_ANSWER: usize = 256 << 10;
/// Of a token: it must fit in a request's head.
const MAX_TOKEN: usize = 64 << 10;
/// What a token lives if its service does not say (distribution specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(3600);
const CLIENT_ID: &str = "holdfast";

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Scheme, host and port.
    pub host: String,
    pub repository: String,
    pub credential: [u8; 32],
}

/// An `Authorization` header with its end.
#[derive(Clone)]
pub(crate) struct Grant {
    pub header: HeaderValue,
    expires: Option<Instant>,
}

impl Grant {
    pub fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|at| Instant::now() < at)
    }
}

/// Held while a token is fetched, so that parallel layers fetch one.
pub(crate) type Slot = Arc<tokio::sync::Mutex<Option<Grant>>>;

#[derive(Default)]
pub(crate) struct TokenCache {
    slots: Mutex<HashMap<Key, Slot>>,
}

impl TokenCache {
    pub fn slot(&self, key: Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_SLOTS && !slots.contains_key(&key) {
            // A slot in use stays with its users; forgetting it only costs a token.
            slots.retain(|_, slot| {
                slot.try_lock()
                    .is_ok_and(|grant| grant.as_ref().is_some_and(Grant::is_fresh))
            });
            if slots.len() >= MAX_SLOTS {
                slots.clear();
            }
        }
        slots.entry(key).or_default().clone()
    }
}

/// A request that a host did not answer without a token.
pub(crate) struct Challenged<'a> {
    pub endpoint: &'a Endpoint,
    pub challenges: &'a [Challenge],
    /// Its address is in this machine.
    pub in_machine: bool,
}

/// The header that answers the challenges, or `None` if the secret cannot answer any of them.
pub(crate) async fn obtain(
    session: &Session,
    challenged: &Challenged<'_>,
    secret: &Secret,
) -> Result<Option<Grant>, Fault> {
    let Challenged {
        endpoint, challenges, ..
    } = *challenged;
    let bearer = challenges.iter().find_map(|c| match c {
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => Some((realm, service, scope)),
        _ => None,
    });
    if let Some((realm, service, scope)) = bearer {
        if let Secret::Bearer(token) = secret {
            return Ok(sensitive(&format!("Bearer {token}")).map(|header| Grant {
                header,
                expires: None,
            }));
        }
        let default = format!("repository:{}:pull", session.repository);
        let scope = scope.as_deref().map_or(default, only_pull);
        let service = Service {
            session,
            endpoint,
            in_machine: challenged.in_machine,
            realm: parse_realm(&endpoint.origin, realm, secret)?,
            service: service.as_deref(),
            scope,
        };
        return service.exchange(secret).await.map(Some);
    }
    match secret {
        Secret::Basic { username, password } if challenges.contains(&Challenge::Basic) => Ok(basic_header(
            &format!("{username}:{password}"),
        )
        .map(|header| Grant {
            header,
            expires: None,
        })),
        _ => Ok(None),
    }
}

/// A challenge's scope without any action on a repository but `pull`. Forms that are not of the specification (such as
/// the single word that one large registry uses) stay as they are.
fn only_pull(scope: &str) -> String {
    let parts = scope
        .split_ascii_whitespace()
        .map(|part| match part.rsplit_once(':') {
            Some((name, _)) if name.starts_with("repository") => format!("{name}:pull"),
            _ => part.to_owned(),
        });
    parts.collect::<Vec<_>>().join(" ")
}

/// Checks the URL that a registry names as its token service.
fn parse_realm(registry: &Origin, realm: &str, secret: &Secret) -> Result<Uri, Fault> {
    let refuse = |reason: &str| Fault::Token {
        reason: format!(
            "{} names the token service {:?}, {reason}",
            registry,
            shown(realm)
        ),
        source: None,
    };
    let uri: Uri = realm.parse().map_err(|_| refuse("which is not a URL"))?;
    let origin =
        Origin::of(&uri).ok_or_else(|| refuse("which is not an http or https URL without user name"))?;
    let both_loopback = origin.is_loopback() && registry.is_loopback();
    if origin.is_loopback() && !registry.is_loopback() {
        return Err(refuse("which is on this machine's loopback"));
    }
    if origin.is_into_machine() && !registry.is_into_machine() {
        return Err(refuse(
            "which is link-local or an address of clouds' metadata services",
        ));
    }
    if !origin.https && !both_loopback {
        if registry.https {
            return Err(refuse("which is not https"));
        }
        if *secret != Secret::None && origin.authority != registry.authority {
            return Err(refuse(
                "which is another host without https, so the credential is not sent",
            ));
        }
    }
    Ok(uri)
}

/// A realm for messages: bounded, without query.
fn shown(realm: &str) -> String {
    crate::text::clip(realm.split('?').next().unwrap_or(""), 120)
}

struct Service<'a> {
    session: &'a Session,
    endpoint: &'a Endpoint,
    in_machine: bool,
    realm: Uri,
    service: Option<&'a str>,
    scope: String,
}

/// An answer, and whether it came from another host than the realm's own.
struct Answered {
    response: Response,
    foreign: bool,
}

/// What a token service answers; Docker's `token` and OAuth's `access_token` mean the same.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

impl Service<'_> {
    async fn exchange(&self, secret: &Secret) -> Result<Grant, Fault> {
        match secret {
            Secret::Identity(token) => {
                let answer = self
                    .post(&[("grant_type", "refresh_token"), ("refresh_token", token)])
                    .await?;
                self.accept(answer, secret).await
            }
            Secret::Basic { username, password } => {
                let header = basic_header(&format!("{username}:{password}"));
                let answer = self.get(header, Some(username)).await?;
                // Services that only know OAuth say so in one of these ways.
                if matches!(
                    answer.response.status,
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
                ) {
                    let form = [
                        ("grant_type", "password"),
                        ("username", username.as_str()),
                        ("password", password.as_str()),
                    ];
                    let answer = self.post(&form).await?;
                    return self.accept(answer, secret).await;
                }
                self.accept(answer, secret).await
            }
            Secret::None | Secret::Bearer(_) => {
                let answer = self.get(None, None).await?;
                self.accept(answer, secret).await
            }
        }
    }

    fn query(&self, scopes: &[&str], more: &[(&str, &str)]) -> String {
        let service = self.service.map(|s| ("service", s));
        let scopes = scopes.iter().map(|s| ("scope", *s));
        let pairs = service.into_iter().chain(scopes).chain(more.iter().copied());
        pairs
            .map(|(k, v)| format!("{k}={}", percent_encode(v)))
            .collect::<Vec<_>>()
            .join("&")
    }

    async fn get(
        &self,
        authorization: Option<HeaderValue>,
        account: Option<&str>,
    ) -> Result<Answered, Fault> {
        let account: Vec<_> = account.map(|a| ("account", a)).into_iter().collect();
        // In a GET each scope is a parameter of its own (distribution's token specification).
        let scopes: Vec<&str> = self.scope.split_ascii_whitespace().collect();
        let query = self.query(&scopes, &account);
        let text = self.realm.to_string();
        let separator = if self.realm.query().is_some() { '&' } else { '?' };
        let uri = format!("{text}{separator}{query}")
            .parse()
            .map_err(|_| self.fault("its URL with the scope cannot be sent", None))?;
        let mut private = HeaderMap::new();
        private.extend(authorization.map(|value| (AUTHORIZATION, value)));
        self.send(Method::GET, uri, private, Bytes::new()).await
    }

    async fn post(&self, form: &[(&str, &str)]) -> Result<Answered, Fault> {
        let mut form = form.to_vec();
        form.push(("client_id", CLIENT_ID));
        let body = self.query(&[&self.scope], &form);
        self.send(Method::POST, self.realm.clone(), HeaderMap::new(), body.into())
            .await
    }

    async fn send(
        &self,
        method: Method,
        uri: Uri,
        private: HeaderMap,
        body: Bytes,
    ) -> Result<Answered, Fault> {
        let origin = Origin::of(&uri).ok_or_else(|| self.fault("its URL cannot be sent", None))?;
        let same = origin == self.endpoint.origin;
        let tls = &self.endpoint.tls;
        let mut public = HeaderMap::new();
        public.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if method == Method::POST {
            public.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            );
        }
        let own = Route {
            tls: if same { tls.own.clone() } else { tls.realm.clone() },
            connect: self.endpoint.connect,
            into_machine: same || self.in_machine,
        };
        let foreign = Route {
            tls: tls.realm.clone(),
            connect: self.endpoint.connect,
            into_machine: false,
        };
        let hop = Hop {
            method,
            uri,
            public,
            private,
            body,
            home: origin,
            own,
            foreign,
        };
        match self.session.follow(hop).await {
            Ok((response, foreign)) => Ok(Answered { response, foreign }),
            Err(fault) => Err(self.fault("it cannot be asked", Some(fault))),
        }
    }

    /// Whether a refusal's words may be shown. Any registry can name any service as its own, also one that only this machine
    /// reaches: its words are shown if it is the registry itself, or was trusted with a credential.
    fn may_quote(&self, foreign: bool, secret: &Secret) -> bool {
        let own = Origin::of(&self.realm).as_ref() == Some(&self.endpoint.origin);
        let entrusted = matches!(secret, Secret::Basic { .. } | Secret::Identity(_));
        !foreign && (own || entrusted)
    }

    async fn accept(&self, answer: Answered, secret: &Secret) -> Result<Grant, Fault> {
        let wait = self.session.limits.document.min(self.session.limits.stall);
        let quote = self.may_quote(answer.foreign, secret);
        let response = answer.response;
        if response.status != StatusCode::OK {
            let fault = crate::request::status_fault(response, secret.strings(), quote, wait).await;
            return Err(self.fault("it refused", Some(fault)));
        }
        let body = response
            .body
            .whole(MAX_ANSWER, wait)
            .await
            .map_err(|fault| self.fault("its answer cannot be read", Some(fault)))?;
        // serde's message could quote the token.
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| self.fault("its answer is not the JSON of a token", None))?;
        let token = [answer.token, answer.access_token]
            .into_iter()
            .flatten()
            .find(|t| !t.is_empty());
        let token = token.filter(|t| t.len() <= MAX_TOKEN && t.bytes().all(|b| b.is_ascii_graphic()));
        let header = token
            .and_then(|t| sensitive(&format!("Bearer {t}")))
            .ok_or_else(|| self.fault("its answer has no usable token", None))?;
        let life = answer
            .expires_in
            .filter(|s| *s > 0.0)
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
            .unwrap_or(DEFAULT_LIFE);
        // A tenth is kept back for clocks and for the request that is under way.
        Ok(Grant {
            header,
            expires: Some(Instant::now() + life.min(LONGEST_LIFE).mul_f64(0.9)),
        })
    }

    fn fault(&self, reason: &str, source: Option<Fault>) -> Fault {
        Fault::Token {
            reason: format!(
                "token service {}: {reason}",
                crate::transport::origin(&self.realm)
            ),
            source: source.map(Box::new),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scopes_shrink_to_pull() {
        assert_eq!(only_pull("repository:a/b:pull,push"), "repository:a/b:pull");
        assert_eq!(
            only_pull("repository(plugin):a:*  repository:c:delete"),
            "repository(plugin):a:pull repository:c:pull"
        );
        assert_eq!(only_pull("aws"), "aws");
    }

    #[test]
    fn services_in_this_machine_are_not_asked_for_a_registry_elsewhere() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        let elsewhere = origin("http://r.io/");
        for (realm, part) in [
            ("http://127.0.0.1/t", "loopback"),
            ("http://[::1]:81/t", "loopback"),
            ("https://[::ffff:127.0.0.1]/t", "loopback"),
            ("http://169.254.169.254/latest", "link-local"),
            ("https://[fe80::1]/t", "link-local"),
            ("http://[::ffff:169.254.169.254]/latest", "link-local"),
            ("http://[fd00:ec2::254]/latest", "metadata"),
        ] {
            let refused = parse_realm(&elsewhere, realm, &Secret::None)
                .unwrap_err()
                .to_string();
            assert!(refused.contains(part), "{realm}: {refused}");
        }
        parse_realm(&elsewhere, "https://10.0.0.1/t", &Secret::None).unwrap();
        parse_realm(
            &origin("http://127.0.0.1:5000/"),
            "http://[::1]:81/t",
            &Secret::None,
        )
        .unwrap();
    }

    #[test]
    fn slots_are_bounded_and_kept_apart() {
        let cache = TokenCache::default();
        let key = |n: usize, credential: u8| Key {
            host: format!("https://h{n}"),
            repository: "r".into(),
            credential: [credential; 32],
        };
        let one = cache.slot(key(0, 1));
        assert!(Arc::ptr_eq(&one, &cache.slot(key(0, 1))));
        assert!(!Arc::ptr_eq(&one, &cache.slot(key(0, 2))));
        for n in 0..3 * MAX_SLOTS {
            cache.slot(key(n, 0));
            assert!(cache.slots.lock().is_ok_and(|s| s.len() <= MAX_SLOTS));
        }
    }
}
