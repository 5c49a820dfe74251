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
use holdfast_conformance::{builder, cri, guarded, hostile, newer, registry, server, streams};
use holdfast_testkit::{Leaks, Scope};

use crate::cri::Cri;
use crate::registry::Registry;
use crate::server::Server;

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

    /// Leave out cases whose name contains this; may be given several times
    #[arg(long)]
    skip: Vec<String>,
    /// Name of the runtime when it is not holdfast: cases that are known to differ there are reported, not failed
    #[arg(long)]
    peer: Option<String>,
    /// holdfast's --root; with --state, --server-pid-file, --cgroup and --bridge: check after every case that nothing is left behind
    #[arg(long, requires_all = ["state", "server_pid_file", "bridge", "cgroup"])]
    root: Option<PathBuf>,
    /// holdfast's --state
    #[arg(long)]
    state: Option<PathBuf>,
    /// Shell command that becomes the server, for the cases that kill it; without, they do not apply
    #[arg(long, requires = "server_pid_file")]
    server_command: Option<String>,
    /// Holds the server's pid, and is rewritten when a case starts it again
    #[arg(long)]
    server_pid_file: Option<PathBuf>,
    /// Directory of CNI configurations that the server watches, for the cases with plugins; it finds `holdfast-cni-bad`
    #[arg(long)]
    cni_conf_dir: Option<PathBuf>,
    /// A kubectl for the cases that drive one against the stub API server; without, they do not apply
    #[arg(long, env = "KUBECTL")]
    kubectl: Option<PathBuf>,
    /// Directory of CDI specs that the server watches
    #[arg(long)]
    cdi_dir: Option<PathBuf>,
    /// Directory of <host>/hosts.toml that the server reads
    #[arg(long)]
    certs_dir: Option<PathBuf>,
    /// Bytes of output that one exec's streams must carry; 10000000000 takes minutes (with --timeout)
    #[arg(long, default_value_t = 2_000_000_000)]
    exec_output: u64,
    /// How many bytes a layer may unpack to, where the server has been told
    #[arg(long)]
    layer_limit: Option<u64>,
    /// Bridge of holdfast's built-in network
    #[arg(long)]
    bridge: Option<String>,
    /// Cgroups below which everything is holdfast's; may be repeated
    #[arg(long)]
    cgroup: Vec<String>,
    /// A runtime handler that the server has, and its program: `runc=/usr/sbin/runc`; may be repeated
    #[arg(long, value_parser = handler)]
    handler: Vec<(String, PathBuf)>,
    /// File to which the hooks of those handlers write their name and what they read
    #[arg(long)]
    hooks_log: Option<PathBuf>,
    /// Print the names of the cases and leave
    #[arg(long)]
    list: bool,
    /// Give one case at most this many seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// The machine is emulated: how long things take says nothing, and is not judged
    #[arg(long)]
    emulated: bool,
}

/// How much longer a case with a limit of its own may take on an emulated machine.
const EMULATED: u64 = 8;

/// What every case gets.
#[derive(Clone)]
pub struct Context {
    pub cri: Cri,
    pub scratch: PathBuf,
    images: BTreeMap<&'static str, String>,
    /// A registry that asks for basic authentication, with the image `busybox` as its reference.
    pub private: PrivateImage,
    server: Option<Arc<Server>>,
    cni_conf_dir: Option<PathBuf>,
    kubectl: Option<PathBuf>,
    cdi_dir: Option<PathBuf>,
    certs_dir: Option<PathBuf>,
    pub exec_output: u64,
    pub layer_limit: Option<u64>,
    /// Times mean nothing.
    pub emulated: bool,
    /// Runtime handlers with a program: name and program.
    pub handlers: BTreeMap<String, PathBuf>,
    /// What the hooks that the handlers are configured with write to.
    pub hooks_log: Option<PathBuf>,
}

/// Why a case says nothing about this runtime. No failure; but it is printed and counted.
#[derive(Debug, thiserror::Error)]
#[error("does not apply: {0}")]
pub struct NotApplicable(pub &'static str);

#[derive(Clone)]
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

    /// The server, for cases that kill it.
    pub fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_deref().ok_or_else(|| {
            NotApplicable("the server is known by its endpoint alone, and cannot be killed and started (--server-command)").into()
        })
    }

    /// The directory of CNI configurations, for cases with a plugin that misbehaves.
    pub fn cni_conf_dir(&self) -> anyhow::Result<&Path> {
        self.cni_conf_dir.as_deref().ok_or_else(|| {
            NotApplicable("the server's CNI configuration cannot be changed (--cni-conf-dir)").into()
        })
    }

    /// A real kubectl.
    pub fn kubectl(&self) -> anyhow::Result<&Path> {
        self.kubectl.as_deref().ok_or_else(|| {
            NotApplicable("there is no kubectl (--kubectl; make test-kubectl fetches Debian 13's)").into()
        })
    }

    /// The directory of CDI specs.
    pub fn cdi_dir(&self) -> anyhow::Result<&Path> {
        self.cdi_dir
            .as_deref()
            .ok_or_else(|| NotApplicable("the server's CDI specs cannot be changed (--cdi-dir)").into())
    }

    /// The directory of registries' settings.
    pub fn certs_dir(&self) -> anyhow::Result<&Path> {
        self.certs_dir
            .as_deref()
            .ok_or_else(|| NotApplicable("the server's registries cannot be set (--certs-dir)").into())
    }

    /// Where pods write their logs.
    pub fn logs(&self) -> PathBuf {
        // The same cases run for several handlers, and a log is written on from where it ends.
        match self.cri.handler.as_str() {
            "" => self.scratch.join("logs"),
            handler => self.scratch.join("logs").join(handler),
        }
    }
}

fn handler(text: &str) -> Result<(String, PathBuf), String> {
    let (name, program) = text.split_once('=').ok_or("NAME=PROGRAM is wanted")?;
    Ok((name.to_owned(), program.into()))
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
        .filter(|c| !args.skip.iter().any(|part| c.name.contains(part)))
        .collect();
    if args.list {
        cases.iter().for_each(|c| println!("{}", c.name));
        return Ok(ExitCode::SUCCESS);
    }
    crate::cri::PEER.store(args.peer.is_some(), std::sync::atomic::Ordering::Relaxed);
    let scratch = tempfile::Builder::new().prefix("conformance-").tempdir()?;
    let (open, closed, context) = set_up(&args, scratch.path()).await?;
    let context = Arc::new(context);

    let mut leaks = match scope(&args)? {
        Some(scope) => {
            // What the first pod makes for all that follow (the parent cgroup, a connection) is no leak.
            cases::warm_up(&context).await?;
            Some(settled(&scope).await)
        }
        None => None,
    };

    let (mut failed, mut differ, mut passed, mut without) = (Vec::new(), 0, 0, 0);
    let mut daemon = context.server.as_deref().map(Server::pid).transpose()?;
    for case in &cases {
        let start = Instant::now();
        let own = case
            .limit
            .map(|limit| if args.emulated { limit * EMULATED } else { limit });
        let limit = Duration::from_secs(own.unwrap_or(args.timeout).min(args.timeout));
        let result = match case.handler.map(|handler| cases::with_handler(&context, handler)) {
            Some(Err(error)) => Err(error),
            with => {
                let context = with.transpose()?.unwrap_or_else(|| Arc::clone(&context));
                let run = tokio::time::timeout(limit, (case.run)(context)).await;
                run.unwrap_or_else(|_| Err(anyhow::anyhow!("not finished after {limit:?}")))
            }
        };
        if let Some(server) = &context.server
            && !server::alive(server.pid()?)
        {
            // The case failed between the end and the start; or the server died, which the case has noticed.
            server.start(&context.cri).await?;
        }
        let swept = cases::sweep(&context.cri).await;
        let now = context.server.as_deref().map(Server::pid).transpose()?;
        if let (Some(leaks), Some(pid)) = (&mut leaks, now.filter(|_| now != daemon)) {
            // The case has started another one: its descriptors are counted from here.
            cases::warm_up(&context).await?;
            count_from_here(leaks, pid).await;
            daemon = now;
        }
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
            Err(error) if error.is::<NotApplicable>() => {
                without += 1;
                println!("N/A   {}: {error}", case.name);
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
        "conformance: {passed} passed, {} failed, {differ} known to differ there, {without} do not apply",
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
fn scope(args: &Args) -> anyhow::Result<Option<Scope>> {
    let (Some(root), Some(state), Some(pid_file), Some(bridge)) =
        (&args.root, &args.state, &args.server_pid_file, &args.bridge)
    else {
        return Ok(None);
    };
    let daemon = Server::new(String::new(), pid_file.clone()).pid()?;
    let scope = Scope::new(root, state).daemon(daemon).bridge(bridge);
    Ok(Some(
        args.cgroup
            .iter()
            .fold(scope, |scope, cgroup| scope.cgroup(cgroup)),
    ))
}

/// What there is once the first pod's interface and addresses have gone.
async fn settled(scope: &Scope) -> Leaks {
    for _ in 0..20 {
        let leaks = Leaks::snapshot(scope);
        tokio::time::sleep(Duration::from_millis(300)).await;
        if leaks.differences().is_empty() {
            return leaks;
        }
    }
    Leaks::snapshot(scope)
}

/// Another daemon's descriptors, once what it does after its first pod (a monitor for the next one) is done.
async fn count_from_here(leaks: &mut Leaks, pid: i32) {
    for _ in 0..10 {
        leaks.daemon_is(pid);
        tokio::time::sleep(Duration::from_millis(300)).await;
        if leaks.differences().is_empty() {
            return;
        }
    }
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
    let server = match (&args.server_command, &args.server_pid_file) {
        (Some(command), Some(file)) => Some(Arc::new(Server::new(command.clone(), file.clone()))),
        _ => None,
    };
    let context = Context {
        cri,
        server,
        cni_conf_dir: args.cni_conf_dir.clone(),
        kubectl: args.kubectl.clone(),
        cdi_dir: args.cdi_dir.clone(),
        certs_dir: args.certs_dir.clone(),
        exec_output: args.exec_output,
        layer_limit: args.layer_limit,
        emulated: args.emulated,
        handlers: args.handler.iter().cloned().collect(),
        hooks_log: args.hooks_log.clone(),
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
