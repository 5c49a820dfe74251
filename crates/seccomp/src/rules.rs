//! From a profile to, for each table of system calls, what is to happen to each number.

use crate::Error;
use crate::action;
use crate::syscalls::{self, Machine, SyscallTable, X32_BIT};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator as Operator, LinuxSyscall};

/// Numbers from here on are arm's private ones only.
const DENSE: usize = 1024;
const SLOTS: usize = DENSE + 16;

/// One condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub argument: u8,
    pub operator: Operator,
    pub value: u64,
    /// MASKED_EQ: `value` is the mask, and this is what must be left.
    pub value_two: u64,
}

/// An action under conditions, which must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guarded {
    pub conditions: Vec<Condition>,
    pub action: u32,
}

/// What happens to one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub always: Option<u32>,
    /// Indices of [`Rules::guarded`], in order.
    pub when: Vec<u16>,
}

/// What happens to the calls of one table.
#[derive(Debug)]
pub(crate) struct TableRules {
    pub table: SyscallTable,
    slots: Vec<Call>,
    /// The highest number that the profile names, without x32's bit and arm's private ones.
    pub highest: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Rules {
    pub default: u32,
    pub guarded: Vec<Guarded>,
    /// The native table first; only those that the profile lists.
    pub tables: Vec<TableRules>,
    pub notifies: bool,
}

impl TableRules {
    fn slot(number: u32) -> usize {
        let number = number & !X32_BIT;
        match number as usize {
            small if small < DENSE => small,
            _ => DENSE + (number & 0xf) as usize,
        }
    }

    /// The calls that have rules, by ascending number as a filter sees it.
    pub fn calls(&self) -> impl Iterator<Item = (u32, &Call)> {
        let named = |it: &(usize, &Call)| it.1.always.is_some() || !it.1.when.is_empty();
        self.slots.iter().enumerate().filter(named).map(|(at, call)| {
            let number = if at < DENSE {
                at as u32
            } else {
                0xf_0000 | (at - DENSE) as u32
            };
            let marker = if self.table == SyscallTable::X32 {
                X32_BIT
            } else {
                0
            };
            (number | marker, call)
        })
    }
}

impl Rules {
    pub fn new(profile: &LinuxSeccomp, machine: Machine) -> Result<Self, Error> {
        let default = action::value(profile.default_action(), profile.default_errno_ret())
            .map_err(|problem| Error::DefaultAction { problem })?;
        if default == action::USER_NOTIF {
            return Err(Error::DefaultAction {
                problem:
                    "SCMP_ACT_NOTIFY would stop the container's first own system call, before anybody listens"
                        .into(),
            });
        }
        let mut out = Self {
            default,
            guarded: Vec::new(),
            tables: tables(profile, machine),
            notifies: false,
        };
        for (at, rule) in profile.syscalls().iter().flatten().enumerate() {
            out.add(rule).map_err(|problem| Error::Rule {
                rule: at + 1,
                calls: describe(rule),
                problem,
            })?;
        }
        Ok(out)
    }

    fn add(&mut self, rule: &LinuxSyscall) -> Result<(), String> {
        if rule.names().is_empty() {
            return Err("it names no system call".into());
        }
        let action = action::value(rule.action(), rule.errno_ret())?;
        if action == action::USER_NOTIF {
            if rule.names().iter().any(|name| name == "write") {
                return Err("SCMP_ACT_NOTIFY cannot be used for write: the launcher needs it to hand out the listener".into());
            }
            self.notifies = true;
        }
        let alternatives = alternatives(rule.args().as_deref().unwrap_or_default())?;
        let first = self.guarded.len();
        // What does as the default does is no rule, but its names still count as known.
        let counts = action != self.default;
        if counts {
            let guarded = alternatives
                .into_iter()
                .map(|conditions| Guarded { conditions, action });
            self.guarded
                .extend(guarded.filter(|it| !it.conditions.is_empty()));
        }
        let range = first..self.guarded.len();
        if u16::try_from(range.end).is_err() {
            return Err("the profile has too many conditions".into());
        }
        for name in rule.names() {
            let Some(row) = syscalls::find(name) else {
                continue;
            };
            for table in &mut self.tables {
                let Some(number) = table.table.number_in(row) else {
                    continue;
                };
                let plain = number & !X32_BIT;
                if (plain as usize) < DENSE {
                    table.highest = table.highest.max(Some(plain));
                }
                if !counts {
                    continue;
                }
                let call = &mut table.slots[TableRules::slot(number)];
                if range.is_empty() {
                    call.always.get_or_insert(action);
                } else {
                    call.when.extend(range.clone().map(|at| at as u16));
                }
            }
        }
        Ok(())
    }
}

fn tables(profile: &LinuxSeccomp, machine: Machine) -> Vec<TableRules> {
    let native = machine.tables()[0];
    let listed = |table: SyscallTable| {
        let mut architectures = profile.architectures().iter().flatten();
        table == native || architectures.any(|arch| SyscallTable::of(*arch) == Some(table))
    };
    machine
        .tables()
        .iter()
        .filter(|table| listed(**table))
        .map(|table| TableRules {
            table: *table,
            slots: vec![Call::default(); SLOTS],
            highest: None,
        })
        .collect()
}

/// A rule's conditions as a list of alternatives. One without conditions has one alternative, which always holds.
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, String> {
    let mut conditions = Vec::with_capacity(args.len());
    for arg in args {
        if arg.index() > 5 {
            return Err(format!(
                "argument {} does not exist: they are numbered 0 to 5",
                arg.index()
            ));
        }
        conditions.push(Condition {
            argument: arg.index() as u8,
            operator: arg.op(),
            value: arg.value(),
            value_two: arg.value_two().unwrap_or(0),
        });
    }
    let mut seen = [0u8; 6];
    for it in &conditions {
        seen[it.argument as usize] += 1;
    }
    if seen.iter().any(|count| *count > 1) {
        return Ok(conditions.into_iter().map(|it| vec![it]).collect());
    }
    Ok(vec![conditions])
}

fn describe(rule: &LinuxSyscall) -> String {
    const MOST: usize = 3;
    let mut out: Vec<String> = rule
        .names()
        .iter()
        .take(MOST)
        .map(|name| name.chars().take(32).collect())
        .collect();
    if rule.names().len() > MOST {
        out.push(format!("and {} more", rule.names().len() - MOST));
    }
    out.join(", ")
}
