//! `hosts.toml` read into entries. Unknown keys are refused with file and line: a misspelt `ca` that is ignored costs
//! more than one that is named. `push` is understood and has no use here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Error;
use crate::hosts::{Entry, Origin};
use crate::tls::TlsFiles;
use crate::transport::is_loopback;

/// Hosts of one file.
const MAX_HOSTS: usize = 64;

/// Reads a file's text. The order is that of the `[host]` sections, the server last.
pub(super) fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Entry>, Error> {
    let file = File { path, text };
    let root = DeTable::parse(text).map_err(|e| file.refuse(e.span().map(|s| s.start), e.message()))?;
    let root = root.into_inner();
    let mut server = Entry::default_for(registry, TlsFiles::default());
    let own = server.origin.authority.clone();
    let mut sections: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = Vec::new();
    if let Some(value) = root.get("server") {
        let url = file.string(value)?;
        // An empty server means the registry's own address, as in files that templates write.
        if !url.is_empty() {
            server = file.entry(url, value.span().start)?;
            // A server for all registries is nobody's own address, so it is not trusted with their credentials.
            let for_all = path
                .parent()
                .and_then(Path::file_name)
                .is_some_and(|name| name == super::DEFAULT_DIR);
            server.is_registry = !for_all || server.origin.authority == own;
        }
    }
    let mut overridden = false;
    for (key, value) in &root {
        match key.get_ref().as_ref() {
            "server" => {}
            "host" => {
                let DeValue::Table(table) = value.get_ref() else {
                    return Err(file.at(value, "host must be a table"));
                };
                sections.extend(table.iter());
            }
            _ => overridden |= file.setting(&mut server, key.get_ref().as_ref(), key.span().start, value)?,
        }
    }
    if root
        .get("server")
        .is_none_or(|v| v.get_ref().as_str() == Some(""))
        && server.tls != TlsFiles::default()
    {
        // Settings for the registry's own address on loopback mean https, as its certificate files would.
        server.origin = Origin::new(true, &server.origin.authority);
    }
    finish_path(&mut server, overridden);
    sections.sort_by_key(|(key, _)| key.span().start);
    if sections.len() > MAX_HOSTS {
        return Err(file.refuse(
            None,
            &format!("has {} hosts, {MAX_HOSTS} at most are allowed", sections.len()),
        ));
    }
    let mut out = Vec::with_capacity(sections.len() + 1);
    for (key, value) in sections {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(file.at(value, "a host must be a table"));
        };
        let mut entry = file.entry(key.get_ref().as_ref(), key.span().start)?;
        let mut overridden = false;
        for (key, value) in table {
            overridden |= file.setting(&mut entry, key.get_ref().as_ref(), key.span().start, value)?;
        }
        finish_path(&mut entry, overridden);
        // A section for the registry's own address is the registry, with other settings.
        entry.is_registry =
            entry.origin.authority == own || (server.is_registry && entry.origin == server.origin);
        out.push(entry);
    }
    // The server's own settings, if a section did not already give them.
    if !out
        .iter()
        .any(|e| e.origin == server.origin && e.path == server.path && e.pull && e.resolve)
    {
        out.push(server);
    }
    Ok(out)
}

fn finish_path(entry: &mut Entry, overridden: bool) {
    let bare = entry.path.trim_end_matches('/');
    entry.path = if overridden || bare.ends_with("/v2") {
        bare.to_owned()
    } else {
        format!("{bare}/v2")
    };
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn refuse(&self, offset: Option<usize>, reason: &str) -> Error {
        let line = offset.map(|at| {
            self.text[..at.min(self.text.len())]
                .bytes()
                .filter(|b| *b == b'\n')
                .count()
                + 1
        });
        Error::Hosts {
            path: self.path.to_owned(),
            line,
            reason: crate::text::clip(reason, 300),
        }
    }

    fn at<T>(&self, value: &Spanned<T>, reason: &str) -> Error {
        self.refuse(Some(value.span().start), reason)
    }

    /// A server or host URL, with or without scheme.
    fn entry(&self, url: &str, at: usize) -> Result<Entry, Error> {
        let refuse = |reason: &str| self.refuse(Some(at), &format!("{url:?} {reason}"));
        let full = if url.contains("://") {
            url.to_owned()
        } else {
            let host = url.split(['/', ':']).next().unwrap_or("");
            format!("{}://{url}", if is_loopback(host) { "http" } else { "https" })
        };
        let uri: Uri = full.parse().map_err(|_| refuse("is not a URL"))?;
        if uri.query().is_some() {
            return Err(refuse("has a query, which a host may not have"));
        }
        let origin =
            Origin::of(&uri).ok_or_else(|| refuse("is not an http or https URL without user name"))?;
        crate::reference::check_registry(&origin.authority).map_err(|reason| refuse(&reason))?;
        let path = uri.path().to_owned();
        Ok(Entry {
            origin,
            path,
            pull: true,
            resolve: true,
            headers: Vec::new(),
            tls: TlsFiles::default(),
            dial_timeout: None,
            is_registry: false,
        })
    }

    /// One key of a host's section; true if it says that the path is overridden.
    fn setting(
        &self,
        entry: &mut Entry,
        key: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<bool, Error> {
        match key {
            "capabilities" => self.capabilities(entry, value)?,
            "ca" => entry.tls.ca = self.strings(value)?.into_iter().map(|p| self.file(p)).collect(),
            "client" => entry.tls.client = self.client(value)?,
            "skip_verify" => entry.tls.skip_verify = self.boolean(value)?,
            "override_path" => return self.boolean(value),
            "header" => entry.headers = self.headers(value)?,
            "dial_timeout" => {
                let duration = parse_duration(self.string(value)?);
                entry.dial_timeout = Some(duration.ok_or_else(|| {
                    self.at(value, "dial_timeout is no duration such as \"3s\" or \"500ms\"")
                })?);
            }
            _ => {
                let known = "capabilities, ca, client, skip_verify, header, override_path, dial_timeout; server and host at the top";
                return Err(self.refuse(Some(at), &format!("unknown key {key:?}; known are {known}")));
            }
        }
        Ok(false)
    }

    fn capabilities(&self, entry: &mut Entry, value: &Spanned<DeValue<'_>>) -> Result<(), Error> {
        (entry.pull, entry.resolve) = (false, false);
        for word in self.strings(value)? {
            match word {
                "pull" => entry.pull = true,
                "resolve" => entry.resolve = true,
                "push" => {}
                _ => {
                    return Err(self.at(
                        value,
                        &format!("unknown capability {word:?}; known are pull, resolve, push"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// A path, a list of paths, or a list of [certificate, key] pairs.
    fn client(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(PathBuf, Option<PathBuf>)>, Error> {
        let wanted = "client must be a file, a list of files, or a list of [certificate, key] pairs";
        let items = match value.get_ref() {
            DeValue::String(one) => return Ok(vec![(self.file(one), None)]),
            DeValue::Array(items) => items,
            _ => return Err(self.at(value, wanted)),
        };
        let mut out = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::String(one) => out.push((self.file(one), None)),
                DeValue::Array(_) => match self.strings(item)?.as_slice() {
                    [cert] | [cert, ""] => out.push((self.file(cert), None)),
                    [cert, key] => out.push((self.file(cert), Some(self.file(key)))),
                    _ => return Err(self.at(item, wanted)),
                },
                _ => return Err(self.at(item, wanted)),
            }
        }
        Ok(out)
    }

    fn headers(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.at(value, "header must be a table"));
        };
        let mut out = Vec::new();
        for (key, value) in table {
            let name = HeaderName::from_bytes(key.get_ref().as_bytes())
                .map_err(|_| self.at(key, "this is no header name"))?;
            for text in self.strings(value)? {
                // Often a credential: never shown.
                out.push((
                    name.clone(),
                    crate::auth::sensitive(text)
                        .ok_or_else(|| self.at(value, "this header has a value that cannot be sent"))?,
                ));
            }
        }
        Ok(out)
    }

    fn file(&self, path: &str) -> PathBuf {
        // `join` keeps an absolute path as it is.
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn string<'v>(&self, value: &'v Spanned<DeValue<'_>>) -> Result<&'v str, Error> {
        value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.at(value, "a string is wanted here"))
    }

    fn strings<'v>(&self, value: &'v Spanned<DeValue<'_>>) -> Result<Vec<&'v str>, Error> {
        match value.get_ref() {
            DeValue::String(one) => Ok(vec![one]),
            DeValue::Array(items) => items.iter().map(|item| self.string(item)).collect(),
            _ => Err(self.at(value, "a string or a list of strings is wanted here")),
        }
    }

    fn boolean(&self, value: &Spanned<DeValue<'_>>) -> Result<bool, Error> {
        value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.at(value, "true or false is wanted here"))
    }
}

/// A duration as Go writes it: `1m30s`, `500ms`, `2.5s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(value * unit).ok()?)?;
        rest = &rest[end..];
    }
    (total > Duration::ZERO).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("2.5s"), Some(Duration::from_millis(2500)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "5", "s", "-1s", "1d", "0s", "1.2.3s", "9e9h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
