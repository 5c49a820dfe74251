//! Actions as the numbers that a filter returns (seccomp(2)).

use oci_spec::runtime::LinuxSeccompAction as Action;

pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;
pub(crate) const KILL_THREAD: u32 = 0;
pub(crate) const TRAP: u32 = 0x0003_0000;
pub(crate) const ERRNO: u32 = 0x0005_0000;
pub(crate) const USER_NOTIF: u32 = 0x7fc0_0000;
pub(crate) const TRACE: u32 = 0x7ff0_0000;
pub(crate) const LOG: u32 = 0x7ffc_0000;
pub(crate) const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel cuts larger ones down to this.
const MAX_ERRNO: u32 = 4095;

/// For calls that are newer than the profile.
pub(crate) const NOT_IMPLEMENTED: u32 = ERRNO | ENOSYS;

/// The value to return, or what is wrong with `errno`.
pub(crate) fn value(action: Action, errno: Option<u32>) -> Result<u32, String> {
    let with = |base: u32, most: u32| match errno.unwrap_or(EPERM) {
        data if data <= most => Ok(base | data),
        data => Err(format!("errnoRet is {data}, but {most} is the most")),
    };
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => Ok(KILL_THREAD),
        Action::ScmpActKillProcess => Ok(KILL_PROCESS),
        Action::ScmpActTrap => Ok(TRAP),
        Action::ScmpActErrno => with(ERRNO, MAX_ERRNO),
        Action::ScmpActNotify => Ok(USER_NOTIF),
        Action::ScmpActTrace => with(TRACE, 0xffff),
        Action::ScmpActLog => Ok(LOG),
        Action::ScmpActAllow => Ok(ALLOW),
    }
}

/// Whether a default of this value denies: then calls that the profile cannot have known get ENOSYS. A tracer or a
/// supervisor is asked instead, for it may know them.
pub(crate) fn denies(value: u32) -> bool {
    !matches!(value & 0xffff_0000, ALLOW | LOG | TRACE | USER_NOTIF)
}
