//! A compiled filter.

use crate::Error;
pub use holdfast_sys::seccomp::Instruction;

/// A filter, ready for `holdfast_sys::seccomp::install`, with the flags that the profile asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) flags: u32,
    pub(crate) notifies: bool,
}

impl Program {
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// `holdfast_sys::seccomp::FLAG_*`; with NEW_LISTENER where the filter notifies.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Whether some call is decided by another process: then installing gives a listener, and somebody must answer.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.notifies
    }

    /// For a cache or another process: flags, then eight bytes an instruction, in the machine's byte order.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.instructions.len() * 8);
        out.extend_from_slice(&self.flags.to_ne_bytes());
        for it in &self.instructions {
            out.extend_from_slice(&it.code.to_ne_bytes());
            out.extend_from_slice(&[it.jt, it.jf]);
            out.extend_from_slice(&it.k.to_ne_bytes());
        }
        out
    }

    /// The inverse of [`Program::to_bytes`]. Whether the instructions make sense is for the kernel to check.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let refuse = || Error::NotAProgram { length: bytes.len() };
        let (flags, rest) = bytes.split_first_chunk::<4>().ok_or_else(refuse)?;
        let most = holdfast_sys::seccomp::MAX_INSTRUCTIONS;
        if rest.is_empty() || rest.len() / 8 > most || rest.len() % 8 != 0 {
            return Err(refuse());
        }
        let flags = u32::from_ne_bytes(*flags);
        let instructions = rest
            .chunks_exact(8)
            .map(|it| Instruction {
                code: u16::from_ne_bytes([it[0], it[1]]),
                jt: it[2],
                jf: it[3],
                k: u32::from_ne_bytes([it[4], it[5], it[6], it[7]]),
            })
            .collect();
        Ok(Self {
            instructions,
            flags,
            notifies: flags & holdfast_sys::seccomp::FLAG_NEW_LISTENER != 0,
        })
    }
}
