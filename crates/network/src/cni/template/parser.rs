//! Pieces to a tree.

use super::lexer::{Piece, Word, pieces};
use super::{Fault, Value};

/// How deep blocks and parentheses may be nested.
const DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(usize, Expr),
    /// `if` and each `else if`; then the `else`.
    If(Vec<Branch>, Vec<Node>),
    With(Branch, Vec<Node>),
    Range {
        branch: Branch,
        /// None, that of the element, or those of index and element.
        names: Vec<String>,
        otherwise: Vec<Node>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Branch {
    pub line: usize,
    pub test: Expr,
    pub body: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Dot,
    Field(Box<Expr>, String),
    Variable(String),
    Literal(Value),
    Call(Function, Vec<Expr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Index,
    Len,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Not,
}

impl Function {
    const ALL: [(&'static str, Self); 11] = [
        ("index", Self::Index),
        ("len", Self::Len),
        ("eq", Self::Eq),
        ("ne", Self::Ne),
        ("lt", Self::Lt),
        ("le", Self::Le),
        ("gt", Self::Gt),
        ("ge", Self::Ge),
        ("and", Self::And),
        ("or", Self::Or),
        ("not", Self::Not),
    ];

    pub(super) fn name(self) -> &'static str {
        let known = Self::ALL.iter().find(|(_, function)| *function == self);
        known.map_or("", |(name, _)| name)
    }

    fn of(name: &str) -> Option<Self> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name);
        known.map(|(_, function)| *function)
    }
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, Fault> {
    let pieces = pieces(text)?;
    let mut parser = Parser {
        pieces: pieces.into_iter(),
        depth: 0,
    };
    let (nodes, end) = parser.block()?;
    match end {
        End::File => Ok(nodes),
        End::Word(line, word, _) => Err(Fault::new(line, format!("{{{{{word}}}}} without a beginning"))),
    }
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    depth: usize,
}

/// What a block ends with.
enum End {
    File,
    /// `end`, or `else` with what follows it.
    Word(usize, &'static str, Vec<Word>),
}

impl Parser<'_> {
    fn block(&mut self) -> Result<(Vec<Node>, End), Fault> {
        self.depth += 1;
        let mut nodes = Vec::new();
        let end = loop {
            let Some(piece) = self.pieces.next() else {
                break End::File;
            };
            let (line, words) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(line, words) => (line, words),
            };
            if self.depth > DEPTH {
                return Err(Fault::new(line, format!("blocks are more than {DEPTH} deep")));
            }
            let first = match words.first() {
                Some(Word::Name(name)) => name.as_str(),
                Some(_) => "",
                None => return Err(Fault::new(line, "there is nothing in {{}}")),
            };
            match first {
                "end" if words.len() == 1 => break End::Word(line, "end", Vec::new()),
                "else" => break End::Word(line, "else", words[1..].to_vec()),
                "if" => nodes.push(self.if_(line, &words[1..])?),
                "with" => nodes.push(self.with(line, &words[1..])?),
                "range" => nodes.push(self.range(line, &words[1..])?),
                _ => nodes.push(Node::Print(line, expression(line, &words)?)),
            }
        };
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn if_(&mut self, line: usize, test: &[Word]) -> Result<Node, Fault> {
        let mut branches = Vec::new();
        let (mut at, mut test) = (line, expression(line, test)?);
        loop {
            let (body, end) = self.block()?;
            branches.push(Branch { line: at, test, body });
            match end {
                End::File => return Err(unclosed(line, "if")),
                End::Word(_, "end", _) => return Ok(Node::If(branches, Vec::new())),
                End::Word(next, _, words) => match words.first() {
                    None => return Ok(Node::If(branches, self.otherwise(line, "if")?)),
                    Some(Word::Name(name)) if name == "if" => {
                        (at, test) = (next, expression(next, &words[1..])?);
                    }
                    Some(_) => return Err(Fault::new(next, "after else there is only if")),
                },
            }
        }
    }

    fn with(&mut self, line: usize, test: &[Word]) -> Result<Node, Fault> {
        let test = expression(line, test)?;
        let (body, otherwise) = self.body(line, "with")?;
        Ok(Node::With(Branch { line, test, body }, otherwise))
    }

    fn range(&mut self, line: usize, words: &[Word]) -> Result<Node, Fault> {
        let (names, test) = match words {
            [
                Word::Variable(index),
                Word::Comma,
                Word::Variable(value),
                Word::Define,
                rest @ ..,
            ] => (vec![index.clone(), value.clone()], rest),
            [Word::Variable(value), Word::Define, rest @ ..] => (vec![value.clone()], rest),
            rest => (Vec::new(), rest),
        };
        let test = expression(line, test)?;
        let (body, otherwise) = self.body(line, "range")?;
        let branch = Branch { line, test, body };
        Ok(Node::Range {
            branch,
            names,
            otherwise,
        })
    }

    /// A body and what is done instead of it.
    fn body(&mut self, line: usize, what: &str) -> Result<(Vec<Node>, Vec<Node>), Fault> {
        let (body, end) = self.block()?;
        match end {
            End::File => Err(unclosed(line, what)),
            End::Word(_, "end", _) => Ok((body, Vec::new())),
            End::Word(_, _, words) if words.is_empty() => Ok((body, self.otherwise(line, what)?)),
            End::Word(at, ..) => Err(Fault::new(at, format!("else of {what} stands alone"))),
        }
    }

    fn otherwise(&mut self, line: usize, what: &str) -> Result<Vec<Node>, Fault> {
        match self.block()? {
            (body, End::Word(_, "end", _)) => Ok(body),
            (_, End::Word(at, ..)) => Err(Fault::new(at, "a second {{else}}")),
            (_, End::File) => Err(unclosed(line, what)),
        }
    }
}

fn unclosed(line: usize, what: &str) -> Fault {
    Fault::new(line, format!("{what} has no {{{{end}}}}"))
}

/// A whole action, or what follows `if` and the like.
fn expression(line: usize, words: &[Word]) -> Result<Expr, Fault> {
    if words.contains(&Word::Define) {
        return Err(Fault::new(line, "a variable is defined by range alone"));
    }
    let mut words = words.iter();
    let expr = call(line, &mut words, 0)?;
    match words.next() {
        None => Ok(expr),
        Some(Word::Close) => Err(Fault::new(line, "`)` closes nothing")),
        Some(_) => Err(Fault::new(line, "only a function takes arguments")),
    }
}

type Words<'a> = std::slice::Iter<'a, Word>;

/// A function with its arguments, up to the closing parenthesis or the end, or one operand.
fn call(line: usize, words: &mut Words<'_>, depth: usize) -> Result<Expr, Fault> {
    if depth > DEPTH {
        return Err(Fault::new(
            line,
            format!("parentheses are more than {DEPTH} deep"),
        ));
    }
    if let Some(Word::Name(name)) = words.as_slice().first()
        && !matches!(name.as_str(), "true" | "false")
    {
        words.next();
        let unknown = || Fault::new(line, format!("{name:?} is not supported in this template"));
        let function = Function::of(name).ok_or_else(unknown)?;
        let mut arguments = Vec::new();
        while !matches!(words.as_slice().first(), None | Some(Word::Close)) {
            arguments.push(operand(line, words, depth)?);
        }
        if arguments.is_empty() {
            return Err(Fault::new(line, format!("{name} needs arguments")));
        }
        return Ok(Expr::Call(function, arguments));
    }
    operand(line, words, depth)
}

fn operand(line: usize, words: &mut Words<'_>, depth: usize) -> Result<Expr, Fault> {
    let missing = || Fault::new(line, "an operand is missing");
    let mut expr = match words.next().ok_or_else(missing)? {
        Word::Field(name) if name.is_empty() => return Ok(Expr::Dot),
        Word::Field(name) => Expr::Field(Box::new(Expr::Dot), name.clone()),
        Word::Variable(name) => Expr::Variable(name.clone()),
        Word::Text(text) => return Ok(Expr::Literal(Value::Text(text.clone()))),
        Word::Number(number) => return Ok(Expr::Literal(Value::Number(*number))),
        Word::Name(name) if name == "true" || name == "false" => {
            return Ok(Expr::Literal(Value::Truth(name == "true")));
        }
        Word::Name(name) => return Err(Fault::new(line, format!("{name:?} is not supported here"))),
        Word::Open => {
            let inner = call(line, words, depth + 1)?;
            match words.next() {
                Some(Word::Close) => return Ok(inner),
                _ => return Err(Fault::new(line, "`(` is not closed")),
            }
        }
        Word::Close => return Err(Fault::new(line, "`)` closes nothing")),
        Word::Chain(name) => return Err(Fault::new(line, format!(".{name} belongs to nothing"))),
        Word::Comma | Word::Define => return Err(Fault::new(line, "`,` and `:=` belong to range")),
    };
    while let Some(Word::Chain(name)) = words.as_slice().first() {
        expr = Expr::Field(Box::new(expr), name.clone());
        words.next();
    }
    Ok(expr)
}
