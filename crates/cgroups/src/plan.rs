//! Changing the limits of a cgroup in use: all of them or none.
//!
//! [`Cgroup::plan`] looks at every file that is to change and writes nothing; what it returns can be stored, so that even
//! an update that was cut off in the middle can be taken back. [`Cgroup::carry_out`] writes, and on a failure puts back
//! what it had written, last change first: every state on the way back is one that the kernel has accepted before.

use crate::io::{self, Root};
use crate::limits::{Limits, Stage};
use crate::steps::{Step, Steps};
use crate::{Cgroup, Error, undo};
use serde::{Deserialize, Serialize};

const MEMORY_MAX: &str = "memory.max";
const MEMORY_LIMIT: [&str; 2] = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];

/// One file, what is to be in it, and what has it back as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Mount point of the hierarchy.
    hierarchy: String,
    pub file: String,
    pub value: String,
    /// Files and lines to write, in this order.
    before: Vec<(String, String)>,
    /// A list that was empty, and so its parent's. The kernel does not let one be emptied again while processes are in the
    /// cgroup: `before` then has what it came to.
    #[serde(default)]
    was_empty: bool,
}

impl Change {
    /// Files of this change and what was in them; nothing in a list that was its parent's.
    pub(crate) fn held(&self) -> Vec<(&str, &str)> {
        if self.was_empty {
            return vec![(&self.file, "")];
        }
        let lines = self.before.iter();
        lines.map(|(file, line)| (file.as_str(), line.trim())).collect()
    }

    /// The memory limit of version 2 that putting it back would set.
    fn memory_before(&self) -> Option<u64> {
        let mut lines = self.before.iter();
        let (_, line) = lines.find(|(file, _)| file == MEMORY_MAX)?;
        line.trim().parse().ok()
    }

    /// Whether another changes the same thing: the same file, or in one of lines the same line.
    fn same_place(&self, other: &Self) -> bool {
        let place = |change: &Self| undo::key(&change.file, &change.value).map(str::to_owned);
        self.hierarchy == other.hierarchy && self.file == other.file && place(self) == place(other)
    }
}

impl Plan {
    /// As one with an earlier plan that could not be taken back whole: taken back, everything is as it was before that one.
    #[must_use]
    pub fn after(self, earlier: &Self) -> Self {
        let mut changes = earlier.changes.clone();
        let warnings = self.warnings.clone();
        changes.extend(self.without(earlier).changes);
        Self { changes, warnings }
    }

    /// What of it another does not change.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        self.changes
            .retain(|change| !other.changes.iter().any(|known| known.same_place(change)));
        self
    }
}

/// Everything that an update changes, in the order in which the kernel takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub changes: Vec<Change>,
    /// What will be done less well than asked, in words for the log.
    pub warnings: Vec<String>,
}

/// An update that did not take place.
#[derive(Debug)]
pub struct Refused {
    /// The file that the kernel refused.
    pub file: String,
    pub error: Error,
    /// What could not be put back as it was, if anything.
    pub left: Vec<Error>,
}

impl Cgroup {
    /// What an update to these limits has to change. The device filter is no part of it: what may be opened is settled at
    /// creation.
    pub fn plan(&self, limits: &Limits) -> Result<Plan, Error> {
        let Steps { list, warnings } = self.steps(limits, Stage::All)?;
        let mut plan = Plan {
            changes: Vec::with_capacity(list.len()),
            warnings,
        };
        for step in &list {
            if let Some(change) = self.look(step, &mut plan.warnings)? {
                plan.changes.push(change);
            }
        }
        Ok(plan)
    }

    /// `None`: there is no such file, and that is as good as done.
    fn look(&self, step: &Step<'_>, warnings: &mut Vec<String>) -> Result<Option<Change>, Error> {
        let dir = self.dir_in(step.root);
        let (file, value) = (&step.write.file, &step.write.value);
        let text = match io::read(step.root, &dir, file) {
            Ok(text) => text,
            Err(error) if error.is_gone() && io::exists(step.root, "", &dir) => {
                self.missing(step, &dir, error, warnings)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let effective = undo::effective(file).filter(|_| step.unified && text.trim().is_empty());
        let effective = effective.and_then(|other| io::read(step.root, &dir, other).ok());
        let was_empty = effective.is_some();
        let text = effective.unwrap_or(text);
        let lines = undo::before(file, value, &text).into_iter();
        let mut before: Vec<(String, String)> = lines.map(|line| (file.clone(), line)).collect();
        if let Some(other) = undo::companion(file)
            && let Ok(text) = io::read(step.root, &dir, other)
        {
            let lines = undo::before(other, "", &text).into_iter();
            before.extend(lines.map(|line| (other.to_owned(), line)));
        }
        Ok(Some(Change {
            hierarchy: step.root.at.clone(),
            file: file.clone(),
            value: value.clone(),
            before,
            was_empty,
        }))
    }

    /// Writes everything, or leaves everything as it was.
    ///
    /// A memory limit below what is in use is refused, after the kernel was asked to reclaim: version 1 refuses it by
    /// itself (EBUSY), version 2 would rather kill. What a process takes between that look and the write can still be
    /// too much for it.
    pub fn carry_out(&self, plan: &Plan) -> Result<(), Refused> {
        for (at, change) in plan.changes.iter().enumerate() {
            if let Err(error) = self.change(change) {
                return Err(Refused {
                    file: change.file.clone(),
                    error,
                    left: self.undo(&plan.changes[..at]),
                });
            }
        }
        Ok(())
    }

    /// Puts everything back as it was when the plan was made; for one that was carried out, in part or in full. Returns
    /// what could not be: among it a memory limit that something has outgrown meanwhile, and cannot be reclaimed down to.
    #[must_use]
    pub fn take_back(&self, plan: &Plan) -> Vec<Error> {
        self.undo(&plan.changes)
    }

    fn undo(&self, changes: &[Change]) -> Vec<Error> {
        let mut left = Vec::new();
        for change in changes.iter().rev() {
            let write = |file: &str, line: &str| self.write(self.root_at(&change.hierarchy)?, file, line);
            if change.was_empty && write(&change.file, "\n").is_ok() {
                continue;
            }
            for (file, line) in &change.before {
                left.extend(write(file, line).err());
            }
        }
        left
    }

    /// What of a plan can be put back without killing anything, for who has somebody else do it: all but memory limits
    /// below what is in use.
    #[must_use]
    pub fn bearable(&self, plan: &Plan) -> Plan {
        let bearable = |change: &&Change| match (change.memory_before(), self.root_at(&change.hierarchy)) {
            (Some(limit), Ok(root)) => self.make_room(root, limit).is_ok(),
            _ => true,
        };
        Plan {
            changes: plan.changes.iter().filter(bearable).cloned().collect(),
            warnings: Vec::new(),
        }
    }

    fn change(&self, change: &Change) -> Result<(), Error> {
        self.write(self.root_at(&change.hierarchy)?, &change.file, &change.value)
    }

    fn write(&self, root: &Root, file: &str, value: &str) -> Result<(), Error> {
        if file == MEMORY_MAX
            && let Ok(limit) = value.trim().parse()
        {
            self.make_room(root, limit)?;
        }
        let written = io::write(root, &self.dir_in(root), file, value);
        match written {
            Err(error) if MEMORY_LIMIT.contains(&file) => Err(self.in_use(root, (file, value), error)),
            other => other,
        }
    }

    /// Of version 1: what the kernel's "busy" means here.
    fn in_use(&self, root: &Root, (file, value): (&str, &str), error: Error) -> Error {
        match (error.errno(), value.trim().parse(), self.stats()) {
            (Some(libc::EBUSY), Ok(limit), Ok(stats)) => Error::InUse {
                file: io::name(root, &self.dir_in(root), file),
                limit,
                usage: stats.memory.usage,
            },
            _ => error,
        }
    }

    /// Of version 2: sees to it that a limit can be set without killing anything, or says that it cannot.
    fn make_room(&self, root: &Root, limit: u64) -> Result<(), Error> {
        let dir = self.dir_in(root);
        let usage = || crate::v1::number(root, &dir, "memory.current");
        let over = usage()?.saturating_sub(limit);
        if over == 0 {
            return Ok(());
        }
        // Linux 5.19. It says EAGAIN where it got less than asked for; what counts is what is in use afterwards.
        let _ = io::write(root, &dir, "memory.reclaim", &over.to_string());
        match usage()? {
            usage if usage > limit => Err(Error::InUse {
                file: io::name(root, &dir, MEMORY_MAX),
                limit,
                usage,
            }),
            _ => Ok(()),
        }
    }

    fn root_at(&self, at: &str) -> Result<&Root, Error> {
        let root = self.hierarchy().roots().find(|root| root.at == at);
        root.ok_or_else(|| Error::Path {
            path: at.to_owned(),
            problem: "is no cgroup file system any more",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(file: &str, value: &str, before: &str) -> Change {
        Change {
            hierarchy: "/sys/fs/cgroup".into(),
            file: file.into(),
            value: value.into(),
            before: vec![(file.into(), before.into())],
            was_empty: false,
        }
    }

    #[test]
    fn of_two_plans_the_earlier_says_what_a_file_held() {
        let plan = |changes: &[Change]| Plan {
            changes: changes.to_vec(),
            warnings: Vec::new(),
        };
        let earlier = plan(&[
            change("memory.max", "9", "5"),
            change("io.max", "8:0 rbps=2", "8:0 rbps=1"),
        ]);
        let later = plan(&[
            change("cpu.weight", "7", "3"),
            change("memory.max", "12", "9"),
            change("io.max", "8:16 rbps=2", "8:16 rbps=max"),
        ]);
        let both = later.clone().after(&earlier);
        let mut expect = earlier.changes.clone();
        expect.extend([later.changes[0].clone(), later.changes[2].clone()]);
        assert_eq!(both.changes, expect);
        // However often it fails, it does not grow.
        assert_eq!(later.after(&both), both);
    }
}
