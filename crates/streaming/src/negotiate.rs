//! From an HTTP request to the protocol that both sides speak, or to a refusal. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::ws;

const SPDY: &str = "SPDY/3.1";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a remote command's protocols differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// The status comes as JSON (since v4).
    pub json: bool,
    /// There is a stream of terminal sizes (since v3).
    pub resize: bool,
}

const V1: Remote = Remote {
    json: false,
    resize: false,
};
const V3: Remote = Remote {
    json: false,
    resize: true,
};
const V4: Remote = Remote {
    json: true,
    resize: true,
};

const SPDY_REMOTE: &[(&str, Remote)] = &[
    ("v4.channel.k8s.io", V4),
    ("v3.channel.k8s.io", V3),
    ("v2.channel.k8s.io", V1),
    ("channel.k8s.io", V1),
];

const BINARY: ws::Codec = ws::Codec {
    base64: false,
    close_signal: false,
};
const BASE64: ws::Codec = ws::Codec {
    base64: true,
    close_signal: false,
};
const CLOSING: ws::Codec = ws::Codec {
    base64: false,
    close_signal: true,
};

/// The first one is for clients that name none. In all of them channel 4 takes sizes.
const WS_REMOTE: &[(&str, ws::Codec, Remote)] = &[
    ("", BINARY, V3),
    ("v5.channel.k8s.io", CLOSING, V4),
    ("v4.channel.k8s.io", BINARY, V4),
    ("v4.base64.channel.k8s.io", BASE64, V4),
    ("v3.channel.k8s.io", BINARY, V3),
    ("v2.channel.k8s.io", BINARY, V3),
    ("channel.k8s.io", BINARY, V3),
    ("base64.channel.k8s.io", BASE64, V3),
];

const WS_FORWARD: &[(&str, ws::Codec)] = &[
    ("", BINARY),
    ("v4.channel.k8s.io", BINARY),
    ("v4.base64.channel.k8s.io", BASE64),
];

/// How the client's streams are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Spdy,
    /// SPDY within WebSocket.
    Tunnel,
    WebSocket(ws::Codec),
}

/// What was agreed upon, and the headers that say so.
#[derive(Debug)]
pub struct Agreed {
    pub transport: Transport,
    /// For commands only.
    pub remote: Remote,
    pub headers: HeaderMap,
}

/// A request that cannot be upgraded.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub text: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refused {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            headers: Vec::new(),
        }
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Command,
    Forward,
}

pub fn negotiate(request: &HeaderMap, purpose: Purpose) -> Result<Agreed, Refused> {
    let upgrade = request
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if !list(request, &header::CONNECTION).any(|v| v.eq_ignore_ascii_case("upgrade")) || upgrade.is_empty() {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "an upgrade to SPDY/3.1 or websocket is required",
        ));
    }
    if upgrade.eq_ignore_ascii_case("websocket") {
        websocket(request, purpose)
    } else if upgrade.eq_ignore_ascii_case(SPDY) {
        spdy(request, purpose)
    } else {
        Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "the only upgrades are to SPDY/3.1 and websocket",
        ))
    }
}

fn spdy(request: &HeaderMap, purpose: Purpose) -> Result<Agreed, Refused> {
    let known: &[(&str, Remote)] = match purpose {
        Purpose::Command => SPDY_REMOTE,
        Purpose::Forward => &[(PORT_FORWARD, V1)],
    };
    let mut asked = list(request, &STREAM_PROTOCOL).peekable();
    if asked.peek().is_none() {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "the header X-Stream-Protocol-Version is missing",
        ));
    }
    let Some((name, remote)) = asked.find_map(|asked| known.iter().find(|(name, _)| *name == asked)) else {
        let mut refused = Refused::new(
            StatusCode::FORBIDDEN,
            "none of the stream protocols asked for is spoken here",
        );
        for (name, _) in known {
            refused.headers.push((ACCEPTED, HeaderValue::from_static(name)));
        }
        return Err(refused);
    };
    let mut headers = upgraded(SPDY);
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok(Agreed {
        transport: Transport::Spdy,
        remote: *remote,
        headers,
    })
}

fn websocket(request: &HeaderMap, purpose: Purpose) -> Result<Agreed, Refused> {
    if request
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|v| v != "13")
    {
        let mut refused = Refused::new(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is wanted");
        refused
            .headers
            .push((header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refused);
    }
    let accept = request
        .get(header::SEC_WEBSOCKET_KEY)
        .and_then(|key| ws::accept_key(key.as_bytes()))
        .and_then(|accept| HeaderValue::try_from(accept).ok())
        .ok_or_else(|| Refused::new(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing or no key"))?;
    let mut asked: Vec<&str> = list(request, &header::SEC_WEBSOCKET_PROTOCOL).collect();
    if asked.is_empty() {
        asked.push("");
    }
    let agreed = asked.into_iter().find_map(|asked| match purpose {
        Purpose::Command => WS_REMOTE
            .iter()
            .find(|(name, ..)| *name == asked)
            .map(|(name, codec, remote)| (*name, Transport::WebSocket(*codec), *remote)),
        Purpose::Forward if asked == TUNNEL => Some((TUNNEL, Transport::Tunnel, V1)),
        Purpose::Forward => WS_FORWARD
            .iter()
            .find(|(name, _)| *name == asked)
            .map(|(name, codec)| (*name, Transport::WebSocket(*codec), V1)),
    });
    let Some((name, transport, remote)) = agreed else {
        return Err(Refused::new(
            StatusCode::FORBIDDEN,
            "none of the WebSocket protocols asked for is spoken here",
        ));
    };
    let mut headers = upgraded("websocket");
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !name.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok(Agreed {
        transport,
        remote,
        headers,
    })
}

fn upgraded(to: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(to));
    headers
}

/// The values of a header that may come several times and hold several, parted by commas.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(headers: &[(&'static str, &'static str)], purpose: Purpose) -> Result<(Transport, String), u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        negotiate(&map, purpose)
            .map(|a| {
                let chosen = a
                    .headers
                    .get(STREAM_PROTOCOL)
                    .or(a.headers.get(header::SEC_WEBSOCKET_PROTOCOL));
                (
                    a.transport,
                    chosen.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default(),
                )
            })
            .map_err(|r| r.status.as_u16())
    }

    #[test]
    fn spdy_protocols() {
        let up = [("connection", "keep-alive, Upgrade"), ("upgrade", "spdy/3.1")];
        let with = |more: &[(&'static str, &'static str)]| [&up, more].concat();
        let version = "x-stream-protocol-version";
        let go = |more: &[(&'static str, &'static str)], purpose| ask(&with(more), purpose);
        assert_eq!(go(&[], Purpose::Command), Err(400));
        assert_eq!(go(&[(version, "v9.channel.k8s.io")], Purpose::Command), Err(403));
        assert_eq!(
            go(
                &[
                    (version, "v9.channel.k8s.io"),
                    (version, "v3.channel.k8s.io, channel.k8s.io")
                ],
                Purpose::Command
            ),
            Ok((Transport::Spdy, "v3.channel.k8s.io".into()))
        );
        assert_eq!(go(&[(version, "v4.channel.k8s.io")], Purpose::Forward), Err(403));
        assert_eq!(
            go(&[(version, PORT_FORWARD)], Purpose::Forward),
            Ok((Transport::Spdy, PORT_FORWARD.into()))
        );
    }

    #[test]
    fn websocket_protocols() {
        let up = [
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let go = |protocol: &'static str, purpose| {
            ask(
                &[&up[..], &[("sec-websocket-protocol", protocol)]].concat(),
                purpose,
            )
        };
        let ok = |codec, name: &str| Ok((Transport::WebSocket(codec), name.to_owned()));
        assert_eq!(
            go("v5.channel.k8s.io, v4.channel.k8s.io", Purpose::Command),
            ok(CLOSING, "v5.channel.k8s.io")
        );
        assert_eq!(
            go("base64.channel.k8s.io", Purpose::Command),
            ok(BASE64, "base64.channel.k8s.io")
        );
        assert_eq!(go("v7.channel.k8s.io", Purpose::Command), Err(403));
        assert_eq!(
            go(TUNNEL, Purpose::Forward),
            Ok((Transport::Tunnel, TUNNEL.into()))
        );
        assert_eq!(go(TUNNEL, Purpose::Command), Err(403));
        assert_eq!(ask(&up, Purpose::Command), ok(BINARY, ""));
        assert_eq!(ask(&up[..3], Purpose::Command), Err(400));
        assert_eq!(ask(&up[..2], Purpose::Command), Err(426));
    }

    #[test]
    fn no_upgrade() {
        assert_eq!(ask(&[], Purpose::Command), Err(400));
        assert_eq!(ask(&[("upgrade", "SPDY/3.1")], Purpose::Command), Err(400));
        assert_eq!(
            ask(&[("connection", "upgrade"), ("upgrade", "h2c")], Purpose::Command),
            Err(400)
        );
    }
}
