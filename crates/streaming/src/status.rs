//! How a command's end is told: the text of the first protocols, or `metav1.Status` since v4.channel.k8s.io.

use std::error::Error as StdError;

use bytes::Bytes;
use serde_json::json;

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    ExitCode(i32),
    Failed(String),
}

impl Outcome {
    pub fn failed(error: &(dyn StdError + 'static)) -> Self {
        Self::Failed(chain(error))
    }

    /// What goes onto the error stream; nothing for success before v4.
    pub fn message(&self, json: bool) -> Bytes {
        let text = match self {
            Self::Success | Self::ExitCode(0) if json => {
                json!({ "metadata": {}, "status": "Success" }).to_string()
            }
            Self::Success | Self::ExitCode(0) => String::new(),
            Self::ExitCode(code) if json => json!({
                "metadata": {},
                "status": "Failure",
                "message": exit_message(*code),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            })
            .to_string(),
            Self::ExitCode(code) => exit_message(*code),
            Self::Failed(why) if json => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            })
            .to_string(),
            Self::Failed(why) => why.clone(),
        };
        text.into()
    }
}

fn exit_message(code: i32) -> String {
    format!("command terminated with non-zero exit code: {code}")
}

/// An error with all of its causes in one line.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_clients_parse() {
        let json = |o: Outcome| serde_json::from_slice::<serde_json::Value>(&o.message(true)).unwrap();
        assert_eq!(json(Outcome::Success)["status"], "Success");
        assert_eq!(json(Outcome::ExitCode(0))["status"], "Success");
        let failed = json(Outcome::ExitCode(42));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "42");
        let error = std::io::Error::other("no such thing");
        let internal = json(Outcome::failed(&error));
        assert_eq!(internal["code"], 500);
        assert_eq!(internal["message"], "Internal error occurred: no such thing");
        assert_eq!(Outcome::Success.message(false), "");
        assert_eq!(Outcome::failed(&error).message(false), "no such thing");
        assert!(Outcome::ExitCode(3).message(false).ends_with(b": 3"));
    }
}
