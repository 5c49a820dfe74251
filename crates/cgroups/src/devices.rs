//! The device filter: rules, their text for version 1, and the program that stands for them on version 2.
//!
//! Each of the accesses read, write and mknod is decided by itself: by the last rule that fits the device and names
//! that access, and by refusal if there is none. So an open for reading and writing is allowed only if both are,
//! whether by one rule or by two. Version 1's own list is given the same rules in the same order.

use crate::io::Root;
use crate::{Error, io};
use holdfast_sys::bpf::{self, Instruction};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// More rules than any spec has; each takes at most eight instructions.
const MAX_RULES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Block and character devices.
    All,
    Block,
    Char,
}

/// One rule of a device filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    pub kind: DeviceKind,
    /// `None`: any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl DeviceRule {
    /// Whether it fits every device and every access.
    fn is_total(&self) -> bool {
        self.kind == DeviceKind::All
            && self.major.is_none()
            && self.minor.is_none()
            && self.access() == ACCESS_ALL
    }

    /// In the kernel's bits (BPF_DEVCG_ACC_*).
    fn access(&self) -> i32 {
        i32::from(self.mknod) * ACCESS_MKNOD
            + i32::from(self.read) * ACCESS_READ
            + i32::from(self.write) * ACCESS_WRITE
    }

    /// As `devices.allow` and `devices.deny` take it. Version 1 reads type `a` as "everything", whatever follows, so
    /// a narrower rule for all kinds becomes two.
    fn lines(&self) -> Vec<String> {
        if self.is_total() {
            return vec!["a".into()];
        }
        let number = |number: Option<u32>| number.map_or("*".into(), |it| it.to_string());
        let mut access = String::new();
        for (bit, letter) in [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')] {
            if bit {
                access.push(letter);
            }
        }
        let kinds: &[char] = match self.kind {
            DeviceKind::All => &['b', 'c'],
            DeviceKind::Block => &['b'],
            DeviceKind::Char => &['c'],
        };
        kinds
            .iter()
            .map(|kind| format!("{kind} {}:{} {access}", number(self.major), number(self.minor)))
            .collect()
    }
}

const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = 7;
const KIND_BLOCK: i32 = 1;
const KIND_CHAR: i32 = 2;

/// Sets the filter of a version 1 cgroup.
pub(crate) fn apply_v1(root: &Root, dir: &str, rules: &[DeviceRule]) -> Result<(), Error> {
    // A list that already says "everything" or "nothing" is what a total first rule means; else begin with nothing.
    if !rules.first().is_some_and(DeviceRule::is_total) {
        io::write(root, dir, "devices.deny", "a")?;
    }
    for rule in rules.iter().filter(|rule| rule.access() != 0) {
        let file = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        for line in rule.lines() {
            io::write(root, dir, file, &line)?;
        }
    }
    Ok(())
}

/// Puts a new filter on a version 2 cgroup, in the place of the one that an earlier call left. Programs of cgroups
/// above go on being asked too.
pub(crate) fn apply_v2(root: &Root, dir: &str, rules: &[DeviceRule]) -> Result<(), Error> {
    let fail = |action| {
        move |source| Error::DeviceFilter {
            path: io::name(root, dir, ""),
            action,
            source,
        }
    };
    if rules.len() > MAX_RULES {
        return Err(Error::Limit {
            field: "number of device rules",
            value: rules.len().to_string(),
            problem: "that is more than a filter may have",
        });
    }
    let cgroup = io::open_dir(root, dir)?;
    let old = bpf::device_filters(cgroup.as_fd()).map_err(fail("look up"))?;
    let new = bpf::load_device_filter(&program(rules)).map_err(fail("load"))?;
    let (first, rest) = match old.split_first() {
        Some((first, rest)) => (Some(first.as_fd()), rest),
        None => (None, &[][..]),
    };
    bpf::attach_device_filter(cgroup.as_fd(), new.as_fd(), first).map_err(fail("attach"))?;
    for program in rest {
        bpf::detach_device_filter(cgroup.as_fd(), program.as_fd()).map_err(fail("detach"))?;
    }
    Ok(())
}

const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The accesses asked for and not yet allowed.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// The rules, last first, as a program of type BPF_PROG_TYPE_CGROUP_DEVICE: 1 allows, 0 refuses. Its context is
/// `{ access << 16 | kind, major, minor }`, three words.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut out = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(AND_IMMEDIATE, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev().filter(|rule| rule.access() != 0) {
        if rule.is_total() {
            // Nothing before it counts, and the verifier refuses what cannot be reached.
            out.extend(verdict(rule.allow));
            return out;
        }
        out.extend(block(rule));
    }
    out.extend(verdict(false));
    out
}

fn verdict(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE_IMMEDIATE, R0, 0, 0, i32::from(allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn block(rule: &DeviceRule) -> Vec<Instruction> {
    let action = match (rule.allow, rule.access()) {
        (true, access) => vec![
            instruction(AND_IMMEDIATE, WANTED, 0, 0, ACCESS_ALL & !access),
            instruction(JUMP_NOT_EQUAL, WANTED, 0, 2, 0),
        ],
        (false, access) => vec![
            instruction(MOVE_REGISTER, R0, WANTED, 0, 0),
            instruction(AND_IMMEDIATE, R0, 0, 0, access),
            instruction(JUMP_EQUAL, R0, 0, 2, 0),
        ],
    };
    let kind = match rule.kind {
        DeviceKind::All => None,
        DeviceKind::Block => Some(KIND_BLOCK),
        DeviceKind::Char => Some(KIND_CHAR),
    };
    // Device numbers are 12 and 20 bits wide; `oci` refuses larger ones, and a larger one fits no device anyway.
    let number = |number: Option<u32>| number.map(|it| i32::try_from(it).unwrap_or(i32::MAX));
    let tests: Vec<(u8, i32)> = [
        (KIND, kind),
        (MAJOR, number(rule.major)),
        (MINOR, number(rule.minor)),
    ]
    .into_iter()
    .filter_map(|(register, value)| Some((register, value?)))
    .collect();
    let mut out = Vec::with_capacity(8);
    let end = tests.len() + action.len() + 2;
    for (at, (register, value)) in tests.into_iter().enumerate() {
        out.push(instruction(
            JUMP_NOT_EQUAL,
            register,
            0,
            (end - at - 1) as i16,
            value,
        ));
    }
    out.extend(action);
    out.extend(verdict(rule.allow));
    out
}

#[cfg(test)]
mod tests;
