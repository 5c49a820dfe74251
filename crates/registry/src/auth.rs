//! Credentials: the six forms that CRI gives, and which host may see them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::reference::Reference;

/// A credential as CRI's `AuthConfig` has it. Empty strings mean "not given". Its `Debug` shows no secret.
///
/// The first form that is given is used: `registry_token` (a bearer token, sent as it is), `identity_token` (exchanged
/// at the token service), `username` and `password`, `auth` (the base64 of `username:password`).
///
/// It is sent to the registry of the reference only: its own address or the `server` of its `hosts.toml`, and the token
/// service that this registry names, over https or on the registry's own host. If `server_address` is given and names
/// another host (or, with a path, another repository), the registry does not get it either; a mirror that it names does.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Auth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    None,
    Basic { username: String, password: String },
    Identity(String),
    Bearer(String),
}

/// A checked credential with what it is good for.
#[derive(Clone)]
pub(crate) struct Credential {
    pub secret: Secret,
    /// Tells credentials apart in the token cache without holding them there.
    pub id: [u8; 32],
    /// The only host that may see it, if it said so: `host[:port]`.
    only: Option<String>,
    registry: String,
}

impl Auth {
    pub(crate) fn credential(auth: Option<&Self>, reference: &Reference) -> Result<Credential, Error> {
        let registry = normal_host(reference.registry());
        let anonymous = |only| Credential {
            secret: Secret::None,
            id: [0; 32],
            only,
            registry: registry.clone(),
        };
        let Some(auth) = auth else {
            return Ok(anonymous(None));
        };
        let (only, path) = split_server(&auth.server_address);
        let in_path = path.is_empty()
            || reference.repository() == path
            || reference
                .repository()
                .strip_prefix(path.as_str())
                .is_some_and(|rest| rest.starts_with('/'));
        if !in_path {
            return Ok(anonymous(only));
        }
        let secret = auth.secret().map_err(|reason| Error::Credential {
            registry: reference.registry().into(),
            reason,
        })?;
        let id = secret.id();
        Ok(Credential {
            secret,
            id,
            only,
            registry,
        })
    }

    fn secret(&self) -> Result<Secret, &'static str> {
        let secret = if !self.registry_token.is_empty() {
            Secret::Bearer(self.registry_token.clone())
        } else if !self.identity_token.is_empty() {
            Secret::Identity(self.identity_token.clone())
        } else if !self.username.is_empty() || !self.password.is_empty() {
            Secret::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            }
        } else if self.auth.is_empty() {
            Secret::None
        } else {
            let text = self.auth.trim().trim_end_matches('=');
            let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| "auth is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "auth is not UTF-8 inside its base64")?;
            let (username, password) = text
                .split_once(':')
                .ok_or("auth has no colon between username and password")?;
            // Some clients pad with zero bytes before they encode.
            Secret::Basic {
                username: username.into(),
                password: password.trim_matches('\0').into(),
            }
        };
        Ok(match secret {
            // How Docker's stores mark that the password is an identity token.
            Secret::Basic { username, password } if username == "<token>" => Secret::Identity(password),
            other => other,
        })
        .and_then(|secret| {
            let clean = match &secret {
                Secret::None => true,
                Secret::Basic { username, password } => {
                    !username.contains([':', '\r', '\n', '\0']) && !password.contains(['\r', '\n', '\0'])
                }
                Secret::Identity(token) => !token.bytes().any(|b| b.is_ascii_control()),
                Secret::Bearer(token) => token.bytes().all(|b| b.is_ascii_graphic()),
            };
            if clean {
                Ok(secret)
            } else {
                Err("it has a character that cannot be sent")
            }
        })
    }
}

impl Secret {
    fn id(&self) -> [u8; 32] {
        let (tag, parts): (u8, [&str; 2]) = match self {
            Self::None => return [0; 32],
            Self::Basic { username, password } => (1, [username, password]),
            Self::Identity(token) => (2, [token, ""]),
            Self::Bearer(token) => (3, [token, ""]),
        };
        let mut hash = Sha256::new();
        hash.update([tag]);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// What must not appear in any message.
    pub fn strings(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::Basic { username, password } => vec![
                password.clone(),
                STANDARD.encode(format!("{username}:{password}")),
            ],
            Self::Identity(token) | Self::Bearer(token) => vec![token.clone()],
        }
    }
}

impl Credential {
    /// The credential as the host `authority` may use it; `is_registry` if it is the reference's own registry.
    pub fn for_host(&self, authority: &str, is_registry: bool) -> (&Secret, [u8; 32]) {
        const NONE: &Secret = &Secret::None;
        let allowed = match &self.only {
            None => is_registry,
            Some(only) => {
                (is_registry && same_host(only, &self.registry)) || same_host(only, &normal_host(authority))
            }
        };
        if allowed {
            (&self.secret, self.id)
        } else {
            (NONE, [0; 32])
        }
    }
}

/// `Basic` for `username:password`.
pub(crate) fn basic_header(pair: &str) -> Option<HeaderValue> {
    sensitive(&format!("Basic {}", STANDARD.encode(pair)))
}

pub(crate) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Host and path of a server address as Docker's configuration files write it: with or without scheme, `/v1/` or `/v2/`.
fn split_server(address: &str) -> (Option<String>, String) {
    let address = address.trim();
    if address.is_empty() {
        return (None, String::new());
    }
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    (Some(normal_host(host)), path.to_owned())
}

fn normal_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        _ => host,
    }
}

fn same_host(a: &str, b: &str) -> bool {
    a == b || a.strip_suffix(":443") == Some(b) || b.strip_suffix(":443") == Some(a)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reference() -> Reference {
        Reference::parse("r.example/team/app:1").unwrap()
    }

    fn basic(server: &str) -> Auth {
        Auth {
            username: "u".into(),
            password: "p".into(),
            server_address: server.into(),
            ..Auth::default()
        }
    }

    #[test]
    fn forms() {
        let cases = [
            (Auth::default(), "none"),
            (basic(""), "basic u p"),
            (
                Auth {
                    auth: "dTpw".into(),
                    ..Auth::default()
                },
                "basic u p",
            ),
            (
                Auth {
                    auth: STANDARD.encode("u:p:q\0\0"),
                    ..Auth::default()
                },
                "basic u p:q",
            ),
            (
                Auth {
                    username: "<token>".into(),
                    password: "id".into(),
                    ..Auth::default()
                },
                "identity id",
            ),
            (
                Auth {
                    identity_token: "id".into(),
                    ..basic("")
                },
                "identity id",
            ),
            (
                Auth {
                    registry_token: "rt".into(),
                    ..basic("")
                },
                "bearer rt",
            ),
        ];
        for (auth, wanted) in cases {
            let got = match Auth::credential(Some(&auth), &reference()).unwrap().secret {
                Secret::None => "none".to_owned(),
                Secret::Basic { username, password } => format!("basic {username} {password}"),
                Secret::Identity(t) => format!("identity {t}"),
                Secret::Bearer(t) => format!("bearer {t}"),
            };
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn bad_ones_are_refused_without_being_quoted() {
        for auth in [
            Auth {
                auth: "%%secret".into(),
                ..Auth::default()
            },
            Auth {
                auth: STANDARD.encode("secret"),
                ..Auth::default()
            },
            Auth {
                registry_token: "secret\r\nX: y".into(),
                ..Auth::default()
            },
            Auth {
                username: "secret:".into(),
                password: "x".into(),
                ..Auth::default()
            },
        ] {
            let error = Auth::credential(Some(&auth), &reference()).err().unwrap();
            assert!(
                !format!("{error} {error:?} {auth:?}").contains("secret"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn who_may_see_it() {
        let seen = |server: &str, host: &str, is_registry: bool| {
            let credential = Auth::credential(Some(&basic(server)), &reference()).unwrap();
            *credential.for_host(host, is_registry).0 != Secret::None
        };
        assert!(seen("", "r.example", true));
        assert!(!seen("", "mirror.example", false));
        assert!(seen("https://r.example/v2/", "r.example", true));
        assert!(seen("r.example:443", "r.example", true));
        assert!(!seen("other.example", "r.example", true));
        assert!(seen("mirror.example:5000", "mirror.example:5000", false));
        assert!(!seen("mirror.example:5000", "mirror.example:5001", false));
        assert!(seen("r.example/team", "r.example", true));
        assert!(!seen("r.example/tea", "r.example", true));
        assert!(!seen("r.example/other", "r.example", true));
        assert!(seen("r.example", "server-of-hosts-toml.example", true));
    }

    #[test]
    fn docker_hub_has_several_names() {
        let reference = Reference::parse("busybox").unwrap();
        let credential = Auth::credential(Some(&basic("https://index.docker.io/v1/")), &reference).unwrap();
        assert!(*credential.for_host("registry-1.docker.io", true).0 != Secret::None);
    }

    #[test]
    fn different_credentials_have_different_ids() {
        let id = |u: &str, p: &str| {
            Secret::Basic {
                username: u.into(),
                password: p.into(),
            }
            .id()
        };
        assert_ne!(id("ab", "c"), id("a", "bc"));
        assert_eq!(id("a", "b"), id("a", "b"));
    }
}
