//! Compiled programs are run by an interpreter of classic BPF and compared with a direct reading of the profile.

use super::*;
use crate::default_profile;
use crate::tables::TABLE;
use holdfast_sys::seccomp::Instruction;
use oci_spec::runtime::{Arch, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSyscall};
use proptest::prelude::*;

/// `struct seccomp_data`, without the instruction pointer.
#[derive(Clone, Copy, Debug)]
struct Data {
    arch: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs `program`, and says how many instructions that took.
fn run(program: &[Instruction], data: Data) -> (u32, usize) {
    let word = |offset: u32| match offset {
        0 => data.number,
        4 => data.arch,
        16..=63 => {
            let argument = data.arguments[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) {
                argument as u32
            } else {
                (argument >> 32) as u32
            }
        }
        other => panic!("load from {other}"),
    };
    let (mut at, mut steps, mut a) = (0usize, 0, 0u32);
    loop {
        let it = program[at];
        at += 1;
        steps += 1;
        let test = |held: bool| usize::from(if held { it.jt } else { it.jf });
        match it.code {
            0x20 => a = word(it.k),
            0x54 => a &= it.k,
            0x05 => at += it.k as usize,
            0x15 => at += test(a == it.k),
            0x25 => at += test(a > it.k),
            0x35 => at += test(a >= it.k),
            0x06 => return (it.k, steps),
            other => panic!("code {other:#x}"),
        }
    }
}

fn holds(arg: &LinuxSeccompArg, table: SyscallTable, data: Data) -> bool {
    let cut = |value: u64| {
        if table.is_32_bit() {
            value & 0xffff_ffff
        } else {
            value
        }
    };
    let (given, value) = (cut(data.arguments[arg.index()]), cut(arg.value()));
    match arg.op() {
        Operator::ScmpCmpEq => given == value,
        Operator::ScmpCmpNe => given != value,
        Operator::ScmpCmpGt => given > value,
        Operator::ScmpCmpGe => given >= value,
        Operator::ScmpCmpLt => given < value,
        Operator::ScmpCmpLe => given <= value,
        Operator::ScmpCmpMaskedEq => given & value == cut(arg.value_two().unwrap_or(0)),
    }
}

/// What the crate's documentation says that `profile` means.
fn evaluate(profile: &LinuxSeccomp, machine: Machine, data: Data) -> u32 {
    let native = machine.tables()[0];
    let listed = |table: SyscallTable| {
        let list = profile.architectures().clone().unwrap_or_default();
        table == native || list.iter().any(|arch| SyscallTable::of(*arch) == Some(table))
    };
    let x32 = machine == Machine::X86_64 && data.arch == native.audit_arch() && data.number >= X32_BIT;
    let default = action::value(profile.default_action(), profile.default_errno_ret()).unwrap();
    let unknown = if action::denies(default) {
        action::NOT_IMPLEMENTED
    } else {
        default
    };
    if x32 && data.number == u32::MAX {
        return unknown;
    }
    let table = machine
        .tables()
        .iter()
        .copied()
        .find(|table| table.audit_arch() == data.arch && (*table == SyscallTable::X32) == x32);
    let Some(table) = table.filter(|table| listed(*table)) else {
        return action::KILL_PROCESS;
    };
    let rules: Vec<LinuxSyscall> = profile.syscalls().clone().unwrap_or_default();
    let numbers =
        |rule: &LinuxSyscall| -> Vec<u32> { rule.names().iter().filter_map(|it| table.number(it)).collect() };
    let of_call = |rule: &&LinuxSyscall| {
        let value = action::value(rule.action(), rule.errno_ret()).unwrap();
        value != default && numbers(rule).contains(&data.number)
    };
    let matching: Vec<&LinuxSyscall> = rules.iter().filter(of_call).collect();
    let unconditional = |rule: &&&LinuxSyscall| rule.args().as_ref().is_none_or(Vec::is_empty);
    let accepts = |rule: &&&LinuxSyscall| {
        let args = rule.args().as_ref().unwrap();
        let mut indices: Vec<usize> = args.iter().map(LinuxSeccompArg::index).collect();
        indices.sort_unstable();
        let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
        match repeated {
            true => args.iter().any(|arg| holds(arg, table, data)),
            false => args.iter().all(|arg| holds(arg, table, data)),
        }
    };
    let decides = matching
        .iter()
        .find(unconditional)
        .or_else(|| matching.iter().find(accepts));
    if let Some(rule) = decides {
        return action::value(rule.action(), rule.errno_ret()).unwrap();
    }
    let highest = rules
        .iter()
        .flat_map(numbers)
        .map(|it| it & !X32_BIT)
        .filter(|it| *it < 1024)
        .max();
    let named = !matching.is_empty();
    match data.number & !X32_BIT {
        number if !named && highest.is_none_or(|highest| number > highest) => unknown,
        _ => default,
    }
}

fn action() -> impl Strategy<Value = (Action, Option<u32>)> {
    prop_oneof![
        Just((Action::ScmpActAllow, None)),
        Just((Action::ScmpActErrno, None)),
        Just((Action::ScmpActErrno, Some(38))),
        Just((Action::ScmpActKill, None)),
        Just((Action::ScmpActKillProcess, None)),
        Just((Action::ScmpActTrap, None)),
        Just((Action::ScmpActTrace, Some(7))),
        Just((Action::ScmpActLog, None)),
    ]
}

/// Values that meet each other and the borders of a word.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        Just(40),
        (0u64..4).prop_map(|it| it << 32),
        (0u64..4).prop_map(|it| (1 << 32) + it),
        Just(u64::from(u32::MAX)),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn argument() -> impl Strategy<Value = LinuxSeccompArg> {
    let operator = prop_oneof![
        Just(Operator::ScmpCmpEq),
        Just(Operator::ScmpCmpNe),
        Just(Operator::ScmpCmpGt),
        Just(Operator::ScmpCmpGe),
        Just(Operator::ScmpCmpLt),
        Just(Operator::ScmpCmpLe),
        Just(Operator::ScmpCmpMaskedEq),
    ];
    (0usize..6, operator, value(), prop::option::of(value()))
        .prop_map(|(index, operator, value, two)| crate::default::condition(index, operator, value, two))
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0usize..12).prop_map(|at| ["read", "write", "clone", "socket", "mmap", "open", "execve", "set_tls",
            "breakpoint", "file_setattr", "personality", "no_such_call"][at].to_owned()),
        2 => (0usize..TABLE.len()).prop_map(|at| TABLE[at].0.to_owned()),
    ]
}

fn rule() -> impl Strategy<Value = LinuxSyscall> {
    let names = prop::collection::vec(name(), 1..8);
    (names, action(), prop::collection::vec(argument(), 0..4)).prop_map(|(names, (action, errno), args)| {
        let mut out = LinuxSyscall::default();
        out.set_names(names)
            .set_action(action)
            .set_errno_ret(errno)
            .set_args(Some(args));
        out
    })
}

fn profile() -> impl Strategy<Value = LinuxSeccomp> {
    let arch = prop_oneof![
        Just(Arch::ScmpArchX86_64),
        Just(Arch::ScmpArchX86),
        Just(Arch::ScmpArchX32),
        Just(Arch::ScmpArchArm),
        Just(Arch::ScmpArchS390),
    ];
    let architectures = prop::option::of(prop::collection::vec(arch, 0..4));
    (action(), architectures, prop::collection::vec(rule(), 0..24)).prop_map(
        |((action, errno), architectures, rules)| {
            let mut out = LinuxSeccomp::default();
            out.set_default_action(action)
                .set_default_errno_ret(errno)
                .set_architectures(architectures)
                .set_syscalls(Some(rules));
            out
        },
    )
}

fn data(machine: Machine) -> impl Strategy<Value = Data> {
    let tables = machine.tables();
    let number = prop_oneof![
        3 => (0..TABLE.len(), 0..tables.len()).prop_map(move |(at, table)| {
            (tables[table], tables[table].number(TABLE[at].0).unwrap_or(0))
        }),
        3 => (name(), 0..tables.len()).prop_map(move |(name, table)| (tables[table], tables[table].number(&name).unwrap_or(999))),
        1 => (any::<u32>(), 0..tables.len()).prop_map(move |(number, table)| (tables[table], number)),
        1 => (0u32..600, 0..tables.len()).prop_map(move |(number, table)| (tables[table], number)),
        1 => Just((SyscallTable::X86_64, u32::MAX)),
        1 => Just((SyscallTable::Aarch64, 63)),
    ];
    (number, prop::array::uniform6(value())).prop_map(|((table, number), arguments)| Data {
        arch: table.audit_arch(),
        number,
        arguments,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn programs_do_what_their_profile_says(
        (machine, profile, data) in prop_oneof![Just(Machine::X86_64), Just(Machine::Aarch64)].prop_flat_map(
            |machine| (Just(machine), profile(), prop::collection::vec(data(machine), 24))),
    ) {
        let program = compile(&profile, machine).unwrap();
        for data in data {
            let want = evaluate(&profile, machine, data);
            prop_assert_eq!(run(program.instructions(), data).0, want, "{:x?}", data);
        }
    }
}

proptest! {
    // Each case reads the whole profile often.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_default_profile_does_what_it_says(
        data in prop::collection::vec(data(Machine::X86_64), 32), admin in any::<bool>(),
    ) {
        let capabilities: &[&str] = if admin { &["CAP_SYS_ADMIN"] } else { &[] };
        let profile = default_profile(capabilities, Machine::X86_64);
        let program = compile(&profile, Machine::X86_64).unwrap();
        for data in data {
            let want = evaluate(&profile, Machine::X86_64, data);
            prop_assert_eq!(run(program.instructions(), data).0, want, "{:x?}", data);
        }
    }
}

const EPERM: u32 = action::ERRNO | 1;

fn native(name: &str, first: u64) -> Data {
    Data {
        arch: SyscallTable::X86_64.audit_arch(),
        number: SyscallTable::X86_64.number(name).unwrap(),
        arguments: [first, 0, 0, 0, 0, 0],
    }
}

#[test]
fn the_default_profile_by_example() {
    let none: [&str; 0] = [];
    let plain = compile(&default_profile(&none, Machine::X86_64), Machine::X86_64).unwrap();
    let admin = compile(
        &default_profile(&["cap_sys_admin"], Machine::X86_64),
        Machine::X86_64,
    )
    .unwrap();
    let table = [
        ("read", 0, action::ALLOW, action::ALLOW),
        ("mount", 0, EPERM, action::ALLOW),
        ("unshare", 0, EPERM, action::ALLOW),
        ("clone", 0x11, action::ALLOW, action::ALLOW),
        ("clone", 0x1000_0011, EPERM, action::ALLOW),
        ("clone3", 0, action::NOT_IMPLEMENTED, action::ALLOW),
        ("socket", 2, action::ALLOW, action::ALLOW),
        ("socket", 16, action::ALLOW, action::ALLOW),
        ("socket", 38, EPERM, EPERM),
        ("socket", 39, action::ALLOW, action::ALLOW),
        ("socket", 40, EPERM, EPERM),
        ("socket", 45, action::ALLOW, action::ALLOW),
        // The kernel looks at the lower half only.
        ("socket", (1 << 32) + 40, EPERM, EPERM),
        ("personality", 0x2_0000, action::ALLOW, action::ALLOW),
        ("personality", 0x40_0000, EPERM, EPERM),
        ("io_uring_setup", 0, EPERM, EPERM),
        ("add_key", 0, EPERM, EPERM),
        ("userfaultfd", 0, EPERM, EPERM),
        ("kexec_load", 0, EPERM, EPERM),
        ("reboot", 0, EPERM, EPERM),
    ];
    for (name, first, without, with) in table {
        let data = native(name, first);
        assert_eq!(run(plain.instructions(), data).0, without, "{name} {first:#x}");
        assert_eq!(
            run(admin.instructions(), data).0,
            with,
            "{name} {first:#x}, CAP_SYS_ADMIN"
        );
    }
    let newer = Data {
        number: 480,
        ..native("read", 0)
    };
    assert_eq!(run(plain.instructions(), newer).0, action::NOT_IMPLEMENTED);
    let i386 = |name| Data {
        arch: SyscallTable::I386.audit_arch(),
        number: SyscallTable::I386.number(name).unwrap(),
        arguments: [40, 0, 0, 0, 0, 0],
    };
    assert_eq!(run(plain.instructions(), i386("read")).0, action::ALLOW);
    assert_eq!(run(plain.instructions(), i386("socket")).0, EPERM);
    assert_eq!(run(plain.instructions(), i386("socketcall")).0, EPERM);
    let foreign = Data {
        arch: 0x1234,
        ..native("read", 0)
    };
    assert_eq!(run(plain.instructions(), foreign).0, action::KILL_PROCESS);
}

#[test]
fn every_name_in_the_default_profile_is_a_system_call() {
    for machine in [Machine::X86_64, Machine::Aarch64] {
        let all: Vec<String> = [
            "BPF",
            "DAC_READ_SEARCH",
            "PERFMON",
            "SYS_ADMIN",
            "SYS_BOOT",
            "SYS_CHROOT",
            "SYS_MODULE",
            "SYS_NICE",
            "SYS_PACCT",
            "SYS_PTRACE",
            "SYS_RAWIO",
            "SYS_TIME",
            "SYS_TTY_CONFIG",
            "SYSLOG",
        ]
        .iter()
        .map(|it| format!("CAP_{it}"))
        .collect();
        for rule in default_profile(&all, machine).syscalls().iter().flatten() {
            for name in rule.names() {
                assert!(crate::syscalls::find(name).is_some(), "{name}");
            }
        }
    }
}

#[test]
fn the_default_profile_is_short_and_quick() {
    let none: [&str; 0] = [];
    let profile = default_profile(&none, Machine::X86_64);
    let program = compile(&profile, Machine::X86_64).unwrap();
    assert!(
        program.instructions().len() < 700,
        "{} instructions",
        program.instructions().len()
    );
    for (name, most) in [
        ("read", 14),
        ("write", 14),
        ("futex", 14),
        ("epoll_wait", 14),
        ("clock_gettime", 14),
    ] {
        let (_, steps) = run(program.instructions(), native(name, 0));
        assert!(steps <= most, "{name} takes {steps} instructions");
    }
    let each = (0..200).map(|_| {
        let start = std::time::Instant::now();
        std::hint::black_box(compile(std::hint::black_box(&profile), Machine::X86_64).unwrap());
        start.elapsed()
    });
    let each = each.min().unwrap();
    println!(
        "{} instructions, {each:?} to compile",
        program.instructions().len()
    );
}

#[test]
fn programs_survive_the_way_through_bytes() {
    let none: [&str; 0] = [];
    let program = compile(&default_profile(&none, Machine::X86_64), Machine::X86_64).unwrap();
    assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
    for bad in [&[][..], &[0; 4], &[0; 13]] {
        assert!(Program::from_bytes(bad).is_err());
    }
}

fn profile_of(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

#[test]
fn faults_are_named() {
    let with = |rule: &str| {
        profile_of(&format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#
        ))
    };
    let table = [
        (
            r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#,
            "names no system call",
        ),
        (
            r#"{"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000}"#,
            "errnoRet is 5000",
        ),
        (
            r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            "argument 6",
        ),
        (r#"{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}"#, "write"),
    ];
    for (rule, part) in table {
        let text = compile(&with(rule), Machine::X86_64).unwrap_err().to_string();
        assert!(
            text.starts_with("seccomp rule 1") && text.contains(part),
            "{text}"
        );
    }
    let notify = profile_of(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#);
    assert!(compile(&notify, Machine::X86_64).is_err());
    let many: Vec<String> = (0..200)
        .map(|at| {
            let args: Vec<String> = (0..6)
                .map(|index| {
                    format!(
                        r#"{{"index": {index}, "value": {}, "op": "SCMP_CMP_GT"}}"#,
                        at + 7
                    )
                })
                .collect();
            format!(
                r#"{{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [{}]}}"#,
                args.join(",")
            )
        })
        .collect();
    let error = compile(&with(&many.join(",")), Machine::X86_64).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
}

#[test]
fn flags_and_listeners() {
    let json = |flags: &str, action: &str| {
        profile_of(&format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "flags": [{flags}], "syscalls": [{{"names": ["mkdir"], "action": "{action}"}}]}}"#
        ))
    };
    let flags = |profile: &LinuxSeccomp| compile(profile, Machine::X86_64).unwrap().flags();
    assert_eq!(flags(&json("", "SCMP_ACT_ERRNO")), kernel::FLAG_SPEC_ALLOW);
    assert_eq!(
        flags(&json(
            r#""SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV""#,
            "SCMP_ACT_ERRNO"
        )),
        kernel::FLAG_LOG | kernel::FLAG_TSYNC
    );
    let notify = json(
        r#""SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV""#,
        "SCMP_ACT_NOTIFY",
    );
    assert_eq!(
        flags(&notify),
        kernel::FLAG_NEW_LISTENER | kernel::FLAG_WAIT_KILLABLE_RECV
    );
    assert!(compile(&notify, Machine::X86_64).unwrap().notifies());
}
