//! Section `logs`: how fast lines get from a container's stdout into the log file.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_cri::v1::NamespaceMode;

use crate::bench::Bench;
use crate::image::{LINE, LINES_FILE, LINES_PER_FILE};
use crate::report::{FLOOR, Unit};
use crate::target::{Target, Wish};

/// The last line.
const END: &str = "the-last-line";

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let what = format!("log of {} MB in {LINE}-byte lines", bench.args.log_mb);
    let logs = bench.log_dir();
    let files = (bench.args.log_mb * 1_000_000 / (LINE * LINES_PER_FILE)).max(1);
    let bytes = files * LINES_PER_FILE * LINE;
    let script = format!("cat{}; echo {END}", format!(" /{LINES_FILE}").repeat(files));
    let rate = |took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
    for round in bench.rounds(bench.args.slow_runs) {
        let name = format!("log-{}", round.number);
        for at in round.order {
            let target = &bench.targets[at];
            let command = ["/bin/sh", "-c", &script];
            let wish = Wish {
                name: &name,
                image: &bench.image,
                network: NamespaceMode::Node,
                command: &command,
                logs: &logs,
            };
            rustix::fs::sync();
            let result = once(target, &wish, bytes).await;
            let who = target.name.clone();
            match result {
                Ok(took) if round.counts => {
                    bench.report.add(&what, Unit::MbPerSecond, &who, rate(took));
                }
                Ok(_) => {}
                Err(error) => bench.report.fail(&what, Unit::MbPerSecond, &who, &error),
            }
            target.sweep().await;
            std::fs::remove_dir_all(logs.join(&name))?;
            bench.rest().await;
        }
        if bench.floor.is_some() {
            rustix::fs::sync();
            let took = floor(&bench.scratch, files)?;
            if round.counts {
                bench.report.add(&what, Unit::MbPerSecond, FLOOR, rate(took));
            }
        }
    }
    Ok(())
}

async fn once(target: &Target, wish: &Wish<'_>, bytes: usize) -> anyhow::Result<Duration> {
    let (pod, _) = target.create(wish).await?;
    let path = wish.logs.join(wish.name).join("main.log");
    let begin = Instant::now();
    target.cri.start(&pod.container).await.context("StartContainer")?;
    let size = until_complete(&path, begin).await?;
    let took = begin.elapsed();
    // Each line has a time of at least 20 bytes and the words stdout and F in front.
    let least = (bytes + bytes / LINE * 30) as u64;
    if size < least {
        bail!(
            "{} has {size} bytes, less than the {least} of every line",
            path.display()
        );
    }
    target.end(&pod).await?;
    Ok(took)
}

async fn until_complete(path: &Path, begin: Instant) -> anyhow::Result<u64> {
    let mut tail = [0u8; 64];
    let wanted = format!(" {END}\n");
    loop {
        if let Ok(file) = File::open(path) {
            let size = file.metadata()?.len();
            let at = size.saturating_sub(tail.len() as u64);
            let n = file.read_at(&mut tail, at)?;
            if tail[..n].ends_with(wanted.as_bytes()) {
                return Ok(size);
            }
        }
        if begin.elapsed() > Duration::from_secs(120) {
            bail!("the last line is not in {} after two minutes", path.display());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The same writer, and a reader that looks at nothing.
fn floor(scratch: &Path, files: usize) -> anyhow::Result<Duration> {
    let source = scratch.join(LINES_FILE);
    if !source.exists() {
        std::fs::write(&source, crate::image::lines())?;
    }
    let path = scratch.join("floor.log");
    let mut file = File::create(&path)?;
    let mut block = vec![0u8; 1 << 20];
    let begin = Instant::now();
    let sources: Vec<PathBuf> = vec![source; files];
    let mut child = Command::new("busybox")
        .arg("cat")
        .args(&sources)
        .stdout(Stdio::piped())
        .spawn()
        .context("run busybox cat")?;
    let mut pipe = child.stdout.take().context("no pipe from cat")?;
    // As large as an unprivileged pipe may be.
    rustix::pipe::fcntl_setpipe_size(&pipe, 1 << 20)?;
    loop {
        let n = pipe.read(&mut block)?;
        if n == 0 {
            break;
        }
        file.write_all(&block[..n])?;
    }
    let took = begin.elapsed();
    child.wait()?;
    std::fs::remove_file(&path)?;
    Ok(took)
}
