//! Session keyrings (keyrings(7), session-keyring(7)).

use std::ffi::CStr;
use std::io;

use crate::check;

const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SETPERM: libc::c_long = 5;
/// Everything for those who possess it, and searching for its owner, without which it is not found by its name.
/// Its owner is root, as of the other containers': more would let them look into each other's.
const PERMISSIONS: libc::c_long = 0x3f08_0000;

/// Makes the keyring `name` of this user namespace the session keyring of the calling thread; a new one, if there is none yet.
pub fn join_session(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is terminated, and the kernel copies it.
    let key = check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, key, PERMISSIONS) }).map(drop)
}
