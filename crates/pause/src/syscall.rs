//! System calls and the entry point, for each architecture.

/// The calls that pause makes.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Number {
    Read = arch::READ,
    RtSigprocmask = arch::RT_SIGPROCMASK,
    RtSigtimedwait = arch::RT_SIGTIMEDWAIT,
    Wait4 = arch::WAIT4,
    Prctl = arch::PRCTL,
    Seccomp = arch::SECCOMP,
    ExitGroup = arch::EXIT_GROUP,
}

/// AUDIT_ARCH_* of this architecture, as seccomp filters see it.
pub use arch::AUDIT_ARCH;
/// restart_syscall(2), which the kernel puts in the place of an interrupted wait.
pub use arch::RESTART_SYSCALL;

pub fn call(number: Number, arguments: [usize; 4]) -> isize {
    // SAFETY: pause passes pointers to its own constants and locals only, which outlive the call; the one call that
    // writes to memory, read(2), is given a local of the length that it is told, borrowed mutably.
    unsafe { arch::call(number as usize, arguments) }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    pub const READ: usize = 0;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const PRCTL: usize = 157;
    pub const SECCOMP: usize = 317;
    pub const EXIT_GROUP: usize = 231;
    pub const RESTART_SYSCALL: u32 = 219;
    pub const AUDIT_ARCH: u32 = 0xc000_003e;

    // The stack is aligned at entry; the call pushes the return address that the ABI expects.
    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "xor %ebp, %ebp",
        "mov %rsp, %rdi",
        "and $-16, %rsp",
        "call {main}",
        "ud2",
        main = sym crate::main,
        options(att_syntax)
    );

    /// # Safety
    /// As the system call's own.
    pub unsafe fn call(number: usize, a: [usize; 4]) -> isize {
        let result;
        // SAFETY: the kernel clobbers rcx and r11 and what is declared; the caller answers for the rest.
        unsafe {
            core::arch::asm!(
                "syscall",
                inlateout("rax") number => result,
                in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
                lateout("rcx") _, lateout("r11") _,
                options(nostack)
            );
        }
        result
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    pub const READ: usize = 63;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const PRCTL: usize = 167;
    pub const SECCOMP: usize = 277;
    pub const EXIT_GROUP: usize = 94;
    pub const RESTART_SYSCALL: u32 = 128;
    pub const AUDIT_ARCH: u32 = 0xc000_00b7;

    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "mov x0, sp",
        "mov x29, #0",
        "mov x30, #0",
        "bl {main}",
        "brk #1",
        main = sym crate::main,
    );

    /// # Safety
    /// As the system call's own.
    pub unsafe fn call(number: usize, a: [usize; 4]) -> isize {
        let result;
        // SAFETY: the kernel preserves all registers but x0; the caller answers for the rest.
        unsafe {
            core::arch::asm!(
                "svc #0",
                in("x8") number,
                inlateout("x0") a[0] => result,
                in("x1") a[1], in("x2") a[2], in("x3") a[3],
                options(nostack)
            );
        }
        result
    }
}
