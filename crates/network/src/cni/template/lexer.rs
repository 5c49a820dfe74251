//! Text and actions, and the words of an action.

use super::Fault;

/// A piece of the file.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// What is between the braces, and the line it begins in.
    Action(usize, Vec<Word>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// `if`, `len`, `true`.
    Name(String),
    /// `.PodCIDR`; `.` alone has no name.
    Field(String),
    /// `$x`; `$` alone has no name.
    Variable(String),
    /// A field of what stands right before it, as in `$.PodCIDR`.
    Chain(String),
    Text(String),
    Number(i64),
    Open,
    Close,
    /// `:=`
    Define,
    Comma,
}

/// Cuts a file into pieces; comments are gone, and the space that `{{-` and `-}}` take away.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, Fault> {
    let mut out = Vec::new();
    let (mut rest, mut line, mut trim) = (text, 1, false);
    while let Some(at) = rest.find("{{") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        let trims_left = after.starts_with('-') && after[1..].starts_with([' ', '\t', '\r', '\n']);
        let kept = if trims_left { before.trim_end() } else { before };
        let kept = if trim { kept.trim_start() } else { kept };
        if !kept.is_empty() {
            out.push(Piece::Text(kept));
        }
        line += before.matches('\n').count();
        let inside = if trims_left { &after[1..] } else { after };
        let action = Action::read(inside, line)?;
        line += after[..after.len() - action.rest.len()].matches('\n').count();
        if let Some((at, words)) = action.words {
            out.push(Piece::Action(at, words));
        }
        (rest, trim) = (action.rest, action.trims_right);
    }
    let kept = if trim { rest.trim_start() } else { rest };
    if !kept.is_empty() {
        out.push(Piece::Text(kept));
    }
    Ok(out)
}

struct Action<'a> {
    /// `None`: a comment.
    words: Option<(usize, Vec<Word>)>,
    trims_right: bool,
    rest: &'a str,
}

impl<'a> Action<'a> {
    fn read(inside: &'a str, line: usize) -> Result<Self, Fault> {
        let begin = inside.trim_start();
        if let Some(comment) = begin.strip_prefix("/*") {
            let unclosed = || Fault::new(line, "a comment is not closed");
            let end = comment.find("*/").ok_or_else(unclosed)?;
            let after = &comment[end + 2..];
            let spaceless = after.trim_start();
            let (trims_right, tail) = match spaceless.strip_prefix("-}}") {
                Some(tail) if spaceless.len() < after.len() => (true, Some(tail)),
                _ => (false, after.strip_prefix("}}").or(spaceless.strip_prefix("}}"))),
            };
            let rest = tail.ok_or_else(|| Fault::new(line, "a comment stands alone in its braces"))?;
            return Ok(Self {
                words: None,
                trims_right,
                rest,
            });
        }
        let mut words = Vec::new();
        let (mut at, mut rest) = (line, inside);
        loop {
            let spaceless = rest.trim_start();
            at += rest[..rest.len() - spaceless.len()].matches('\n').count();
            let spaced = spaceless.len() < rest.len();
            if let Some(rest) = spaceless.strip_prefix("-}}").filter(|_| spaced) {
                return Ok(Self {
                    words: Some((line, words)),
                    trims_right: true,
                    rest,
                });
            }
            if let Some(rest) = spaceless.strip_prefix("}}") {
                return Ok(Self {
                    words: Some((line, words)),
                    trims_right: false,
                    rest,
                });
            }
            let (word, after) = word(spaceless, at)?;
            at += spaceless[..spaceless.len() - after.len()].matches('\n').count();
            let chained = !spaced
                && matches!(
                    words.last(),
                    Some(Word::Variable(_) | Word::Field(_) | Word::Chain(_))
                );
            words.push(match word {
                Word::Field(name) if chained => Word::Chain(name),
                word => word,
            });
            rest = after;
        }
    }
}

fn word(text: &str, line: usize) -> Result<(Word, &str), Fault> {
    let Some(first) = text.chars().next() else {
        return Err(Fault::new(line, "{{ is not closed"));
    };
    let name = |text: &str| {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        text.find(|c| !is_name(c)).unwrap_or(text.len())
    };
    let after = &text[first.len_utf8()..];
    match first {
        '(' => Ok((Word::Open, after)),
        ')' => Ok((Word::Close, after)),
        ',' => Ok((Word::Comma, after)),
        ':' if after.starts_with('=') => Ok((Word::Define, &after[1..])),
        '"' => quoted(after, line),
        '`' => match after.find('`') {
            Some(end) => Ok((Word::Text(after[..end].to_owned()), &after[end + 1..])),
            None => Err(Fault::new(line, "a string is not closed")),
        },
        '.' | '$' => {
            let (word, rest) = after.split_at(name(after));
            let word = word.to_owned();
            let word = if first == '.' {
                Word::Field(word)
            } else {
                Word::Variable(word)
            };
            Ok((word, rest))
        }
        _ if first.is_ascii_digit() || first == '-' => {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (digits, rest) = text.split_at(1 + end);
            let number = digits.parse();
            let number = number.map_err(|_| Fault::new(line, format!("{digits} is no number")))?;
            Ok((Word::Number(number), rest))
        }
        _ if first.is_alphabetic() || first == '_' => {
            let (word, rest) = text.split_at(name(text));
            Ok((Word::Name(word.to_owned()), rest))
        }
        other => Err(Fault::new(line, format!("`{other}` is not supported"))),
    }
}

/// After the opening quote.
fn quoted(text: &str, line: usize) -> Result<(Word, &str), Fault> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Word::Text(out), &text[at + 1..])),
            '\n' => break,
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, c @ ('"' | '\\'))) => out.push(c),
                Some((_, c)) => return Err(Fault::new(line, format!("\\{c} in a string is not supported"))),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(Fault::new(line, "a string is not closed"))
}
