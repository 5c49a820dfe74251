//! `holdfast-critest-images`: the images that critest names, made from Debian's packages and served on loopback.
//!
//! Owns: which packages (`packages`), how a program becomes part of a layer (`debian`), what stands in which image
//! (`images`). Leaves out: starting critest and the runtime: `hack/critest` does that.
#![forbid(unsafe_code)]

mod debian;
mod images;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use holdfast_conformance::builder::Pusher;
use holdfast_conformance::registry::Registry;

#[derive(Parser)]
#[command(
    about = "Makes the images that critest names from Debian's packages, and serves them",
    version
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download and unpack the packages, unless that was done before
    Fetch {
        /// Where they are kept
        cache: PathBuf,
    },
    /// Fill a registry on loopback with the images and serve it until standard input ends
    Serve {
        /// Where `fetch` put the packages
        cache: PathBuf,
        /// The registry's files
        #[arg(long)]
        scratch: PathBuf,
        /// Writes here the certs.d directory that sends the images' own registries to this one; it exists once all is ready
        #[arg(long)]
        certs_d: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Fetch { cache } => debian::fetch(&cache),
        Command::Serve {
            cache,
            scratch,
            certs_d,
        } => serve(&cache, &scratch, &certs_d).await,
    }
}

async fn serve(cache: &Path, scratch: &Path, certs_d: &Path) -> anyhow::Result<()> {
    // reqwest, below oci-client, wants a provider before its first client, TLS or not.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("a TLS provider was installed before main");
    }
    let registry = Registry::start(scratch, None)?;
    images::push(&Pusher::new(&registry.host, None), cache).await?;
    write_mirrors(certs_d, &registry.host)?;
    // The caller closes its end, or dies: either ends the registry.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()))
        .await?
        .context("wait for the end of standard input")?;
    drop(registry);
    Ok(())
}

/// A `hosts.toml` for each registry that the images' names begin with; the directory appears whole.
fn write_mirrors(certs_d: &Path, registry: &str) -> anyhow::Result<()> {
    let making = certs_d.with_extension("making");
    for host in images::REGISTRIES {
        let dir = making.join(host);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        // No server of its own: nothing shall be asked of the real registry.
        let text = format!(
            "server = \"http://{registry}\"\n[host.\"http://{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        std::fs::write(dir.join("hosts.toml"), text).with_context(|| format!("write {}", dir.display()))?;
    }
    std::fs::rename(&making, certs_d).with_context(|| format!("rename to {}", certs_d.display()))
}
