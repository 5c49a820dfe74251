//! `WWW-Authenticate`: several challenges in one header or in several, with quoted parameters (RFC 9110, 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Longer headers are cut here, more challenges ignored: hyper already bounds the whole head.
const MAX_LEN: usize = 16 << 10;
const MAX_CHALLENGES: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    Basic,
    /// A scheme that is not spoken here.
    Other(String),
}

/// All challenges of a response. Never fails: what cannot be read is left out.
pub(crate) fn read(headers: &HeaderMap) -> Vec<Challenge> {
    let mut out = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let bytes = value.as_bytes();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LEN)]);
        parse(&text, &mut out);
    }
    out.truncate(MAX_CHALLENGES);
    out
}

fn parse(text: &str, out: &mut Vec<Challenge>) {
    let mut rest = text;
    let mut scheme: Option<(String, Vec<(String, String)>)> = None;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_ascii_whitespace());
        if rest.is_empty() {
            break;
        }
        let (word, after) = token(rest);
        if word.is_empty() {
            // Not a token: skip one character rather than give up, other challenges may follow.
            rest = &rest[rest.chars().next().map_or(1, char::len_utf8)..];
            continue;
        }
        let spaced = after.trim_start();
        if let Some(value) = spaced
            .strip_prefix('=')
            .filter(|v| scheme.is_some() && !v.starts_with('='))
        {
            let (value, after) = parameter(value.trim_start());
            if let Some((_, parameters)) = &mut scheme {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            finish(scheme.replace((word.to_ascii_lowercase(), Vec::new())), out);
            rest = after.trim_start_matches('=');
        }
    }
    finish(scheme, out);
}

fn finish(scheme: Option<(String, Vec<(String, String)>)>, out: &mut Vec<Challenge>) {
    let Some((name, parameters)) = scheme else { return };
    let get = |key: &str| {
        parameters
            .iter()
            .find(|(k, v)| k == key && !v.is_empty())
            .map(|(_, v)| v.clone())
    };
    match (name.as_str(), get("realm")) {
        ("bearer", Some(realm)) => out.push(Challenge::Bearer {
            realm,
            service: get("service"),
            scope: get("scope"),
        }),
        ("basic", _) => out.push(Challenge::Basic),
        _ => out.push(Challenge::Other(crate::text::clip(&name, 40))),
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A token, or a quoted string with backslash escapes; an unclosed quote ends with the text.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c == ',' || c.is_ascii_whitespace())
            .unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn all(text: &str) -> Vec<Challenge> {
        let mut out = Vec::new();
        parse(text, &mut out);
        out
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn the_forms_of_the_field() {
        assert_eq!(
            all(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#
            ),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/x:pull")
            )]
        );
        assert_eq!(
            all(r#"BEARER Realm = "a\"b" , scope=aws"#),
            [bearer("a\"b", None, Some("aws"))]
        );
        assert_eq!(
            all(r#"Basic realm="x, Bearer y", Bearer realm="u",error="invalid_token""#),
            [Challenge::Basic, bearer("u", None, None)]
        );
        assert_eq!(
            all("Negotiate, Basic"),
            [Challenge::Other("negotiate".into()), Challenge::Basic]
        );
        assert_eq!(
            all("Negotiate abc== , Basic realm=x").last(),
            Some(&Challenge::Basic)
        );
        assert_eq!(all("Bearer"), [Challenge::Other("bearer".into())]);
        assert_eq!(all(r#"Bearer realm="open"#), [bearer("open", None, None)]);
        assert_eq!(all(""), []);
        assert_eq!(all("\u{7f}\"=,,= Basic"), [Challenge::Basic]);
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "\\PC{0,200}") {
            let _ = all(&text);
        }

        #[test]
        fn quoting_is_undone(realm in "[ -~]{1,40}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(all(&format!("Bearer realm=\"{quoted}\",service=s")), [bearer(&realm, Some("s"), None)]);
        }
    }
}
