//! The compiler: a profile's rules to a program.
//!
//! The program looks at the architecture, then searches the number in a balanced tree of ranges (seven or eight
//! comparisons for the default profile), and only then, for the few calls that have conditions, at arguments. A call
//! whose outcome hangs on its number alone costs next to nothing on Linux 5.11 and later: the kernel finds out by
//! running the tree once for each number when the filter is installed.

use crate::Error;
use crate::action;
use crate::bpf::{ARCH, ARGUMENTS, Assembler, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, NUMBER, Place};
use crate::program::Program;
use crate::rules::{Call, Condition, Rules, TableRules};
use crate::syscalls::{Machine, SyscallTable, X32_BIT};
use holdfast_sys::seccomp as kernel;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator};

/// Compiles `profile` for a kernel on `machine`. Flags that the profile does not set are those that cost nothing:
/// without any, the speculative store bypass mitigation is left off.
pub fn compile(profile: &LinuxSeccomp, machine: Machine) -> Result<Program, Error> {
    let rules = Rules::new(profile, machine)?;
    let mut out = Assembler::default();
    let foreign = out.give(action::KILL_PROCESS);
    let find = |wanted: SyscallTable| rules.tables.iter().find(|it| it.table == wanted);
    let compat = machine.tables()[1];
    // From the end to the beginning; the native table comes last, to stand first.
    let other = find(compat).map(|it| {
        let tree = search(&mut out, &rules, it);
        out.load(NUMBER, tree)
    });
    let x32 = find(SyscallTable::X32).map(|it| search(&mut out, &rules, it));
    let mut native = search(&mut out, &rules, &rules.tables[0]);
    if machine == Machine::X86_64 {
        native = x32_or_native(&mut out, &rules, x32.unwrap_or(foreign), native);
    }
    native = out.load(NUMBER, native);
    let elsewhere = match other {
        Some(place) => out.jump(JUMP_EQUAL, compat.audit_arch(), place, foreign),
        None => foreign,
    };
    let start = out.jump(JUMP_EQUAL, rules.tables[0].table.audit_arch(), native, elsewhere);
    out.load(ARCH, start);
    if out.len() > kernel::MAX_INSTRUCTIONS {
        return Err(Error::TooLong {
            instructions: out.len(),
            limit: kernel::MAX_INSTRUCTIONS,
        });
    }
    Ok(Program {
        instructions: out.finish(),
        flags: flags(profile, rules.notifies),
        notifies: rules.notifies,
    })
}

/// -1 is no x32 call, although it has the bit: a tracer sets it to have a call skipped.
fn x32_or_native(out: &mut Assembler, rules: &Rules, x32: Place, native: Place) -> Place {
    let skipped = out.give(unknown(rules));
    let marked = out.jump(JUMP_EQUAL, u32::MAX, skipped, x32);
    out.jump(JUMP_GREATER_EQUAL, X32_BIT, marked, native)
}

/// What happens to numbers above all that the profile names.
fn unknown(rules: &Rules) -> u32 {
    if action::denies(rules.default) {
        action::NOT_IMPLEMENTED
    } else {
        rules.default
    }
}

/// What happens to a range of numbers.
#[derive(Clone, Copy, PartialEq)]
enum Outcome<'a> {
    Plain(u32),
    Guarded(&'a Call),
}

fn search(out: &mut Assembler, rules: &Rules, table: &TableRules) -> Place {
    let ranges = ranges(rules, table);
    tree(out, rules, table.table, &ranges)
}

/// The ranges of numbers that share an outcome, by their first number; together they cover all numbers.
fn ranges<'a>(rules: &Rules, table: &'a TableRules) -> Vec<(u32, Outcome<'a>)> {
    let base = if table.table == SyscallTable::X32 {
        X32_BIT
    } else {
        0
    };
    let default = Outcome::Plain(rules.default);
    let mut out: Vec<(u32, Outcome<'a>)> = Vec::with_capacity(256);
    let mut add = |start: u32, outcome: Outcome<'a>| match out.last_mut() {
        Some(last) if last.1 == outcome => {}
        Some(last) if last.0 == start => last.1 = outcome,
        _ => out.push((start, outcome)),
    };
    add(base, default);
    // The first number that the profile does not know.
    let mut beyond = Some(base | table.highest.map_or(0, |highest| highest + 1));
    for (number, call) in table.calls() {
        if let Some(start) = beyond.take_if(|beyond| *beyond <= number) {
            add(start, Outcome::Plain(unknown(rules)));
        }
        add(
            number,
            match call.always {
                Some(value) => Outcome::Plain(value),
                None => Outcome::Guarded(call),
            },
        );
        let rest = if beyond.is_some() {
            default
        } else {
            Outcome::Plain(unknown(rules))
        };
        add(number + 1, rest);
    }
    if let Some(start) = beyond {
        add(start, Outcome::Plain(unknown(rules)));
    }
    out
}

fn tree(out: &mut Assembler, rules: &Rules, table: SyscallTable, ranges: &[(u32, Outcome<'_>)]) -> Place {
    match ranges {
        [(_, Outcome::Plain(value))] => out.give(*value),
        [(_, Outcome::Guarded(call))] => guarded(out, rules, table, call),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let above = tree(out, rules, table, high);
            let below = tree(out, rules, table, low);
            out.jump(JUMP_GREATER_EQUAL, high[0].0, above, below)
        }
    }
}

fn guarded(out: &mut Assembler, rules: &Rules, table: SyscallTable, call: &Call) -> Place {
    let mut next = out.give(rules.default);
    for at in call.when.iter().rev() {
        let rule = &rules.guarded[usize::from(*at)];
        let mut hold = out.give(rule.action);
        for it in rule.conditions.iter().rev() {
            hold = condition(out, table, it, hold, next);
        }
        next = hold;
    }
    next
}

/// A test of one 64-bit argument, by its two words: the machines that we serve are little-endian.
fn condition(out: &mut Assembler, table: SyscallTable, it: &Condition, yes: Place, no: Place) -> Place {
    let low_at = ARGUMENTS + 8 * u32::from(it.argument);
    let high_at = low_at + 4;
    let (low, high) = (it.value as u32, (it.value >> 32) as u32);
    let wide = !table.is_32_bit();
    let equal = |out: &mut Assembler, yes, no| {
        let test = out.jump(JUMP_EQUAL, low, yes, no);
        let mut place = out.load(low_at, test);
        if wide {
            let test = out.jump(JUMP_EQUAL, high, place, no);
            place = out.load(high_at, test);
        }
        place
    };
    let ordered = |out: &mut Assembler, last, yes, no| {
        let test = out.jump(last, low, yes, no);
        let mut place = out.load(low_at, test);
        if wide {
            let same = out.jump(JUMP_EQUAL, high, place, no);
            let above = out.jump(JUMP_GREATER, high, yes, same);
            place = out.load(high_at, above);
        }
        place
    };
    match it.operator {
        Operator::ScmpCmpEq => equal(out, yes, no),
        Operator::ScmpCmpNe => equal(out, no, yes),
        Operator::ScmpCmpGe => ordered(out, JUMP_GREATER_EQUAL, yes, no),
        Operator::ScmpCmpGt => ordered(out, JUMP_GREATER, yes, no),
        Operator::ScmpCmpLt => ordered(out, JUMP_GREATER_EQUAL, no, yes),
        Operator::ScmpCmpLe => ordered(out, JUMP_GREATER, no, yes),
        Operator::ScmpCmpMaskedEq => {
            let (want_low, want_high) = (it.value_two as u32, (it.value_two >> 32) as u32);
            let test = out.jump(JUMP_EQUAL, want_low, yes, no);
            let masked = out.and(low, test);
            let mut place = out.load(low_at, masked);
            if wide && (high != 0 || want_high != 0) {
                let test = out.jump(JUMP_EQUAL, want_high, place, no);
                let masked = out.and(high, test);
                place = out.load(high_at, masked);
            }
            place
        }
    }
}

fn flags(profile: &LinuxSeccomp, notifies: bool) -> u32 {
    let Some(listed) = profile.flags().as_ref().filter(|flags| !flags.is_empty()) else {
        return kernel::FLAG_SPEC_ALLOW | if notifies { kernel::FLAG_NEW_LISTENER } else { 0 };
    };
    let mut out = if notifies { kernel::FLAG_NEW_LISTENER } else { 0 };
    for flag in listed {
        out |= match flag {
            Flag::SeccompFilterFlagLog => kernel::FLAG_LOG,
            Flag::SeccompFilterFlagSpecAllow => kernel::FLAG_SPEC_ALLOW,
            // The kernel refuses each of these two beside the wrong answer to "is there a listener". A container's
            // init has one thread, so synchronising its threads changes nothing.
            Flag::SeccompFilterFlagTsync if !notifies => kernel::FLAG_TSYNC,
            Flag::SeccompFilterFlagWaitKillableRecv if notifies => kernel::FLAG_WAIT_KILLABLE_RECV,
            Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    out
}

#[cfg(test)]
mod tests;
