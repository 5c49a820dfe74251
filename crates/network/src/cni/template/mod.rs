//! The CNI configuration's template, as containerd's users know it (`conf_template`), and the subset of Go's text/template
//! that such files use (<https://pkg.go.dev/text/template>):
//!
//! - `.PodCIDR` (the first range), `.PodCIDRRanges` and `.Routes` (a default route for each family that has a range);
//! - `{{range}}`, also with `$i, $v :=`, `{{if}}`, `{{with}}`, their `{{else}}` and `{{end}}`, comments, `{{-` and `-}}`;
//! - `$` and variables of `range`, strings, numbers, `true`, `false`, parentheses;
//! - the functions `index len eq ne lt le gt ge and or not`.
//!
//! Everything else is an error that names the line. Pure.

mod lexer;
mod parser;

use crate::config::Subnet;
use parser::{Branch, Expr, Function, Node};

/// Rendered text larger than this is a mistake (a CNI configuration may have 1 MiB).
const MAX_OUTPUT: usize = 1 << 20;

/// Steps that filling in may take: nested ranges multiply.
const MAX_STEPS: usize = 1 << 20;

/// What is wrong with a template, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(crate) struct Fault {
    pub line: usize,
    pub what: String,
}

impl Fault {
    fn new(line: usize, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { line, what }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(i64),
    Truth(bool),
    List(Vec<Value>),
    /// What the template is filled with.
    Root,
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Number(_) => "a number",
            Self::Truth(_) => "a truth value",
            Self::List(_) => "a list",
            Self::Root => "the node's ranges",
        }
    }

    /// Go's "empty value" is false.
    fn truth(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::Truth(truth) => *truth,
            Self::List(list) => !list.is_empty(),
            Self::Root => true,
        }
    }
}

/// Fills in a template with the node's pod ranges, the primary one first.
pub(crate) fn render(text: &str, ranges: &[Subnet]) -> Result<String, Fault> {
    let nodes = parser::parse(text)?;
    let mut filling = Filling {
        ranges,
        variables: vec![(String::new(), Value::Root)],
        out: String::with_capacity(text.len() * 2),
        steps: 0,
    };
    filling.all(&nodes, &Value::Root)?;
    Ok(filling.out)
}

struct Filling<'a> {
    ranges: &'a [Subnet],
    /// Innermost last; the one without a name is `$`.
    variables: Vec<(String, Value)>,
    out: String,
    steps: usize,
}

impl Filling<'_> {
    fn all(&mut self, nodes: &[Node], dot: &Value) -> Result<(), Fault> {
        self.steps += 1 + nodes.len();
        if self.steps > MAX_STEPS {
            return Err(Fault::new(1, "filling it in takes more than a million steps"));
        }
        nodes.iter().try_for_each(|node| self.one(node, dot))
    }

    fn one(&mut self, node: &Node, dot: &Value) -> Result<(), Fault> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(line, expr) => self.print(*line, expr, dot)?,
            Node::If(branches, otherwise) => {
                for Branch { line, test, body } in branches {
                    if self.value(*line, test, dot)?.truth() {
                        return self.all(body, dot);
                    }
                }
                self.all(otherwise, dot)?;
            }
            Node::With(branch, otherwise) => match self.value(branch.line, &branch.test, dot)? {
                value if value.truth() => self.all(&branch.body, &value)?,
                _ => self.all(otherwise, dot)?,
            },
            Node::Range {
                branch,
                names,
                otherwise,
            } => self.range(branch, names, otherwise, dot)?,
        }
        if self.out.len() > MAX_OUTPUT {
            return Err(Fault::new(1, "the text grows beyond 1 MiB"));
        }
        Ok(())
    }

    fn print(&mut self, line: usize, expr: &Expr, dot: &Value) -> Result<(), Fault> {
        match self.value(line, expr, dot)? {
            Value::Text(text) => self.out.push_str(&text),
            Value::Number(number) => self.out.push_str(&number.to_string()),
            Value::Truth(truth) => self.out.push_str(if truth { "true" } else { "false" }),
            other => {
                let what = format!("{} cannot be printed: use range", other.kind());
                return Err(Fault::new(line, what));
            }
        }
        Ok(())
    }

    fn range(
        &mut self,
        branch: &Branch,
        names: &[String],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), Fault> {
        let list = match self.value(branch.line, &branch.test, dot)? {
            Value::List(list) => list,
            other => {
                let what = format!("range needs a list, not {}", other.kind());
                return Err(Fault::new(branch.line, what));
            }
        };
        if list.is_empty() {
            return self.all(otherwise, dot);
        }
        let outer = self.variables.len();
        for (at, item) in list.into_iter().enumerate() {
            let number = Value::Number(i64::try_from(at).unwrap_or(i64::MAX));
            match names {
                [value] => self.variables.push((value.clone(), item.clone())),
                [index, value] => {
                    self.variables.push((index.clone(), number));
                    self.variables.push((value.clone(), item.clone()));
                }
                _ => {}
            }
            let done = self.all(&branch.body, &item);
            self.variables.truncate(outer);
            done?;
        }
        Ok(())
    }

    fn value(&self, line: usize, expr: &Expr, dot: &Value) -> Result<Value, Fault> {
        match expr {
            Expr::Dot => Ok(dot.clone()),
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let undefined = || Fault::new(line, format!("variable ${name} is not defined"));
                known.map(|(_, value)| value.clone()).ok_or_else(undefined)
            }
            Expr::Field(of, name) => match self.value(line, of, dot)? {
                Value::Root => self.field(line, name),
                other => Err(Fault::new(line, format!("{} has no field .{name}", other.kind()))),
            },
            Expr::Call(function, arguments) => self.call(line, *function, arguments, dot),
        }
    }

    fn field(&self, line: usize, name: &str) -> Result<Value, Fault> {
        let texts = |texts: Vec<String>| Value::List(texts.into_iter().map(Value::Text).collect());
        match name {
            "PodCIDR" => Ok(Value::Text(
                self.ranges.first().map(ToString::to_string).unwrap_or_default(),
            )),
            "PodCIDRRanges" => Ok(texts(self.ranges.iter().map(ToString::to_string).collect())),
            "Routes" => {
                let has = |v4: bool| self.ranges.iter().any(|range| range.addr().is_ipv4() == v4);
                let all = [(has(true), "0.0.0.0/0"), (has(false), "::/0")];
                let routes = all.into_iter().filter(|(has, _)| *has);
                Ok(texts(routes.map(|(_, route)| route.to_owned()).collect()))
            }
            _ => {
                let what = format!("there is no .{name}: only .PodCIDR, .PodCIDRRanges and .Routes");
                Err(Fault::new(line, what))
            }
        }
    }

    fn call(&self, line: usize, function: Function, arguments: &[Expr], dot: &Value) -> Result<Value, Fault> {
        let fault = |what: String| Fault::new(line, what);
        // These two look at as many arguments as they need.
        if let Function::And | Function::Or = function {
            let mut last = Value::Truth(false);
            for argument in arguments {
                last = self.value(line, argument, dot)?;
                if last.truth() == (function == Function::Or) {
                    break;
                }
            }
            return Ok(last);
        }
        let values: Vec<Value> = arguments
            .iter()
            .map(|argument| self.value(line, argument, dot))
            .collect::<Result<_, _>>()?;
        match (function, values.as_slice()) {
            (Function::Not, [value]) => Ok(Value::Truth(!value.truth())),
            (Function::Len, [value]) => {
                let len = match value {
                    Value::Text(text) => text.len(),
                    Value::List(list) => list.len(),
                    other => return Err(fault(format!("{} has no length", other.kind()))),
                };
                Ok(Value::Number(i64::try_from(len).unwrap_or(i64::MAX)))
            }
            (Function::Index, [Value::List(list), Value::Number(at)]) => usize::try_from(*at)
                .ok()
                .and_then(|at| list.get(at).cloned())
                .ok_or_else(|| fault(format!("index {at} of a list of {}", list.len()))),
            (Function::Eq, [first, rest @ ..]) if !rest.is_empty() => {
                let mut same = false;
                for other in rest {
                    same |= compare(line, first, other)?.is_eq();
                }
                Ok(Value::Truth(same))
            }
            (Function::Ne, [a, b]) => Ok(Value::Truth(compare(line, a, b)?.is_ne())),
            (Function::Lt, [a, b]) => Ok(Value::Truth(compare(line, a, b)?.is_lt())),
            (Function::Le, [a, b]) => Ok(Value::Truth(compare(line, a, b)?.is_le())),
            (Function::Gt, [a, b]) => Ok(Value::Truth(compare(line, a, b)?.is_gt())),
            (Function::Ge, [a, b]) => Ok(Value::Truth(compare(line, a, b)?.is_ge())),
            (function, values) => {
                let kinds: Vec<&str> = values.iter().map(Value::kind).collect();
                let name = function.name();
                Err(fault(format!(
                    "{name} does not take these arguments: {}",
                    kinds.join(", ")
                )))
            }
        }
    }
}

fn compare(line: usize, a: &Value, b: &Value) -> Result<std::cmp::Ordering, Fault> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Ok(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => Ok(a.cmp(b)),
        (Value::Truth(a), Value::Truth(b)) => Ok(a.cmp(b)),
        _ => {
            let what = format!("{} cannot be compared with {}", a.kind(), b.kind());
            Err(Fault::new(line, what))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ranges(text: &str) -> Vec<Subnet> {
        text.split_whitespace()
            .map(|range| range.parse().unwrap())
            .collect()
    }

    fn filled(text: &str) -> String {
        render(text, &ranges("10.1.0.0/24 fd00::/64")).unwrap()
    }

    #[test]
    fn the_form_that_is_in_use() {
        let template = r#"{{- /* of a well-known cluster */ -}}
{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "ptp", "mtu": 1460, "ipam": {"type": "host-local",
  "subnet": "{{.PodCIDR}}",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}"#;
        let both: serde_json::Value = serde_json::from_str(&filled(template)).unwrap();
        let ipam = &both["plugins"][0]["ipam"];
        assert_eq!(ipam["subnet"], "10.1.0.0/24");
        assert_eq!(
            ipam["ranges"],
            serde_json::json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]])
        );
        assert_eq!(
            ipam["routes"],
            serde_json::json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
        let six = render(template, &ranges("fd00::/64")).unwrap();
        let six: serde_json::Value = serde_json::from_str(&six).unwrap();
        let ipam = &six["plugins"][0]["ipam"];
        assert_eq!(ipam["routes"], serde_json::json!([{"dst": "::/0"}]));
    }

    #[test]
    fn the_rest_of_the_subset() {
        let table = [
            ("a {{- \" b \" -}} c", "a b c"),
            ("a\n{{- /* x\ny */ -}}\n b", "ab"),
            ("{{range .Routes}}<{{.}}{{else}}none{{end}}>", "<0.0.0.0/0<::/0>"),
            (
                "{{range $r := .Routes}}{{$r}} {{$.PodCIDR}};{{end}}",
                "0.0.0.0/0 10.1.0.0/24;::/0 10.1.0.0/24;",
            ),
            (
                "{{if eq (len .PodCIDRRanges) 2}}two{{else if .PodCIDR}}one{{else}}none{{end}}",
                "two",
            ),
            ("{{if not .PodCIDR}}x{{else}}y{{end}}", "y"),
            ("{{index .PodCIDRRanges 1}}", "fd00::/64"),
            ("{{with index .Routes 0}}{{.}}{{else}}-{{end}}", "0.0.0.0/0"),
            ("{{if and .PodCIDR (gt 2 1)}}{{true}}{{end}}", "true"),
            ("{{if or false (ne .PodCIDR `x`)}}{{len \"abc\"}}{{end}}", "3"),
            (
                "{{range $i, $r := .Routes}}{{if lt $i 1}}{{$r}}{{end}}{{end}}",
                "0.0.0.0/0",
            ),
            ("{ {{`{{`}} }", "{ {{ }"),
            ("", ""),
        ];
        for (template, want) in table {
            assert_eq!(filled(template), want, "{template}");
        }
    }

    #[test]
    fn anything_else_is_named_with_its_line() {
        let table = [
            ("a\n{{.NodeName}}", "line 2: there is no .NodeName"),
            ("{{.PodCIDR | printf \"%s\"}}", "line 1: `|`"),
            ("\n\n{{template \"x\"}}", "line 3: \"template\" is not supported"),
            ("{{printf \"%s\" .PodCIDR}}", "\"printf\" is not supported"),
            (
                "{{$x := .PodCIDR}}",
                "line 1: a variable is defined by range alone",
            ),
            ("{{$x}}", "line 1: variable $x is not defined"),
            ("{{range .Routes}}", "line 1: range has no {{end}}"),
            (
                "{{if .PodCIDR}}\n{{else}}\n{{else}}{{end}}",
                "line 3: a second {{else}}",
            ),
            ("{{end}}", "line 1: {{end}} without a beginning"),
            ("{{.Routes}}", "line 1: a list cannot be printed"),
            ("{{range .PodCIDR}}{{end}}", "line 1: range needs a list"),
            ("{{index .Routes 7}}", "line 1: index 7 of a list of 2"),
            (
                "{{eq 1 \"a\"}}",
                "line 1: a number cannot be compared with a string",
            ),
            ("{{.PodCIDR.X}}", "line 1: a string has no field .X"),
            ("x {{.PodCIDR", "line 1: {{ is not closed"),
            ("{{/* x", "line 1: a comment is not closed"),
            ("{{\"x}}", "line 1: a string is not closed"),
            ("{{}}", "line 1: there is nothing in {{}}"),
            ("{{(.PodCIDR}}", "line 1: `(` is not closed"),
            (
                "{{9999999999999999999999}}",
                "line 1: 9999999999999999999999 is no number",
            ),
            ("{{break}}", "\"break\" is not supported"),
        ];
        for (template, want) in table {
            let error = render(template, &ranges("10.1.0.0/24 fd00::/64"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{template}: {error}");
        }
        for inside in ["x", ""] {
            let bomb = format!(
                "{}{inside}{}",
                "{{range .Routes}}".repeat(40),
                "{{end}}".repeat(40)
            );
            assert!(render(&bomb, &ranges("10.1.0.0/24 fd00::/64")).is_err());
        }
        let deep = format!("{{{{{}1{}}}}}", "(".repeat(5000), ")".repeat(5000));
        assert!(render(&deep, &[]).unwrap_err().what.contains("deep"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,80}", inner in "[a-zA-Z$.(){}\"`/* :=,0-9|-]{0,40}") {
            let _ = render(&text, &ranges("10.1.0.0/24"));
            let _ = render(&format!("{{{{{inner}}}}}"), &ranges("10.1.0.0/24"));
            let _ = render(&format!("{{{{range {inner}}}}}x{{{{end}}}}"), &ranges("10.1.0.0/24"));
        }
    }
}
