//! From limits to the writes that carry them out, in their order. Reads what decides about an order; writes nothing.

use crate::hierarchy::{Controller, Home};
use crate::io::{self, Root};
use crate::limits::{Cpu, Limits, Memory, Stage};
use crate::v2::{Write, must};
use crate::{Cgroup, Error, v1, v2};

/// One write, and where it goes.
pub(crate) struct Step<'a> {
    pub root: &'a Root,
    pub write: Write,
    /// `None`: a file of the core.
    pub controller: Option<Controller>,
    pub unified: bool,
}

/// All writes of one call.
#[derive(Default)]
pub(crate) struct Steps<'a> {
    pub list: Vec<Step<'a>>,
    /// What is done less well than asked, in words for the log.
    pub warnings: Vec<String>,
}

impl<'a> Steps<'a> {
    fn add(&mut self, controller: Controller, home: &Home<'a>, writes: Vec<Write>) {
        let (root, unified) = match *home {
            Home::V1(root) => (root, false),
            Home::V2(root) => (root, true),
        };
        self.list.extend(writes.into_iter().map(|write| Step {
            root,
            write,
            controller: Some(controller),
            unified,
        }));
    }
}

impl Cgroup {
    /// What has to be written for the limits of one stage; the device filter, which is no file on version 2, left out.
    pub(crate) fn steps(&self, limits: &Limits, stage: Stage) -> Result<Steps<'_>, Error> {
        let mut steps = Steps::default();
        if stage.early() {
            self.cpu_steps(&limits.cpu, &mut steps)?;
            self.list_steps(limits, &mut steps)?;
        }
        let late = |file: &str| file.starts_with("memory.");
        // What may be refused goes before the memory limits: taking those back can be too late for a process.
        for (file, value) in limits
            .unified
            .iter()
            .filter(|(file, _)| !late(file) && stage.early())
        {
            self.unified_steps(file, value, &mut steps)?;
        }
        if stage.late() {
            self.memory_steps(&limits.memory, &mut steps)?;
        }
        for (file, value) in limits
            .unified
            .iter()
            .filter(|(file, _)| late(file) && stage.late())
        {
            self.unified_steps(file, value, &mut steps)?;
        }
        Ok(steps)
    }

    fn cpu_steps<'a>(&'a self, cpu: &Cpu, steps: &mut Steps<'a>) -> Result<(), Error> {
        let bandwidth = Cpu {
            cpus: None,
            mems: None,
            ..cpu.clone()
        };
        if bandwidth == Cpu::default() {
            return Ok(());
        }
        let home = self.need(Controller::Cpu, "cpu")?;
        let writes = match &home {
            Home::V1(root) => v1::cpu(&bandwidth, || v1::bandwidth(root, &self.dir_in(root)))?,
            Home::V2(_) => v2::cpu(&bandwidth),
        };
        steps.add(Controller::Cpu, &home, writes);
        Ok(())
    }

    /// Those controllers whose limits are plain lists of writes on both versions.
    fn list_steps<'a>(&'a self, limits: &Limits, steps: &mut Steps<'a>) -> Result<(), Error> {
        let has = |root: &Root, file: &str| io::exists(root, &self.dir_in(root), file);
        if limits.cpu.cpus.is_some() || limits.cpu.mems.is_some() {
            let home = self.need(Controller::Cpuset, "cpuset")?;
            steps.add(Controller::Cpuset, &home, v2::cpuset(&limits.cpu));
        }
        if let Some(limit) = limits.pids {
            match self.need(Controller::Pids, "pids") {
                // The file is the same on both.
                Ok(home) => steps.add(Controller::Pids, &home, v2::pids(limit)),
                Err(_) if limit <= 0 => {}
                Err(error) => return Err(error),
            }
        }
        if limits.hugepages.iter().any(|(_, bytes)| *bytes != 0)
            || self.hierarchy().home(Controller::Hugetlb).is_some()
        {
            let home = self.need(Controller::Hugetlb, "hugetlb")?;
            let writes = match &home {
                Home::V1(root) => v1::hugepages(&limits.hugepages, |file| has(root, file)),
                Home::V2(root) => v2::hugepages(&limits.hugepages, |file| has(root, file)),
            };
            steps.add(Controller::Hugetlb, &home, writes);
        }
        if limits.block_io != crate::BlockIo::default() {
            let home = self.need(Controller::Io, "io")?;
            let writes = match &home {
                Home::V1(root) => v1::block_io(&limits.block_io, has(root, "blkio.bfq.weight")),
                Home::V2(root) => v2::block_io(&limits.block_io, has(root, "io.bfq.weight")),
            };
            steps.add(Controller::Io, &home, writes);
        }
        Ok(())
    }

    fn memory_steps<'a>(&'a self, memory: &Memory, steps: &mut Steps<'a>) -> Result<(), Error> {
        if *memory == Memory::default() {
            return Ok(());
        }
        let home = self.need(Controller::Memory, "memory")?;
        if memory.check_before_update {
            self.check_usage(memory)?;
        }
        let (writes, warnings) = match &home {
            Home::V1(root) => v1::memory(memory, || v1::total(root, &self.dir_in(root)))?,
            Home::V2(_) => v2::memory(memory)?,
        };
        steps.add(Controller::Memory, &home, writes);
        steps.warnings.extend(warnings);
        Ok(())
    }

    fn check_usage(&self, memory: &Memory) -> Result<(), Error> {
        let usage = self.stats()?.memory.usage;
        match memory.limit.and_then(|limit| u64::try_from(limit).ok()) {
            Some(limit) if limit > 0 && usage > limit => Err(Error::InUse {
                file: format!("the memory of {}", self.path()),
                limit,
                usage,
            }),
            _ => Ok(()),
        }
    }

    fn unified_steps<'a>(&'a self, file: &str, value: &str, steps: &mut Steps<'a>) -> Result<(), Error> {
        v2::check_unified(file)?;
        let unified = self.hierarchy().mounts.unified.as_ref();
        let prefix = file.split('.').next().unwrap_or_default();
        let there = unified.filter(|unified| {
            self.hierarchy().mode() == crate::Mode::Unified
                || prefix == "cgroup"
                || unified.controllers.iter().any(|it| it.unified_name() == prefix)
        });
        let Some(unified) = there else {
            if file == "memory.oom.group" {
                let warning = "memory.oom.group needs cgroup version 2: left out";
                steps.warnings.push(warning.into());
                return Ok(());
            }
            return Err(Error::Limit {
                field: "unified cgroup setting",
                value: file.to_owned(),
                problem: "this machine has that controller on cgroup version 1",
            });
        };
        // Files such as io.max take one line a write.
        for line in value.lines().filter(|line| !line.is_empty()) {
            steps.list.push(Step {
                root: &unified.root,
                write: must(file, line),
                controller: Controller::of_unified(prefix),
                unified: true,
            });
        }
        Ok(())
    }

    pub(crate) fn need(&self, controller: Controller, limit: &str) -> Result<Home<'_>, Error> {
        self.hierarchy()
            .home(controller)
            .ok_or_else(|| Error::NoController {
                path: self.path(),
                controller: controller.legacy_name(),
                limit: limit.to_owned(),
            })
    }
}
