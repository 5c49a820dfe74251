//! The head of an HTTP/1.1 request, and queries. A parser of its own, because an upgraded connection is handed on as bytes.

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Bytes that a request's head may have: a long command line is in it.
const MAX_HEAD: usize = 256 << 10;

pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Decoded, in order; a name may come more than once.
    pub query: Vec<(String, String)>,
    /// Names as they came.
    pub headers: Vec<(String, String)>,
    /// What came after the head.
    pub rest: Vec<u8>,
}

impl Request {
    /// None when the client has left without asking.
    pub async fn read(connection: &mut TcpStream) -> anyhow::Result<Option<Self>> {
        let mut seen = Vec::new();
        let end = loop {
            if let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            ensure!(
                seen.len() < MAX_HEAD,
                "a request's head has more than {MAX_HEAD} bytes"
            );
            if connection.read_buf(&mut seen).await? == 0 {
                ensure!(seen.is_empty(), "a request ended in its head");
                return Ok(None);
            }
        };
        let rest = seen.split_off(end + 4);
        let head = std::str::from_utf8(&seen[..end]).context("a request's head")?;
        Self::parse(head, rest).map(Some)
    }

    fn parse(head: &str, rest: Vec<u8>) -> anyhow::Result<Self> {
        let mut lines = head.split("\r\n");
        let [method, target, "HTTP/1.1"] =
            lines.next().unwrap_or_default().split(' ').collect::<Vec<_>>()[..]
        else {
            bail!("not a request of HTTP/1.1: {head:.80}");
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = lines
            .map(|line| {
                let (name, value) = line
                    .split_once(':')
                    .with_context(|| format!("header {line:.80}"))?;
                Ok((name.to_owned(), value.trim().to_owned()))
            })
            .collect::<anyhow::Result<_>>()?;
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decoded(name)?, decoded(value)?))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            method: method.to_owned(),
            path: decoded(path)?,
            query,
            headers,
            rest,
        })
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| &value[..])
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| &value[..])
    }

    /// A query's boolean, as Go parses it.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.first(name), Some("1" | "t" | "true" | "True" | "TRUE"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| &value[..])
    }
}

/// application/x-www-form-urlencoded.
fn decoded(text: &str) -> anyhow::Result<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or_default(), bytes.next().unwrap_or_default()];
                let digits =
                    std::str::from_utf8(&digits).with_context(|| format!("percent sign in {text:.80}"))?;
                u8::from_str_radix(digits, 16).with_context(|| format!("percent sign in {text:.80}"))?
            }
            other => other,
        });
    }
    String::from_utf8(out).with_context(|| format!("not text: {text:.80}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_of_kubectl() {
        let head = "POST /api/v1/namespaces/n/pods/p/exec?command=sh&command=-c&command=echo+%22a%2Bb%22&stdin=true&tty=false HTTP/1.1\r\n\
                    Host: 127.0.0.1:1\r\nUpgrade: SPDY/3.1";
        let request = Request::parse(head, b"more".to_vec()).unwrap();
        assert_eq!(
            (&request.method[..], &request.path[..]),
            ("POST", "/api/v1/namespaces/n/pods/p/exec")
        );
        assert_eq!(
            request.all("command").collect::<Vec<_>>(),
            ["sh", "-c", "echo \"a+b\""]
        );
        assert!(request.flag("stdin") && !request.flag("tty") && !request.flag("stdout"));
        assert_eq!(request.header("upgrade"), Some("SPDY/3.1"));
        assert_eq!(request.rest, b"more");
    }

    #[test]
    fn what_is_no_request() {
        for head in [
            "",
            "GET /",
            "GET / HTTP/1.0",
            "GET /%zz HTTP/1.1",
            "GET /%4 HTTP/1.1",
            "GET / HTTP/1.1\r\nno colon",
        ] {
            assert!(Request::parse(head, Vec::new()).is_err(), "{head}");
        }
    }
}
