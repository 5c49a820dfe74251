//! The two signals that glibc keeps to itself.

use std::io;

use crate::check;

/// SIGCANCEL and SIGSETXID of glibc: its `sigaction` refuses them.
const INTERNAL: [libc::c_long; 2] = [32, 33];
/// Bytes of the kernel's signal set.
const SET: usize = 8;

/// Gives them back their default action. glibc's `posix_spawn` leaves them ignored in what it starts, and whoever is
/// started so would hand that on to all its children.
pub fn default_internal() -> io::Result<()> {
    // The kernel's `struct sigaction` is four words at most; all zero is SIG_DFL with no flags and an empty mask.
    let action = [0_u64; 4];
    for signal in INTERNAL {
        // SAFETY: no handler is installed, and `action` outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null::<u64>(),
                SET,
            )
        };
        check(result)?;
    }
    Ok(())
}
