//! The first process of a pod: it holds the namespaces, reaps what is orphaned to it, and dies when told to.
//!
//! Without the standard library and without libc, so that a pod costs a few pages. The launcher starts it in its
//! namespaces, on an empty read-only root, without descriptors, capabilities or a privileged user; here it makes
//! itself undumpable and puts itself under a seccomp filter that leaves it what its loop needs.
//!
//! Built apart from the workspace (it must not be linked with libc's start files), from the repository's root:
//!
//! ```text
//! cargo rustc --manifest-path crates/pause/Cargo.toml --locked --release --bin holdfast-pause -- \
//!     -C panic=abort -C relocation-model=static \
//!     -C link-arg=-nostartfiles -C link-arg=-nostdlib -C link-arg=-static -C link-arg=-no-pie \
//!     -C link-arg=-Wl,--build-id=none -C link-arg=-Wl,-z,norelro -C link-arg=-Wl,-z,noseparate-code
//! ```
//!
//! With `CARGO_TARGET_DIR` set the result is `$CARGO_TARGET_DIR/release/holdfast-pause`, else
//! `crates/pause/target/release/holdfast-pause`. For aarch64 add `--target aarch64-unknown-linux-gnu` (its name then comes
//! before `release`) and name a linker, `-C linker=aarch64-linux-gnu-gcc`. A change of RUSTFLAGS (such as
//! `+crt-static`) makes no difference.

#![no_std]
#![no_main]

mod filter;
mod syscall;

use syscall::{Number, call};

const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
const SIGCHLD: u32 = 17;
const SIG_SETMASK: usize = 2;
const PR_SET_DUMPABLE: usize = 4;
const PR_SET_NAME: usize = 15;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const WNOHANG: usize = 1;
const EINTR: isize = -4;
/// Bytes of the kernel's signal set.
const SET_SIZE: usize = 8;

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Entered from `_start`, with nothing set up but the stack, on which the number of arguments is first.
///
/// With an argument (`holdfast-pause hold`) it is no pod's process but the daemon's helper: it keeps a cgroup from being
/// empty until its standard input ends.
extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc there (`execve`'s initial stack, System V ABI), and nothing has overwritten it.
    if unsafe { *stack } > 1 {
        hold();
    }
    // The signals are never delivered, only waited for: no handler, no race between a signal and the wait. The launcher
    // has blocked them already: as PID 1 we would not get one that comes before this.
    let signals = bit(SIGINT) | bit(SIGTERM) | bit(SIGCHLD);
    call(
        Number::RtSigprocmask,
        [SIG_SETMASK, (&raw const signals) as usize, 0, SET_SIZE],
    );
    call(Number::Prctl, [PR_SET_NAME, c"pause".as_ptr() as usize, 0, 0]);
    call(Number::Prctl, [PR_SET_DUMPABLE, 0, 0, 0]);
    call(Number::Prctl, [PR_SET_NO_NEW_PRIVS, 1, 0, 0]);
    filter::install();
    loop {
        // Before every wait, so that children that ended before the signals were blocked are seen too.
        reap();
        let signal = call(
            Number::RtSigtimedwait,
            [(&raw const signals) as usize, 0, 0, SET_SIZE],
        );
        if signal == SIGINT as isize || signal == SIGTERM as isize {
            exit(0);
        }
        if signal < 0 && signal != EINTR {
            exit(1);
        }
    }
}

fn hold() -> ! {
    let mut byte = 0u8;
    loop {
        let got = call(Number::Read, [0, (&raw mut byte) as usize, 1, 0]);
        if got <= 0 && got != EINTR {
            exit(0);
        }
    }
}

/// Takes every child that has ended. One SIGCHLD may stand for several.
fn reap() {
    let any = usize::MAX; // pid -1
    while call(Number::Wait4, [any, 0, WNOHANG, 0]) > 0 {}
}

fn exit(code: usize) -> ! {
    loop {
        call(Number::ExitGroup, [code, 0, 0, 0]);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}
