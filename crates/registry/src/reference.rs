//! Image references: `registry/repository:tag@digest`, with the short forms that Docker made common.
//!
//! A first part without a dot, colon or upper-case letter that is not `localhost` is no registry: `busybox` is
//! `docker.io/library/busybox:latest`, `team/app` is `docker.io/team/app:latest`. The grammar is that of the
//! distribution project's reference package, whose limits hold too: 255 characters of name, 128 of tag.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::Error;

const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_REGISTRY: &str = "index.docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// Nothing valid is longer: name, tag and a sha512 digest with their separators.
const MAX_TOTAL: usize = MAX_NAME + 1 + MAX_TAG + 1 + 7 + 128 + 253 + 7;

/// A checked reference in its full form. It always has a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses any form that a pod specification may hold. A name without tag and digest gets the tag `latest`.
    pub fn parse(input: &str) -> Result<Self, Error> {
        Self::read(input).map_err(|reason| Error::Reference {
            input: crate::text::clip(input, 160),
            reason,
        })
    }

    fn read(input: &str) -> Result<Self, String> {
        if input.is_empty() {
            return Err("is empty".into());
        }
        if input.len() > MAX_TOTAL {
            return Err(format!(
                "has {} characters, {MAX_TOTAL} at most are allowed",
                input.len()
            ));
        }
        if let Some(c) = input
            .chars()
            .find(|c| c.is_whitespace() || c.is_control() || !c.is_ascii())
        {
            return Err(format!("has the character {c:?}, which no reference may have"));
        }
        if input.contains("://") {
            return Err("begins with a scheme; only registry/repository:tag is wanted".into());
        }
        if input.len() == 64 && input.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(
                "is an image id, not a name; write sha256:<id> for the id or name@sha256:<digest>".into(),
            );
        }
        let (rest, digest) = match input.split_once('@') {
            Some((rest, text)) => {
                let digest = Digest::parse(text).map_err(|e| match e {
                    Error::Digest { reason, .. } => format!("has a digest that {reason}"),
                    other => other.to_string(),
                })?;
                (rest, Some(digest))
            }
            None => (input, None),
        };
        // A colon after the last slash separates the tag; one before it belongs to the registry's port.
        let after_slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[after_slash..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, repository) = split_name(name)?;
        check_registry(&registry)?;
        check_repository(&repository)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// The registry as written, with its port; `docker.io` if there was none. Not always the address to talk to.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path, `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// If there is one, it decides what is pulled and the tag is only a label.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, if there is a tag: what `RepoTags` holds.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `registry/repository@digest`: what `RepoDigests` holds.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// Registry and repository of a name, with Docker's defaults put in.
fn split_name(name: &str) -> Result<(String, String), String> {
    let (first, rest) = name
        .split_once('/')
        .map_or((None, name), |(first, rest)| (Some(first), rest));
    let is_registry =
        |s: &str| s == "localhost" || s.contains(['.', ':']) || s.bytes().any(|b| b.is_ascii_uppercase());
    let (registry, path) = match first {
        Some(first) if is_registry(first) => (first, rest),
        Some(_) => (DEFAULT_REGISTRY, name),
        None => (DEFAULT_REGISTRY, rest),
    };
    let registry = if registry == LEGACY_REGISTRY {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if path.is_empty() {
        return Err("has no repository".into());
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    Ok((registry.to_owned(), repository))
}

/// `name[:port]`, `1.2.3.4[:port]` or `[v6][:port]`.
pub(crate) fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, after) = rest
            .split_once(']')
            .ok_or("has an opening bracket in its registry and no closing one")?;
        address
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| format!("has [{address}] as registry, which is no IPv6 address"))?;
        match after.strip_prefix(':') {
            Some(port) => ("", Some(port)),
            None if after.is_empty() => ("", None),
            None => return Err("has text after the bracket of its registry".into()),
        }
    } else {
        let (host, port) = registry
            .split_once(':')
            .map_or((registry, None), |(h, p)| (h, Some(p)));
        if host.is_empty() {
            return Err("has no registry before the colon".into());
        }
        (host, port)
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || !port.parse::<u16>().is_ok_and(|p| p > 0) {
            return Err(format!("has the registry port {port:?}; 1 to 65535 is wanted"));
        }
    }
    if host.len() > 253 {
        return Err("has a registry name of more than 253 characters".into());
    }
    let good = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.is_empty() && !host.split('.').all(good) {
        return Err(format!("has the registry {host:?}, which is no host name"));
    }
    Ok(())
}

fn check_repository(path: &str) -> Result<(), String> {
    if path.len() > MAX_NAME {
        return Err(format!(
            "has a repository of {} characters, {MAX_NAME} at most are allowed",
            path.len()
        ));
    }
    for component in path.split('/') {
        if component.is_empty() {
            return Err("has an empty part in its repository (two slashes, or one at an end)".into());
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!(
                "has upper-case letters in {component:?}; a repository is lower case"
            ));
        }
        if let Some(c) = component
            .chars()
            .find(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit() && !"._-".contains(*c))
        {
            return Err(format!("has {c:?} in its repository"));
        }
        // Separators stand between letters or digits: one dot, one or two underscores, any number of dashes.
        let bad_run = component.split(|c: char| c.is_ascii_alphanumeric()).any(|run| {
            !(run.is_empty() || run == "." || run == "_" || run == "__" || run.bytes().all(|b| b == b'-'))
        });
        let edge = |b: Option<u8>| b.is_none_or(|b| !b.is_ascii_alphanumeric());
        if bad_run || edge(component.bytes().next()) || edge(component.bytes().next_back()) {
            return Err(format!(
                "has {component:?} in its repository; single separators must stand between letters or digits"
            ));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    if tag.is_empty() {
        return Err("has a colon and no tag after it".into());
    }
    if tag.len() > MAX_TAG {
        return Err(format!(
            "has a tag of {} characters, {MAX_TAG} at most are allowed",
            tag.len()
        ));
    }
    if tag.starts_with(['.', '-']) {
        return Err(format!("has the tag {tag:?}, which begins with a separator"));
    }
    match tag
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c))
    {
        Some(c) => Err(format!("has {c:?} in its tag")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
