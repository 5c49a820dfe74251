//! `holdfast-conformance`: a suite that drives any CRI v1 socket with real images from a real registry.
//!
//! Owns: the cases, the images they need, the registry that serves them. Leaves out: starting the runtime under test
//! (`hack/conformance` does that for holdfast and for containerd) and everything that is not visible through CRI.

mod cases;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use holdfast_conformance::{builder, cri, registry};
use holdfast_testkit::{Leaks, Scope};

use crate::cri::Cri;
use crate::registry::Registry;

#[derive(Parser)]
#[command(about = "Drives a CRI socket through cases on real images", version)]
struct Args {
    /// Socket of the runtime, with or without unix://
    #[arg(
        long,
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = "unix:///run/holdfast/holdfast.sock"
    )]
    runtime_endpoint: String,
    /// Run only the cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Name of the runtime when it is not holdfast: cases that are known to differ there are reported, not failed
    #[arg(long)]
    peer: Option<String>,
    /// holdfast's --root; with --state, --daemon, --cgroup and --bridge: check after every case that nothing is left behind
    #[arg(long, requires_all = ["state", "daemon", "bridge", "cgroup"])]
    root: Option<PathBuf>,
    /// holdfast's --state
    #[arg(long)]
    state: Option<PathBuf>,
    /// Pid of holdfast's daemon
    #[arg(long)]
    daemon: Option<i32>,
    /// Bridge of holdfast's built-in network
    #[arg(long)]
    bridge: Option<String>,
    /// Cgroups below which everything is holdfast's; may be repeated
    #[arg(long)]
    cgroup: Vec<String>,
    /// Print the names of the cases and leave
    #[arg(long)]
    list: bool,
    /// Give one case at most this many seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// What every case gets.
pub struct Context {
    pub cri: Cri,
    pub scratch: PathBuf,
    images: BTreeMap<&'static str, String>,
    /// A registry that asks for basic authentication, with the image `busybox` as its reference.
    pub private: PrivateImage,
}

pub struct PrivateImage {
    pub reference: String,
    pub user: &'static str,
    pub password: &'static str,
}

impl Context {
    /// Full reference of one of the images that `builder::fill` made.
    pub fn image(&self, name: &str) -> &str {
        self.images
            .get(name)
            .map_or("an-image-that-nobody-made", String::as_str)
    }

    /// Where pods write their logs.
    pub fn logs(&self) -> PathBuf {
        self.scratch.join("logs")
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    // reqwest, below oci-client, wants a provider before its first client, TLS or not.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("a TLS provider was installed before main");
    }
    let cases: Vec<_> = cases::all()
        .into_iter()
        .filter(|c| c.name.contains(&args.filter))
        .collect();
    if args.list {
        cases.iter().for_each(|c| println!("{}", c.name));
        return Ok(ExitCode::SUCCESS);
    }
    crate::cri::PEER.store(args.peer.is_some(), std::sync::atomic::Ordering::Relaxed);
    let scratch = tempfile::Builder::new().prefix("conformance-").tempdir()?;
    let (open, closed, context) = set_up(&args, scratch.path()).await?;
    let context = Arc::new(context);

    let leaks = match scope(&args) {
        Some(scope) => {
            // What the first pod makes for all that follow (the parent cgroup, a connection) is no leak.
            cases::warm_up(&context).await?;
            Some(Leaks::snapshot(&scope))
        }
        None => None,
    };

    let (mut failed, mut differ, mut passed) = (Vec::new(), 0, 0);
    for case in &cases {
        let start = Instant::now();
        let limit = Duration::from_secs(args.timeout);
        let result = match tokio::time::timeout(limit, (case.run)(Arc::clone(&context))).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("not finished after {limit:?}")),
        };
        let swept = cases::sweep(&context.cri).await;
        let swept = match &leaks {
            Some(leaks) => swept.and(nothing_left(leaks).await),
            None => swept,
        };
        let took = start.elapsed().as_millis();
        match result.and(swept) {
            Ok(()) => {
                passed += 1;
                println!("PASS  {} ({took} ms)", case.name);
            }
            Err(error) => match case.differs.filter(|_| args.peer.is_some()) {
                Some(why) => {
                    differ += 1;
                    println!("DIFFERS {} ({took} ms): {error:#}\n      {why}", case.name);
                }
                None => {
                    println!("FAIL  {} ({took} ms): {error:#}", case.name);
                    failed.push(case.name);
                }
            },
        }
    }
    drop((open, closed));
    println!(
        "conformance: {passed} passed, {} failed, {differ} known to differ there",
        failed.len()
    );
    for name in &failed {
        println!("  failed: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    Ok(if failed.is_empty() && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The objects of the kernel and on disk that belong to the holdfast under test, where the caller says which they are.
fn scope(args: &Args) -> Option<Scope> {
    let (Some(root), Some(state), Some(daemon), Some(bridge)) =
        (&args.root, &args.state, args.daemon, &args.bridge)
    else {
        return None;
    };
    let scope = Scope::new(root, state).daemon(daemon).bridge(bridge);
    Some(
        args.cgroup
            .iter()
            .fold(scope, |scope, cgroup| scope.cgroup(cgroup)),
    )
}

/// Namespaces and interfaces die a little after the call that let them go.
async fn nothing_left(leaks: &Leaks) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = leaks.differences();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            anyhow::bail!("left behind: {}", left.join("; "));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn set_up(args: &Args, scratch: &Path) -> anyhow::Result<(Registry, Registry, Context)> {
    let open = Registry::start(scratch, None)?;
    let (user, password) = ("pod", "secret word");
    let htpasswd = scratch.join("htpasswd");
    std::fs::write(&htpasswd, PRIVATE_USER)?;
    let closed = Registry::start(scratch, Some(&htpasswd))?;
    let images = builder::fill(&builder::Pusher::new(&open.host, None))
        .await
        .context("fill the registry")?;
    let small = builder::ImageSource::new(
        vec![(builder::busybox_layer()?.finish(), builder::Packing::Gzip)],
        serde_json::json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "PRIVATE=1"]}),
    );
    let reference = builder::Pusher::new(&closed.host, Some((user, password)))
        .push("private/busybox:1", &small)
        .await?;
    let cri = Cri::connect(&args.runtime_endpoint).await?;
    let context = Context {
        cri,
        scratch: scratch.to_owned(),
        images,
        private: PrivateImage {
            reference,
            user,
            password,
        },
    };
    std::fs::create_dir_all(context.logs())?;
    Ok((open, closed, context))
}

/// User `pod` with the password `secret word`, as htpasswd(1) writes it with bcrypt.
const PRIVATE_USER: &str = "pod:$2y$05$SQKCz0mcI6ASI/4S7Vtiz.u.gvyBVwkfBwUs1e5YwDiIjavRx2gZe\n";
