//! The runtime's own profile, for `RuntimeDefault`.
//!
//! An allow-list: what ordinary programs use, and what a capability that the container holds is for. Everything else
//! gets EPERM (ENOSYS where it is newer than this list). Not on it, whatever the capabilities: io_uring (it makes
//! system calls that no filter sees), userfaultfd, the keyrings (they are not namespaced), kexec, swap, NFS and quota
//! relics, and everything that only old kernels have.

use crate::syscalls::Machine;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families that may be opened, as conditions of which one must hold: all below 64 but AF_ALG (38, kernel
/// crypto, CVE-2026-31431) and AF_VSOCK (40, the hypervisor's and other tenants' services, which no network namespace
/// separates). Each is exact in all 64 bits: the kernel looks at the lower half only, so a test such as "not 40"
/// would let 2^32 + 40 through.
const FAMILIES: [(Op, u64, Option<u64>); 6] = [
    (Op::ScmpCmpLt, 38, None),
    (Op::ScmpCmpEq, 39, None),
    (Op::ScmpCmpEq, 41, None),
    (Op::ScmpCmpMaskedEq, !1, Some(42)),
    (Op::ScmpCmpMaskedEq, !3, Some(44)),
    (Op::ScmpCmpMaskedEq, !15, Some(48)),
];

/// Linux, UNAME26, ADDR_NO_RANDOMIZE with and without, and "only tell".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
     faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
     fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstat64 \
     fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr \
     getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link \
     linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod \
     mknodat name_to_handle_at newfstatat _newselect open openat openat2 readahead readlink readlinkat removexattr \
     removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64 statx symlink \
     symlinkat sync sync_file_range syncfs truncate truncate64 umask unlink unlinkat utime utimensat \
     utimensat_time64 utimes fanotify_mark listmount statmount";

const INPUT_OUTPUT: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
     epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
     io_submit pipe pipe2 poll ppoll ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64 pwrite64 pwritev \
     pwritev2 read readv select sendfile sendfile64 signalfd signalfd4 splice tee vmsplice write writev";

const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair";

const PROCESSES: &str = "alarm capget capset execve execveat exit exit_group fork getcpu getegid getegid32 geteuid \
     geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getresgid \
     getresgid32 getresuid getresuid32 getrlimit ugetrlimit get_robust_list getrusage getsid gettid getuid getuid32 \
     ioprio_get ioprio_set kill nanosleep pause pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease \
     process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask \
     rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
     sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
     setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
     setreuid setreuid32 setrlimit set_robust_list setsid set_tid_address setuid setuid32 sigaltstack sigprocmask \
     sigreturn landlock_add_rule landlock_create_ruleset landlock_restrict_self sysinfo tgkill tkill times uname \
     vfork wait4 waitid waitpid uretprobe";

const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 \
     mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages set_thread_area get_thread_area";

const TIME_AND_IPC: &str = "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 futex futex_requeue futex_time64 futex_wait futex_waitv \
     futex_wake getrandom gettimeofday ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
     mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget time timer_create timer_delete timer_getoverrun timer_gettime \
     timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
     timerfd_settime64";

const X86: &str = "arch_prctl modify_ldt";
const ARM: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// What each capability opens.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// The default profile for a container that holds `capabilities` (`CAP_...`, any case), on `machine`.
#[must_use]
pub fn default_profile(capabilities: &[impl AsRef<str>], machine: Machine) -> LinuxSeccomp {
    let holds = |name: &str| {
        capabilities
            .iter()
            .any(|it| it.as_ref().eq_ignore_ascii_case(name))
    };
    let mut lists = vec![FILES, INPUT_OUTPUT, SOCKETS, PROCESSES, MEMORY, TIME_AND_IPC];
    let architectures = match machine {
        Machine::X86_64 => {
            lists.push(X86);
            vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
        }
        Machine::Aarch64 => {
            lists.push(ARM);
            vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
        }
    };
    let held = BY_CAPABILITY
        .iter()
        .filter(|(name, _)| holds(name))
        .map(|(_, calls)| *calls);
    lists.extend(held);
    let names = lists
        .iter()
        .flat_map(|list| list.split_whitespace())
        .map(str::to_owned)
        .collect();
    let mut rules = vec![rule(names, Action::ScmpActAllow, &[])];
    let mut when = |name: &str, (operator, value, value_two): (Op, u64, Option<u64>)| {
        let condition = condition(0, operator, value, value_two);
        rules.push(rule(vec![name.to_owned()], Action::ScmpActAllow, &[condition]));
    };
    for personality in PERSONALITIES {
        when("personality", (Op::ScmpCmpEq, personality, None));
    }
    for family in FAMILIES {
        when("socket", family);
    }
    if !holds("CAP_SYS_ADMIN") {
        when("clone", (Op::ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0)));
        // Its flags are behind a pointer, out of a filter's sight; libraries fall back on clone.
        let mut clone3 = rule(vec!["clone3".to_owned()], Action::ScmpActErrno, &[]);
        clone3.set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures)
        .syscalls(rules)
        .build()
        .unwrap_or_default()
}

fn rule(names: Vec<String>, action: Action, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    let mut out = LinuxSyscall::default();
    out.set_names(names).set_action(action);
    if !args.is_empty() {
        out.set_args(Some(args.to_vec()));
    }
    out
}

/// One condition. The builder cannot fail: every field has a default.
pub(crate) fn condition(index: usize, operator: Op, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let arg = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(operator)
        .value(value);
    match value_two {
        Some(value) => arg.value_two(value),
        None => arg,
    }
    .build()
    .unwrap_or_default()
}
