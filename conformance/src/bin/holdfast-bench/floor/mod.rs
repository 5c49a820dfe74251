//! The floor: what the kernel alone takes for a pod. Served line by line on stdin and stdout by a process of one thread.
//!
//! `pod network` and `pod host` answer `{"took": [sandbox, create, start], "end": ms}`, `exec` the milliseconds of an
//! exec of `true`, `cni` the milliseconds of the plugins' ADD and DEL, `many N` the seconds of N pods. It lives in mount and network namespaces of its own.

mod cgroup;
mod cni;
mod container;
mod files;
mod netlink;

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use holdfast_sys::clone;
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::target::ms;
use container::{Container, Sandbox};
use files::Files;
use netlink::Bridge;

/// What all pods of this process share.
pub struct Node {
    pub files: Files,
    pub cgroups: cgroup::Hierarchies,
    bridge: Bridge,
    next: u32,
}

pub fn serve(scratch: &Path) -> anyhow::Result<()> {
    holdfast_sys::namespace::unshare(clone::NEWNS | clone::NEWNET).context("unshare: is this root?")?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let mut node = Node {
        files: Files::new(scratch)?,
        cgroups: cgroup::Hierarchies::find()?,
        bridge: Bridge::new().context("make a bridge")?,
        next: 0,
    };
    let mut sleeper: Option<Pod> = None;
    for line in std::io::stdin().lock().lines() {
        let answer = match line?.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["pod", network] => node.timed_pod(*network == "network")?,
            ["exec"] => {
                if sleeper.is_none() {
                    sleeper = Some(node.pod(false)?);
                }
                let pod = sleeper.as_ref().context("no pod to exec in")?;
                let begin = Instant::now();
                pod.container.exec(&node)?;
                ms(begin, Instant::now()).to_string()
            }
            ["cni"] => serde_json::json!(cni::timed(&mut node)?).to_string(),
            ["many", count] => node.many(count.parse()?)?.to_string(),
            other => bail!("the floor knows no {other:?}"),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    if let Some(pod) = sleeper {
        pod.end()?;
    }
    Ok(())
}

pub struct Pod {
    sandbox: Sandbox,
    container: Container,
    took: [f64; 3],
}

impl Pod {
    fn end(self) -> anyhow::Result<()> {
        self.container.end()?;
        self.sandbox.end()
    }
}

impl Node {
    fn pod(&mut self, network: bool) -> anyhow::Result<Pod> {
        self.next += 1;
        let number = self.next;
        let begin = Instant::now();
        let sandbox = Sandbox::new(self, number, network).context("sandbox")?;
        if network {
            self.bridge
                .attach(&sandbox.network, number)
                .context("network of a pod")?;
        }
        let sandboxed = Instant::now();
        let mut container = Container::create(self, number, &sandbox).context("container")?;
        let created = Instant::now();
        container.start().context("start")?;
        let took = [
            ms(begin, sandboxed),
            ms(sandboxed, created),
            ms(created, Instant::now()),
        ];
        Ok(Pod {
            sandbox,
            container,
            took,
        })
    }

    fn timed_pod(&mut self, network: bool) -> anyhow::Result<String> {
        let pod = self.pod(network)?;
        let took = pod.took;
        std::thread::sleep(std::time::Duration::from_millis(20));
        let begin = Instant::now();
        pod.end()?;
        let end = ms(begin, Instant::now());
        Ok(serde_json::json!({"took": took, "end": end}).to_string())
    }

    fn many(&mut self, count: usize) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let pods = (0..count)
            .map(|_| self.pod(true))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let took = begin.elapsed().as_secs_f64();
        pods.into_iter().try_for_each(Pod::end)?;
        Ok(took)
    }
}
