//! Linux signals by number and by the names that images and CRI use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A signal number from 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Signal(i32);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no signal: a name such as SIGTERM or a number from 1 to 64 is wanted")]
pub struct SignalError {
    pub text: String,
}

/// Numbers as x86-64 and aarch64 have them (signal(7)).
const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    // Second names, found when reading only.
    ("IOT", 6),
    ("CLD", 17),
    ("POLL", 29),
];

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

impl Signal {
    pub const KILL: Signal = Signal(9);
    pub const TERM: Signal = Signal(15);

    pub fn number(self) -> i32 {
        self.0
    }

    pub fn from_number(number: i32) -> Option<Self> {
        (1..=RTMAX).contains(&number).then_some(Self(number))
    }

    /// Reads `SIGTERM`, `term`, `15`, `RTMIN+3`, and CRI's `SIGRTMINPLUS3`.
    pub fn parse(text: &str) -> Result<Self, SignalError> {
        let fail = || SignalError {
            text: text.chars().take(40).collect(),
        };
        if let Ok(number) = text.parse::<i32>() {
            return Self::from_number(number).ok_or_else(fail);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let name = name.replace("PLUS", "+").replace("MINUS", "-");
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Self(*number));
        }
        let (base, rest) = if let Some(rest) = name.strip_prefix("RTMIN") {
            (RTMIN, rest)
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            (RTMAX, rest)
        } else {
            return Err(fail());
        };
        let offset = match rest {
            "" => 0,
            _ if base == RTMIN && rest.starts_with('+') => rest[1..].parse::<i32>().map_err(|_| fail())?,
            _ if base == RTMAX && rest.starts_with('-') => -rest[1..].parse::<i32>().map_err(|_| fail())?,
            _ => return Err(fail()),
        };
        base.checked_add(offset)
            .filter(|number| (RTMIN..=RTMAX).contains(number))
            .map(Self)
            .ok_or_else(fail)
    }

    /// The name that CRI's `Signal` enumeration has for it, such as `SIGTERM` or `SIGRTMINPLUS3`.
    pub fn cri_name(self) -> String {
        if let Some((name, _)) = NAMES.iter().find(|(_, number)| *number == self.0) {
            return format!("SIG{name}");
        }
        match self.0 {
            RTMIN => "SIGRTMIN".into(),
            RTMAX => "SIGRTMAX".into(),
            number if number <= RTMIN + 15 => format!("SIGRTMINPLUS{}", number - RTMIN),
            number => format!("SIGRTMAXMINUS{}", RTMAX - number),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cri_name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("SIGRTMINPLUS3", 37),
            ("RTMAX-14", 50),
            ("SIGRTMAXMINUS14", 50),
            ("SIGPOLL", 29),
            ("64", 64),
        ] {
            assert_eq!(Signal::parse(text).unwrap().number(), number, "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "SIGRTMIN-1",
            "RTMAX+1",
            "RTMIN+31",
            "TERMINUS",
            "15 ",
        ] {
            assert!(Signal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cri_names_read_back() {
        for number in (1..=31).chain(RTMIN..=RTMAX) {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(Signal::parse(&signal.cri_name()).unwrap(), signal);
        }
    }
}
