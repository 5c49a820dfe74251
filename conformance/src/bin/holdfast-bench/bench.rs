//! One run: connect, prepare the images, measure section by section, print.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use holdfast_conformance::builder::Pusher;
use holdfast_conformance::registry::Registry;
use k8s_cri::v1 as cri;

use crate::args::{Args, Section};
use crate::floor_client::Floor;
use crate::report::{Report, Unit};
use crate::target::{Target, Wish, ms};
use crate::{image, logs, memory, parallel, pods, pull};

pub struct Bench<'a> {
    pub args: &'a Args,
    pub targets: Vec<Target>,
    pub floor: Option<Floor>,
    pub report: Report,
    pub scratch: PathBuf,
    pub registry: Registry,
    /// The image that the pods run.
    pub image: String,
}

pub async fn run(args: &Args) -> anyhow::Result<()> {
    if args.runtimes.is_empty() && args.no_floor {
        bail!("nothing to measure: give --runtime NAME=SOCKET");
    }
    let kept = args.scratch.is_some();
    let scratch = match &args.scratch {
        Some(dir) => dir.clone(),
        None => tempfile::Builder::new()
            .prefix("holdfast-bench-")
            .tempdir_in("/var/tmp")?
            .keep(),
    };
    std::fs::create_dir_all(&scratch)?;
    let result = Bench::new(args, &scratch).await;
    let result = match result {
        Ok(mut bench) => {
            let result = bench.sections().await;
            bench.finish();
            result
        }
        Err(error) => Err(error),
    };
    if !kept {
        std::fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    }
    result
}

impl<'a> Bench<'a> {
    async fn new(args: &'a Args, scratch: &Path) -> anyhow::Result<Self> {
        let mut targets = Vec::new();
        for (name, socket) in &args.runtimes {
            let mut target = Target::connect(name, socket).await?;
            let dir = args.cni_conf_dirs.iter().find(|(owner, _)| owner == name);
            target.cni_conf_dir = dir.map(|(_, dir)| PathBuf::from(dir));
            targets.push(target);
        }
        let mut report = Report::default();
        if args.wants(Section::Memory) {
            for target in &targets {
                let rss = memory::rss(target.pid)?;
                report.add("daemon RSS, as started", Unit::MiB, &target.name, rss);
            }
        }
        let registry = Registry::start(scratch, None)?;
        let pusher = Pusher::new(&registry.host, None);
        let image = image::push_small(&pusher).await.context("push the pods' image")?;
        for target in &targets {
            let pulled = target.cri.pull(&image).await;
            pulled.with_context(|| format!("{} pulls the pods' image", target.name))?;
        }
        let floor = match args.no_floor {
            true => None,
            false => Some(Floor::start(&scratch.join("floor"))?),
        };
        Ok(Self {
            args,
            targets,
            floor,
            report,
            scratch: scratch.to_owned(),
            registry,
            image,
        })
    }

    async fn sections(&mut self) -> anyhow::Result<()> {
        for section in [
            Section::Call,
            Section::Pods,
            Section::Exec,
            Section::Memory,
            Section::Parallel,
            Section::Logs,
            Section::Pull,
        ] {
            if !self.args.wants(section) {
                continue;
            }
            let begin = Instant::now();
            match section {
                Section::Call => self.calls().await,
                Section::Pods => pods::run(self).await?,
                Section::Exec => pods::exec(self).await?,
                Section::Parallel => parallel::run(self).await?,
                Section::Memory => memory::run(self).await,
                Section::Pull => pull::run(self).await?,
                Section::Logs => logs::run(self).await?,
            }
            for target in &self.targets {
                target.sweep().await;
            }
            eprintln!("{section:?}: {:.1} s", begin.elapsed().as_secs_f64());
        }
        if self.args.wants(Section::Memory) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for target in &self.targets {
                match memory::rss(target.pid) {
                    Ok(rss) => {
                        self.report
                            .add("daemon RSS, at the end", Unit::MiB, &target.name, rss);
                    }
                    Err(error) => {
                        self.report
                            .fail("daemon RSS, at the end", Unit::MiB, &target.name, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// A call that does nothing.
    async fn calls(&mut self) {
        for round in self.rounds(self.args.runs * 4) {
            for at in round.order {
                let target = &self.targets[at];
                let begin = Instant::now();
                let request = cri::VersionRequest {
                    version: "v1".to_owned(),
                };
                let answer = target.cri.runtime.clone().version(request).await;
                let took = ms(begin, Instant::now());
                match answer {
                    Ok(_) if round.counts => self.report.add("Version", Unit::Ms, &target.name, took),
                    Ok(_) => {}
                    Err(error) => self.report.fail("Version", Unit::Ms, &target.name, &error.into()),
                }
            }
        }
    }

    fn finish(&self) {
        let names: Vec<String> = self.targets.iter().map(|t| t.name.clone()).collect();
        if self.args.json {
            match serde_json::to_string_pretty(&self.report) {
                Ok(text) => println!("{text}"),
                Err(error) => eprintln!("the report does not fit into JSON: {error}"),
            }
        } else {
            print!("{}", self.report.table(&names));
        }
    }

    /// `count` rounds that count, after those that warm up; the targets' order turns with each.
    pub fn rounds(&self, count: usize) -> Vec<Round> {
        let targets = self.targets.len();
        let warm_up = self.args.warm_up.min(count);
        (0..count + warm_up)
            .map(|number| {
                let mut order: Vec<usize> = (0..targets).collect();
                if number % 2 == 1 {
                    order.reverse();
                }
                Round {
                    number,
                    counts: number >= warm_up,
                    order,
                }
            })
            .collect()
    }

    /// Lets what a turn put off come to its end.
    pub async fn rest(&self) {
        tokio::time::sleep(Duration::from_millis(self.args.rest)).await;
    }

    pub fn log_dir(&self) -> PathBuf {
        self.scratch.join("logs")
    }
}

pub struct Round {
    pub number: usize,
    pub counts: bool,
    /// Indices of the targets.
    pub order: Vec<usize>,
}

/// A pod that sleeps, with the name, image and logs given.
pub fn sleeper<'a>(name: &'a str, image: &'a str, logs: &'a Path, network: cri::NamespaceMode) -> Wish<'a> {
    Wish {
        name,
        image,
        network,
        command: &["/bin/sleep", "100000"],
        logs,
    }
}
