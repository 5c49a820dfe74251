//! Compiles OCI seccomp profiles to classic BPF and holds the runtime's own default profile.
//!
//! Owns: the syscall tables of x86-64, i386, x32, aarch64 and arm; the compiler; the default profile; loading a
//! profile from the node's disk. Leaves out: installing a filter (`holdfast_sys::seccomp::install`) and answering
//! notifications.
//!
//! What a profile means, where the OCI specification is silent, is what libseccomp makes of it, so that a profile
//! means the same here as under any other runtime:
//!
//! * a rule whose action is the default action is no rule at all;
//! * a rule without argument conditions decides for its system call wherever it stands (the first such, if there are
//!   several); otherwise conditional rules are tried in order and the first that matches decides;
//! * the conditions of a rule must all hold; but where one rule names the same argument twice, each of its conditions
//!   is a rule of its own;
//! * names that no table knows are ignored, and so are names that an architecture lacks;
//! * calls by an architecture that the profile does not list kill the process; the native one is always listed;
//! * under a denying default, a call with a higher number than any that the profile names gets ENOSYS: its author
//!   cannot have meant a call that did not exist, and libraries fall back on ENOSYS but not on EPERM.
//!
//! ```no_run
//! let profile = holdfast_seccomp::default_profile(&["CAP_CHOWN"], holdfast_seccomp::Machine::NATIVE);
//! let program = holdfast_seccomp::compile(&profile, holdfast_seccomp::Machine::NATIVE)?;
//! holdfast_sys::seccomp::install(program.instructions(), program.flags())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod action;
mod bpf;
mod compile;
mod default;
mod error;
mod program;
mod rules;
mod source;
mod syscalls;
mod tables;

pub use compile::compile;
pub use default::default_profile;
pub use error::Error;
pub use program::{Instruction, Program};
pub use source::{load_localhost, parse};
pub use syscalls::{Machine, SyscallTable};
