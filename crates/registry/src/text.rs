//! Making foreign text safe to show: bounded, on one line, without control characters or secrets.

/// At most `max` characters of `text` with control characters replaced and white space collapsed.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    let mut space = false;
    for c in text.chars() {
        if c.is_whitespace() {
            space = !out.is_empty();
            continue;
        }
        if count >= max {
            out.push('…');
            break;
        }
        if space {
            out.push(' ');
            count += 1;
            space = false;
        }
        out.push(if c.is_control() || is_invisible(c) { '?' } else { c });
        count += 1;
    }
    out
}

/// For a value in a query or a form.
pub(crate) fn percent_encode(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// Direction overrides and zero-width characters can make a line of a terminal say something else.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A registry's error body as one line: the OCI error format if it is that, else its first words.
pub(crate) fn error_body(body: &[u8], secrets: &[&str]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Body>(body) {
        Ok(body) if !body.errors.is_empty() => {
            let items: Vec<String> = body
                .errors
                .iter()
                .take(3)
                .map(|e| format!("{} {}", e.code, e.message))
                .collect();
            items.join("; ")
        }
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    // A hostile or careless registry may echo what it was sent.
    let mut text = text;
    for secret in secrets.iter().filter(|s| s.len() >= 4) {
        text = text.replace(secret, "***");
    }
    clip(&text, 240)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_and_cleans() {
        assert_eq!(clip("a\u{1b}[31m\n\t b\u{202e}", 20), "a?[31m b?");
        assert_eq!(clip("abcdef", 3), "abc…");
        assert_eq!(clip("", 3), "");
    }

    #[test]
    fn bodies_become_one_line() {
        let json = br#"{"errors":[{"code":"DENIED","message":"no\naccess","detail":{}},{"code":"X"}]}"#;
        assert_eq!(error_body(json, &[]), "DENIED no access; X");
        assert_eq!(error_body(b"<html>oops</html>", &[]), "<html>oops</html>");
        assert_eq!(error_body(b"you sent s3cret!", &["s3cret"]), "you sent ***!");
    }
}
