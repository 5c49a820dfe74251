use super::*;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Request {
    kind: i32,
    access: i32,
    major: u32,
    minor: u32,
}

/// The module's documentation, in so many words.
fn allowed(rules: &[DeviceRule], request: Request) -> bool {
    [ACCESS_MKNOD, ACCESS_READ, ACCESS_WRITE]
        .into_iter()
        .filter(|bit| request.access & bit != 0)
        .all(|bit| {
            let decides = |rule: &&DeviceRule| {
                let kind = match rule.kind {
                    DeviceKind::All => true,
                    DeviceKind::Block => request.kind == KIND_BLOCK,
                    DeviceKind::Char => request.kind == KIND_CHAR,
                };
                kind && rule.major.is_none_or(|it| it == request.major)
                    && rule.minor.is_none_or(|it| it == request.minor)
                    && rule.access() & bit != 0
            };
            rules.iter().rev().find(decides).is_some_and(|rule| rule.allow)
        })
}

/// Runs the few instructions that `program` uses.
fn run(program: &[Instruction], request: Request) -> bool {
    let context = [
        (request.access << 16 | request.kind) as u32,
        request.major,
        request.minor,
    ];
    let mut registers = [0u64; 11];
    let mut at = 0usize;
    loop {
        let it = program[at];
        let (to, from) = ((it.registers & 15) as usize, (it.registers >> 4) as usize);
        let immediate = i64::from(it.immediate) as u64;
        at += 1;
        let taken = match it.code {
            LOAD_WORD => {
                registers[to] = u64::from(context[it.offset as usize / 4]);
                false
            }
            MOVE_IMMEDIATE => {
                registers[to] = immediate;
                false
            }
            MOVE_REGISTER => {
                registers[to] = registers[from];
                false
            }
            AND_IMMEDIATE => {
                registers[to] &= immediate;
                false
            }
            SHIFT_RIGHT => {
                registers[to] >>= immediate;
                false
            }
            JUMP_EQUAL => registers[to] == immediate,
            JUMP_NOT_EQUAL => registers[to] != immediate,
            EXIT => return registers[0] == 1,
            other => panic!("unknown code {other:#x}"),
        };
        if taken {
            at += it.offset as usize;
        }
    }
}

fn rule() -> impl Strategy<Value = DeviceRule> {
    let kind = prop_oneof![
        Just(DeviceKind::All),
        Just(DeviceKind::Block),
        Just(DeviceKind::Char)
    ];
    let number = || prop::option::of(0u32..3);
    (
        any::<bool>(),
        kind,
        number(),
        number(),
        any::<(bool, bool, bool)>(),
    )
        .prop_map(|(allow, kind, major, minor, (read, write, mknod))| DeviceRule {
            allow,
            kind,
            major,
            minor,
            read,
            write,
            mknod,
        })
}

proptest! {
    #[test]
    fn the_program_decides_as_the_rules_do(
        rules in prop::collection::vec(rule(), 0..12),
        kind in 1i32..3, access in 1i32..8, major in 0u32..3, minor in 0u32..3,
    ) {
        let request = Request { kind, access, major, minor };
        prop_assert_eq!(run(&program(&rules), request), allowed(&rules, request));
    }
}

#[test]
fn version_1_lines() {
    let any = DeviceRule {
        allow: false,
        kind: DeviceKind::All,
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: true,
    };
    assert_eq!(any.lines(), ["a"]);
    let null = DeviceRule {
        kind: DeviceKind::Char,
        major: Some(1),
        minor: Some(3),
        ..any.clone()
    };
    assert_eq!(null.lines(), ["c 1:3 rwm"]);
    let mknod = DeviceRule {
        read: false,
        write: false,
        ..any
    };
    assert_eq!(mknod.lines(), ["b *:* m", "c *:* m"]);
}
