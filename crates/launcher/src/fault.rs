//! Failures inside the builder and the init, which cross to the monitor as words, a kind and an errno.

use std::io;

use crate::building::Failed;
use crate::error::Kind;

/// What went wrong, complete with what was tried.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub message: String,
    pub kind: Kind,
    pub errno: i32,
}

pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            kind,
            errno: 0,
        }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// `what`, then what the kernel said.
    pub fn system(what: impl AsRef<str>, error: &io::Error) -> Self {
        Self {
            message: format!("{}: {}", what.as_ref(), words(error)),
            kind: kind_of(error),
            errno: error.raw_os_error().unwrap_or(0),
        }
    }

    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self {
            message: fault.message,
            kind: fault.kind,
            errno: fault.errno,
        }
    }
}

/// Adds what was tried to an errno.
pub(crate) trait Context<T> {
    fn at<S: AsRef<str>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn at<S: AsRef<str>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Fault::system(what(), &e))
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn at<S: AsRef<str>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Fault::system(what(), &e.into()))
    }
}

impl<T> Context<T> for std::result::Result<T, holdfast_cgroups::Error> {
    fn at<S: AsRef<str>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| {
            let errno = e.errno().unwrap_or(0);
            Fault {
                message: format!("{}: {}", what().as_ref(), chain(&e)),
                kind: kind_of(&io::Error::from_raw_os_error(errno)),
                errno,
            }
        })
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error
            .downcast_ref::<io::Error>()
            .map_or_else(|| error.to_string(), words);
        text.push_str(": ");
        text.push_str(&more);
        source = error.source();
    }
    text
}

/// The kernel's words in our style: lower case, without the number.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

fn kind_of(error: &io::Error) -> Kind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EDQUOT | libc::EAGAIN) => {
            Kind::Exhausted
        }
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENODEV) => Kind::Unsupported,
        _ => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_lower_case_and_without_a_number() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(words(&error), "no such file or directory");
        let fault = Fault::system("open /x", &error);
        assert_eq!(fault.message, "open /x: no such file or directory");
        assert_eq!(fault.errno, libc::ENOENT);
    }
}
