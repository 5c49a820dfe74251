//! Which requests go through a proxy, by the environment variables that everybody honours.

use http::Uri;
use http::uri::{Authority, Scheme};

/// Proxies by scheme, and the hosts that are reached without one. Loopback never uses a proxy.
#[derive(Clone, Default)]
pub struct Proxy {
    http: Option<Target>,
    https: Option<Target>,
    exceptions: Vec<String>,
}

/// One proxy, spoken to in plain HTTP.
#[derive(Clone)]
pub(crate) struct Target {
    /// `host:port`.
    pub address: String,
    /// The value of `Proxy-Authorization`.
    pub authorization: Option<http::HeaderValue>,
}

impl Proxy {
    /// From `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, lower case first. A value that cannot be used is an error text.
    pub fn from_env() -> Result<Self, String> {
        let read = |name: &str| {
            let value = std::env::var(name.to_lowercase()).or_else(|_| std::env::var(name));
            value.ok().filter(|v| !v.trim().is_empty())
        };
        Self::new(
            read("HTTP_PROXY").as_deref(),
            read("HTTPS_PROXY").as_deref(),
            read("NO_PROXY").as_deref(),
        )
    }

    /// From the values that those variables would have.
    pub fn new(http: Option<&str>, https: Option<&str>, exceptions: Option<&str>) -> Result<Self, String> {
        let exceptions = exceptions.unwrap_or("").split(',').map(|s| {
            s.trim()
                .trim_start_matches("*.")
                .trim_start_matches('.')
                .to_ascii_lowercase()
        });
        Ok(Self {
            http: http.map(|v| Target::parse("HTTP_PROXY", v)).transpose()?,
            https: https.map(|v| Target::parse("HTTPS_PROXY", v)).transpose()?,
            exceptions: exceptions.filter(|s| !s.is_empty()).collect(),
        })
    }

    pub(crate) fn select(&self, uri: &Uri) -> Option<&Target> {
        let host = uri.host()?;
        if crate::transport::is_loopback(host) || self.is_exception(host, uri.port_u16()) {
            return None;
        }
        if uri.scheme() == Some(&Scheme::HTTPS) {
            self.https.as_ref()
        } else {
            self.http.as_ref()
        }
    }

    fn is_exception(&self, host: &str, port: Option<u16>) -> bool {
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        let ip: Option<std::net::IpAddr> = host.parse().ok();
        self.exceptions.iter().any(|rule| {
            if rule == "*" {
                return true;
            }
            if let (Some(ip), Some((net, bits))) = (ip, rule.split_once('/')) {
                return in_network(ip, net, bits);
            }
            let rule = match rule.rsplit_once(':') {
                Some((name, digits)) if !name.contains(':') => match digits.parse::<u16>() {
                    Ok(wanted) if Some(wanted) != port => return false,
                    _ => name,
                },
                _ => rule,
            };
            host == rule || (ip.is_none() && host.strip_suffix(rule).is_some_and(|head| head.ends_with('.')))
        })
    }
}

/// Credentials may be part of a proxy's address, so only the bare address is shown.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("http", &self.http.as_ref().map(|t| &t.address))
            .field("https", &self.https.as_ref().map(|t| &t.address))
            .field("exceptions", &self.exceptions)
            .finish()
    }
}

impl Target {
    fn parse(name: &str, value: &str) -> Result<Self, String> {
        let text = if value.contains("://") {
            value.to_owned()
        } else {
            format!("http://{value}")
        };
        let uri: Uri = text.parse().map_err(|_| format!("{name} is not a URL"))?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(format!(
                "{name} has a scheme other than http://, which is not supported"
            ));
        }
        let authority = uri.authority().ok_or_else(|| format!("{name} has no host"))?;
        let host = authority.host();
        if host.is_empty() {
            return Err(format!("{name} has no host"));
        }
        Ok(Self {
            address: format!("{host}:{}", authority.port_u16().unwrap_or(80)),
            authorization: authorization(authority),
        })
    }
}

fn authorization(authority: &Authority) -> Option<http::HeaderValue> {
    let (userinfo, _) = authority.as_str().rsplit_once('@')?;
    let decoded = percent_decode(userinfo);
    crate::auth::basic_header(&decoded)
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let mut ahead = bytes.clone();
        let pair = (b == b'%')
            .then(|| {
                Some((
                    char::from(ahead.next()?).to_digit(16)?,
                    char::from(ahead.next()?).to_digit(16)?,
                ))
            })
            .flatten();
        if let Some((high, low)) = pair {
            out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
            bytes = ahead;
        } else {
            out.push(b);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn in_network(ip: std::net::IpAddr, net: &str, bits: &str) -> bool {
    let Ok(bits) = bits.parse::<u32>() else {
        return false;
    };
    match (ip, net.parse()) {
        (std::net::IpAddr::V4(ip), Ok(std::net::IpAddr::V4(net))) if bits <= 32 => {
            bits == 0 || (u32::from(ip) ^ u32::from(net)) >> (32 - bits) == 0
        }
        (std::net::IpAddr::V6(ip), Ok(std::net::IpAddr::V6(net))) if bits <= 128 => {
            bits == 0 || (u128::from(ip) ^ u128::from(net)) >> (128 - bits) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn selection() {
        let proxy = Proxy::new(
            Some("http://us%40er:p@proxy:3128"),
            Some("secure-proxy:8080"),
            Some("corp.example, .internal,10.0.0.0/8, *.svc,host:5000,2001:db8::/32"),
        )
        .unwrap();
        for (uri, wanted) in [
            ("http://r.io/", Some("proxy:3128")),
            ("https://r.io/", Some("secure-proxy:8080")),
            ("https://corp.example/", None),
            ("https://a.corp.example/", None),
            ("https://notcorp.example/", Some("secure-proxy:8080")),
            ("https://x.internal:1/", None),
            ("https://10.1.2.3/", None),
            ("https://11.1.2.3/", Some("secure-proxy:8080")),
            ("https://[2001:db8::1]/", None),
            ("http://host:5000/", None),
            ("http://host:5001/", Some("proxy:3128")),
            ("http://127.0.0.1:5000/", None),
            ("http://localhost/", None),
            ("http://[::1]:80/", None),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(proxy.select(&uri).map(|t| t.address.as_str()), wanted, "{uri}");
        }
        let header = proxy
            .select(&"http://r.io".parse().unwrap())
            .unwrap()
            .authorization
            .clone()
            .unwrap();
        assert_eq!(header, "Basic dXNAZXI6cA==");
        assert!(!format!("{proxy:?}").contains("us"), "{proxy:?}");
    }

    #[test]
    fn refusals() {
        assert!(
            Proxy::new(Some("socks5://x"), None, None)
                .unwrap_err()
                .contains("HTTP_PROXY")
        );
        assert!(Proxy::new(None, Some("http://"), None).is_err());
    }
}
