//! Talks to the process that measures the floor: this program again, with one thread.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;

pub struct Floor {
    /// Two, so that many pods can be made on two processors.
    workers: Vec<Worker>,
}

struct Worker {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
pub struct Pod {
    /// Sandbox, container up to the barrier, exec of the container, in milliseconds.
    pub took: [f64; 3],
    pub end: f64,
}

impl Floor {
    pub fn start(scratch: &Path) -> anyhow::Result<Self> {
        let workers = (0..2)
            .map(|number| Worker::start(&scratch.join(format!("worker-{number}"))))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { workers })
    }

    pub fn pod(&mut self, network: bool) -> anyhow::Result<Pod> {
        let command = if network { "pod network" } else { "pod host" };
        let answer = self.workers[0].ask(command)?;
        serde_json::from_str(&answer).with_context(|| format!("the floor answers {answer}"))
    }

    /// Milliseconds that Debian's plugins alone take: ADD, DEL.
    pub fn cni(&mut self) -> anyhow::Result<[f64; 2]> {
        let answer = self.workers[0].ask("cni")?;
        serde_json::from_str(&answer).with_context(|| format!("the floor answers {answer}"))
    }

    /// Milliseconds.
    pub fn exec(&mut self) -> anyhow::Result<f64> {
        let answer = self.workers[0].ask("exec")?;
        answer
            .trim()
            .parse()
            .with_context(|| format!("the floor answers {answer}"))
    }

    /// Seconds that `count` pods took on all workers together.
    pub fn many(&mut self, count: usize) -> anyhow::Result<f64> {
        let workers = self.workers.len();
        for worker in &mut self.workers {
            worker.tell(&format!("many {}", count / workers))?;
        }
        let mut longest = 0f64;
        for worker in &mut self.workers {
            let answer = worker.hear()?;
            let seconds: f64 = answer
                .trim()
                .parse()
                .with_context(|| format!("the floor answers {answer}"))?;
            longest = longest.max(seconds);
        }
        Ok(longest)
    }
}

impl Worker {
    fn start(scratch: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("floor")
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the floor's process")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no stdout of the floor")?);
        Ok(Self { child, to, from })
    }

    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        self.tell(command)?;
        self.hear()
    }

    fn tell(&mut self, command: &str) -> anyhow::Result<()> {
        let to = self.to.as_mut().context("the floor's process is closed")?;
        writeln!(to, "{command}").context("write to the floor's process")
    }

    fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let n = self.from.read_line(&mut line)?;
        anyhow::ensure!(n > 0, "the floor's process ended; its error stands above");
        Ok(line)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It cleans up at the end of its input.
        self.to = None;
        let _ = self.child.wait();
    }
}
