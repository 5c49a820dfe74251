//! CNI plugins: Debian's, and one that misbehaves (`holdfast-cni-bad`): clear errors, nothing left, the next pod has a network.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{must_fail, pod_config};
use crate::expect;

cases!["bad_network";
    plugins_of_debian => "the CNI specification wants DEL with the configuration of ADD; the peer takes the one of today",
    plugin_that_prints_garbage,
    plugin_that_prints_nothing,
    plugin_that_fails_and_dies,
    plugin_that_hangs within 12 => "the peer waits for a plugin as long as the caller waits for the pod",
    plugin_that_is_not_there => "the specification wants nothing left of a pod that was refused; the peer keeps it, and asks the missing plugin for DEL",
];

const REFUSED: &[Code] = &[
    Code::Unknown,
    Code::Internal,
    Code::DeadlineExceeded,
    Code::FailedPrecondition,
    Code::Unavailable,
];
/// How long a changed configuration may take to be seen.
const SEEN: Duration = Duration::from_secs(5);

/// A CNI configuration before all others; it goes when dropped.
struct Configuration {
    path: PathBuf,
    journal: PathBuf,
}

impl Configuration {
    fn write(c: &Context, name: &str, plugins: &Value) -> anyhow::Result<Self> {
        let dir = c.cni_conf_dir()?;
        let list = json!({"cniVersion": "0.4.0", "name": name, "plugins": plugins});
        // Renamed into place, so that no half of it is read.
        let (beside, path) = (dir.join(".new"), dir.join("00-conformance.conflist"));
        std::fs::write(&beside, serde_json::to_vec(&list)?)?;
        std::fs::rename(&beside, &path)?;
        Ok(Self {
            path,
            journal: journal(c, name),
        })
    }

    /// Calls of the plugin since the last look: command and pid.
    fn calls(&self) -> anyhow::Result<Vec<(String, i32)>> {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        if !text.is_empty() {
            std::fs::remove_file(&self.journal)?;
        }
        text.lines()
            .map(|line| {
                let call: Value = serde_json::from_str(line)?;
                let command = call["command"].as_str().context("a call without a command")?;
                let pid = call["pid"].as_i64().context("a call without a pid")?;
                Ok((command.to_owned(), pid.try_into()?))
            })
            .collect()
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        // What cannot be removed makes the next case fail, which says so.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn journal(c: &Context, name: &str) -> PathBuf {
    c.scratch.join(format!("cni-{name}.journal"))
}

/// A pod that must not come to be while the plugin does `behaviour` at ADD; the error has `words`.
async fn misbehaves(c: &Arc<Context>, behaviour: &str, words: &[&str]) -> anyhow::Result<()> {
    let name = format!("bad-{behaviour}");
    let plugin =
        json!([{"type": "holdfast-cni-bad", "journal": journal(c, &name), "behaviour": {"ADD": behaviour}}]);
    let configuration = Configuration::write(c, &name, &plugin)?;
    let error = first_refusal(c, &name, &configuration).await?;
    must_fail::<()>(Err(error), REFUSED, words)?;
    let calls = configuration.calls()?;
    let commands: Vec<&str> = calls.iter().map(|(command, _)| command.as_str()).collect();
    ensure!(
        commands.first() == Some(&"ADD") && commands.get(1) == Some(&"DEL"),
        "the plugin was called {commands:?}, not ADD and then DEL"
    );
    for (command, pid) in &calls {
        ensure!(!crate::server::alive(*pid), "the plugin of {command} still runs");
    }
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    drop(configuration);
    goes_on(c, &name).await
}

/// Runs pods until the plugin was called: the server sees a new configuration a little after it was written.
async fn first_refusal(
    c: &Arc<Context>,
    name: &str,
    configuration: &Configuration,
) -> anyhow::Result<tonic::Status> {
    let start = Instant::now();
    loop {
        let config = pod_config(name, &c.logs());
        std::fs::create_dir_all(&config.log_directory)?;
        match c.cri.run_pod(&config).await {
            Err(error) if configuration.journal.exists() => return Ok(error),
            Err(error) => bail!("refused before the plugin was called: {error}"),
            Ok(id) => {
                c.cri.stop_pod(&id).await?;
                c.cri.remove_pod(&id).await?;
            }
        }
        ensure!(start.elapsed() < SEEN, "the new configuration is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// With the old configuration, the pod that was refused runs, and has an address.
async fn goes_on(c: &Arc<Context>, name: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match Pod::run(c, name).await {
            Ok(pod) => {
                let network = c.cri.pod_status(&pod.id).await?.network;
                ensure!(
                    network.is_some_and(|n| !n.ip.is_empty()),
                    "a pod without an address"
                );
                return pod.end().await;
            }
            Err(error) if start.elapsed() > SEEN => {
                return Err(error.context("the network does not work with the old configuration"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn plugin_that_prints_garbage(c: Arc<Context>) -> anyhow::Result<()> {
    misbehaves(&c, "garbage", &["holdfast-cni-bad", "no valid result"]).await
}

async fn plugin_that_prints_nothing(c: Arc<Context>) -> anyhow::Result<()> {
    misbehaves(&c, "nothing", &["holdfast-cni-bad", "nothing was printed"]).await
}

async fn plugin_that_fails_and_dies(c: Arc<Context>) -> anyhow::Result<()> {
    misbehaves(&c, "fail", &["holdfast-cni-bad", "told to fail"]).await?;
    misbehaves(&c, "die", &["holdfast-cni-bad", "exit status: 3"]).await
}

async fn plugin_that_hangs(c: Arc<Context>) -> anyhow::Result<()> {
    misbehaves(&c, "hang", &["holdfast-cni-bad", "did not finish ADD"]).await
}

async fn plugin_that_is_not_there(c: Arc<Context>) -> anyhow::Result<()> {
    let plugin = json!([{"type": "no-such-plugin"}]);
    let configuration = Configuration::write(&c, "absent", &plugin)?;
    let start = Instant::now();
    // A configuration that cannot be used must not be taken for none.
    let error = loop {
        match c.cri.run_pod(&pod_config("absent", &c.logs())).await {
            Err(error) => break error,
            Ok(id) => {
                c.cri.stop_pod(&id).await?;
                c.cri.remove_pod(&id).await?;
            }
        }
        ensure!(start.elapsed() < SEEN, "the new configuration is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    must_fail::<()>(Err(error), REFUSED, &["no-such-plugin"])?;
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    drop(configuration);
    goes_on(&c, "absent").await
}

async fn plugins_of_debian(c: Arc<Context>) -> anyhow::Result<()> {
    let plugins = json!([
        {"type": "bridge", "bridge": "confcni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": c.scratch.join("cni-leases"),
            "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]);
    let configuration = Configuration::write(&c, "debian", &plugins)?;
    let start = Instant::now();
    let (pod, ip) = loop {
        let mut config = pod_config("debian", &c.logs());
        super::network::ports(&mut config, k8s_cri::v1::Protocol::Tcp, 8080, 28089, "");
        let pod = Pod::run_with(&c, config).await?;
        let ip = super::network::address(&c, &pod).await?.to_string();
        if ip.starts_with("10.89.") {
            break (pod, ip);
        }
        pod.end().await?;
        ensure!(start.elapsed() < SEEN, "the new configuration is not seen: {ip}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let image = c.cri.pull(c.image("busybox")).await?;
    let server = ["/bin/nc", "-ll", "-p", "8080", "-e", "echo", "plugged"];
    let id = pod
        .start(&crate::cri::container_config("server", &image, &server))
        .await?;
    let inside = c
        .cri
        .shell(&id, "ip -o -4 addr show eth0; ip -o link show lo")
        .await?;
    ensure!(inside.contains(&ip) && inside.contains("LOOPBACK,UP"), "{inside}");
    for address in [format!("{ip}:8080"), "127.0.0.1:28089".to_owned()] {
        let answer = tokio::task::spawn_blocking(move || super::network::ask(&address)).await??;
        expect!(answer, "plugged\n", "the answer of a pod on the plugins' network");
    }
    // Taken down by what made it, though the configuration is another by now.
    drop(configuration);
    goes_on(&c, "after-debian").await?;
    pod.end().await?;
    ensure!(
        !held(&c.scratch.join("cni-leases/debian"), &ip),
        "the address {ip} is still leased"
    );
    remove_bridge("confcni0")
}

fn held(leases: &Path, ip: &str) -> bool {
    leases.join(ip).exists()
}

/// The plugin leaves its bridge for the next pod.
fn remove_bridge(name: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("ip")
        .args(["link", "delete", name])
        .status()?;
    ensure!(status.success(), "ip link delete {name}: {status}");
    Ok(())
}
