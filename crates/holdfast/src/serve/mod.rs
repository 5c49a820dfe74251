//! `holdfast serve`: from configuration to a server that answers, and down again.
//!
//! Order matters: everything that can say "not here, not like this" comes before anything is touched.

mod lock;
mod notify;
pub mod privileges;
mod socket;
mod upkeep;
pub mod user_namespaces;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use holdfast_cri_server::{Node, Services};
use holdfast_engine::{CgroupDriver, Engine};
use holdfast_images::Images;
use holdfast_network::Network;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::Serve;
use crate::config::{self, Config, Overrides};
use crate::output;

/// Threads for file work that ends by itself. What takes as long as a download or an image likes has threads of its own.
const BLOCKING_THREADS: usize = 32;

pub fn run(options: Serve) -> Result<()> {
    let (raw, origins) = config::load(options.config.as_deref())?;
    let overrides = Overrides {
        root: options.root,
        state: options.state,
        listen: options.listen,
    };
    let config = Config::new(raw, &origins, overrides)?;
    if options.check_config {
        return output::line(format_args!("{config:#?}"));
    }
    log_to_stderr(&config.log)?;
    privileges::check()?;
    privileges::raise_open_files()?;
    // Two arenas at the most, for two workers; what large buffers leave behind goes back to the kernel.
    holdfast_sys::arenas::limit(2);

    make_dir(&config.root, 0o700)?;
    make_dir(&config.state, 0o711)?;
    let _lock = lock::take(&config.root)?;
    let socket = socket::bind(&config.listen)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("holdfast")
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(serve(config, socket));
    // Work that nobody waits for any more must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config, socket: socket::Bound) -> Result<()> {
    let manager = Arc::new(notify::Manager::from_env());
    let mut registry = config.registry.clone();
    registry.proxy = holdfast_registry::Proxy::from_env()
        .map_err(|reason| anyhow::anyhow!("the environment's proxy: {reason}"))?;
    let registry = Arc::new(holdfast_registry::Client::new(registry));
    let images = Images::open(&config.root, config.images.clone(), registry)
        .with_context(|| format!("cannot open the images in {}", config.root.display()))?;
    let network =
        Network::open(config.network.clone()).context("cannot open the network (section [network])")?;
    let streaming = holdfast_streaming::Bound::new(config.streaming.clone())
        .await
        .context("section [streaming]")?;
    let engine = Engine::open(config.engine.clone(), images.clone(), network)
        .await
        .context("cannot open the pods")?;
    upkeep::collect_images(images.clone());
    let cgroups = [
        config.engine.default_cgroup.clone(),
        config.engine.monitor_cgroup.clone(),
    ];
    let by_hand = engine.cgroup_driver() == CgroupDriver::Cgroupfs;
    let services = Services {
        streaming: Arc::new(streaming.serve(Arc::new(engine.clone()))),
        engine,
        images,
        node: Arc::new(node(&config)),
    };
    let pods = services.engine.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let told = manager.clone();
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping; pods run on"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping; pods run on"),
        }
        told.stopping();
    };
    let (listener, path) = socket.into_tokio()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %path.path().display(),
        root = %config.root.display(),
        state = %config.state.display(),
        "serving"
    );
    holdfast_sys::heap::trim();
    // The socket has a queue already: whoever connects now is answered in a moment.
    manager.ready(&services.engine);
    manager.clone().keep_alive(services.engine.clone());
    holdfast_cri_server::serve(listener, services, shutdown, config.drain).await?;
    // Slices and scopes are systemd's to remove.
    if by_hand {
        upkeep::remove_empty_cgroups(&cgroups);
    }
    pods.release_mounts();
    tracing::info!("stopped");
    Ok(())
}

fn node(config: &Config) -> Node {
    Node {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recursive_read_only: privileges::kernel_at_least(5, 12),
        user_namespaces: user_namespaces::probe(&config.root),
        config: serde_json::json!({
            "root": config.root,
            "state": config.state,
            "listen": config.listen,
            "helpers": config.engine.helpers,
            "cgroupDriver": config.engine.cgroup_driver,
            "cgroup": config.engine.default_cgroup,
            "cdiSpecDirs": config.engine.cdi_dirs,
            "certsDirs": config.registry.certs_d,
            "cni": {
                "confDir": config.network.cni_conf_dir,
                "confTemplate": config.network.cni_conf_template,
                "binDirs": config.network.cni_bin_dirs,
            },
            "bridge": config.network.bridge,
            "maxContainerLogLineSize": holdfast_engine::LOG_CHUNK,
            "streaming": { "address": config.streaming.address, "tls": config.streaming.tls.is_some() },
        }),
    }
}

fn log_to_stderr(directives: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives).with_context(|| {
        format!("log.level = {directives:?}: `info` or `info,holdfast_network=debug` is wanted")
    })?;
    // A journal has its own clock; a terminal likes colours.
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .init();
    Ok(())
}

/// Makes a directory for root's eyes; one that is there keeps its mode.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make the directory {}", path.display()))
}
