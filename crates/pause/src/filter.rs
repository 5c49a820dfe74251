//! Pause's seccomp filter: what its loop needs, and death for the rest.

use crate::syscall::{AUDIT_ARCH, Number, RESTART_SYSCALL, call};

#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

const SECCOMP_SET_MODE_FILTER: usize = 1;
const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;
const NR: u32 = 0; // offsets in struct seccomp_data
const ARCH: u32 = 4;

const fn load(offset: u32) -> Instruction {
    Instruction {
        code: 0x20,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

const fn jump_if_equal(k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: 0x15,
        jt,
        jf,
        k,
    }
}

const fn answer(k: u32) -> Instruction {
    Instruction {
        code: 0x06,
        jt: 0,
        jf: 0,
        k,
    }
}

static FILTER: [Instruction; 9] = [
    load(ARCH),
    jump_if_equal(AUDIT_ARCH, 0, 5),
    load(NR),
    jump_if_equal(Number::RtSigtimedwait as u32, 4, 0),
    jump_if_equal(Number::Wait4 as u32, 3, 0),
    jump_if_equal(Number::ExitGroup as u32, 2, 0),
    jump_if_equal(RESTART_SYSCALL, 1, 0),
    answer(KILL_PROCESS),
    answer(ALLOW),
];

/// Needs no_new_privs. A kernel without seccomp leaves pause as it is: it does nothing of harm anyway.
pub fn install() {
    let program = Program {
        len: FILTER.len() as u16,
        filter: FILTER.as_ptr(),
    };
    call(
        Number::Seccomp,
        [SECCOMP_SET_MODE_FILTER, 0, (&raw const program) as usize, 0],
    );
}
