//! Errors to status codes: one match.

use std::error::Error as StdError;

use holdfast_engine::Kind;
use holdfast_model::Invalid;
use tonic::{Code, Status};

/// The code that clients act upon.
fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::Invalid => Code::InvalidArgument,
        Kind::Precondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

pub fn engine(error: holdfast_engine::Error) -> Status {
    status(code(error.kind()), &error)
}

pub fn images(error: holdfast_images::Error) -> Status {
    use holdfast_images::Kind as I;
    let code = match error.kind() {
        I::Denied => Code::PermissionDenied,
        I::Corrupt => Code::DataLoss,
        I::Invalid => code(Kind::Invalid),
        I::NotFound => code(Kind::NotFound),
        I::AlreadyExists => code(Kind::AlreadyExists),
        I::Unavailable => code(Kind::Unavailable),
        I::Exhausted => code(Kind::Exhausted),
        I::Internal => code(Kind::Internal),
    };
    status(code, &error)
}

pub fn streaming(error: holdfast_streaming::RequestError) -> Status {
    use holdfast_streaming::{RequestError, TokenError};
    let code = match &error {
        RequestError::Invalid { .. } => code(Kind::Invalid),
        RequestError::Token(TokenError::Full) => code(Kind::Exhausted),
        RequestError::Token(TokenError::Random(_)) => code(Kind::Internal),
    };
    status(code, &error)
}

pub fn invalid(error: Invalid) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A field of a request that is missing.
pub fn missing(field: &str) -> Status {
    invalid(Invalid::new(field, "is missing"))
}

/// For Stop and Remove: what is gone needs neither.
pub fn gone_is_fine(outcome: Result<(), holdfast_engine::Error>) -> Result<(), Status> {
    match outcome {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other.map_err(engine),
    }
}

fn status(code: Code, error: &dyn StdError) -> Status {
    Status::new(code, chain(error))
}

/// An error with all of its causes in one line.
fn chain(error: &dyn StdError) -> String {
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
    use super::*;

    #[test]
    fn codes_and_causes() {
        let error = holdfast_engine::Error::Io {
            action: "read",
            path: "/x".into(),
            source: std::io::Error::other("the disk is on fire"),
        };
        let status = engine(error);
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "cannot read /x: the disk is on fire");
        let gone = || holdfast_engine::Error::NotFound {
            what: "pod",
            id: "x".into(),
        };
        assert_eq!(engine(gone()).code(), Code::NotFound);
        assert!(gone_is_fine(Err(gone())).is_ok());
        assert_eq!(invalid(Invalid::new("a.b", "is bad")).message(), "a.b: is bad");
    }
}
