//! Sections `pods` and `exec`: one pod at a time, call by call.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_cri::v1::NamespaceMode;

use crate::bench::{Bench, sleeper};
use crate::report::{FLOOR, Unit};
use crate::target::{Pod, Target, ms};

/// The conflist for the CNI rounds: what `apt-get install containernetworking-plugins` offers.
pub const CONFLIST: &str = r#"{"cniVersion": "0.4.0", "name": "bench", "plugins": [
  {"type": "loopback"},
  {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
"#;
const CONFLIST_NAME: &str = "10-holdfast-bench.conflist";
/// Pods of [`CONFLIST`] have addresses that begin so.
const CONFLIST_ADDRESSES: &str = "10.89.";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    Own,
    Host,
    Cni,
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own network",
            Self::Host => "host network",
            Self::Cni => "CNI plugins",
        }
    }

    fn mode(self) -> NamespaceMode {
        match self {
            Self::Host => NamespaceMode::Node,
            Self::Own | Self::Cni => NamespaceMode::Pod,
        }
    }
}

pub async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    round_trip(bench, Network::Own).await?;
    round_trip(bench, Network::Host).await?;
    let switched = switch(bench, true).await;
    let result = match switched {
        Ok(()) => round_trip(bench, Network::Cni).await,
        Err(error) => {
            let what = label(Network::Cni, START);
            for at in 0..bench.targets.len() {
                let who = bench.targets[at].name.clone();
                bench.report.fail(&what, Unit::Ms, &who, &error);
                bench.targets[at].sweep().await;
            }
            Ok(())
        }
    };
    // Back to what was; a runtime that does not go back fails the rows that follow by itself.
    if let Err(error) = switch(bench, false).await {
        bench.report.notes.push(format!("{error:#}"));
    }
    result
}

/// Puts the CNI configuration into the directories that were named, or takes it away.
async fn switch(bench: &Bench<'_>, cni: bool) -> anyhow::Result<()> {
    for target in &bench.targets {
        let Some(dir) = &target.cni_conf_dir else { continue };
        let path = dir.join(CONFLIST_NAME);
        if cni {
            // Written whole under another name: the directory is watched.
            let hidden = dir.join(".holdfast-bench");
            std::fs::write(&hidden, CONFLIST).with_context(|| format!("write {}", hidden.display()))?;
            std::fs::rename(&hidden, &path)?;
        } else {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        until_network(bench, target, cni).await?;
    }
    Ok(())
}

/// Waits until new pods get their addresses from [`CONFLIST`], or no longer do.
async fn until_network(bench: &Bench<'_>, target: &Target, cni: bool) -> anyhow::Result<()> {
    let logs = bench.log_dir();
    let wish = sleeper("which-network", &bench.image, &logs, NamespaceMode::Pod);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let pod = target.start(&wish).await?;
        let status = target.cri.pod_status(&pod.id).await?;
        target.end(&pod).await?;
        let address = status.network.map(|n| n.ip).unwrap_or_default();
        if address.starts_with(CONFLIST_ADDRESSES) == cni {
            return Ok(());
        }
        if Instant::now() > deadline {
            anyhow::bail!(
                "{}: a new pod's address is still {address} ten seconds after the CNI configuration changed",
                target.name
            );
        }
    }
}

async fn round_trip(bench: &mut Bench<'_>, network: Network) -> anyhow::Result<()> {
    let logs = bench.log_dir();
    let image = bench.image.clone();
    for round in bench.rounds(bench.args.runs) {
        let name = format!("pod-{}", round.number);
        for at in round.order {
            let wish = sleeper(&name, &image, &logs, network.mode());
            let result = bench.targets[at].start(&wish).await;
            bench.rest().await;
            let target = &bench.targets[at];
            let result = match result {
                Ok(pod) => target.end(&pod).await.map(|ended| (pod, ended)),
                Err(error) => Err(error),
            };
            let who = target.name.clone();
            match result {
                Ok((pod, ended)) if round.counts => note(bench, network, &who, pod.took, Some(ended)),
                Ok(_) => {}
                Err(error) => {
                    bench.report.fail(&label(network, START), Unit::Ms, &who, &error);
                    target.sweep().await;
                }
            }
            bench.rest().await;
        }
        floor(bench, network, round.counts).await?;
        remove_logs(&logs, &name);
    }
    Ok(())
}

/// The same by bare system calls; with CNI the plugins alone.
async fn floor(bench: &mut Bench<'_>, network: Network, counts: bool) -> anyhow::Result<()> {
    let Some(floor) = &mut bench.floor else {
        return Ok(());
    };
    if network == Network::Cni {
        let [add, del] = floor.cni()?;
        if counts {
            bench.report.add("  the plugins alone, ADD", Unit::Ms, FLOOR, add);
            bench.report.add("  the plugins alone, DEL", Unit::Ms, FLOOR, del);
        }
    } else {
        let pod = floor.pod(network == Network::Own)?;
        if counts {
            note(bench, network, FLOOR, pod.took, None);
            bench.report.add(&label(network, END), Unit::Ms, FLOOR, pod.end);
        }
    }
    bench.rest().await;
    Ok(())
}

const START: &str = "RunPodSandbox + Create + Start";
const END: &str = "StopPodSandbox + RemovePodSandbox";

fn label(network: Network, what: &str) -> String {
    format!("{what}, {}", network.name())
}

fn note(bench: &mut Bench<'_>, network: Network, who: &str, took: [f64; 3], ended: Option<[f64; 2]>) {
    let report = &mut bench.report;
    let mut add = |what: &str, value: f64| report.add(&label(network, what), Unit::Ms, who, value);
    add(START, took.iter().sum());
    add("  RunPodSandbox", took[0]);
    add("  CreateContainer", took[1]);
    add("  StartContainer", took[2]);
    if let Some(ended) = ended {
        add(END, ended.iter().sum());
        add("  StopPodSandbox", ended[0]);
        add("  RemovePodSandbox", ended[1]);
    }
}

fn remove_logs(logs: &Path, name: &str) {
    // What is left goes with the scratch directory.
    let _ = std::fs::remove_dir_all(logs.join(name));
}

pub async fn exec(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    const WHAT: &str = "ExecSync of true";
    let logs = bench.log_dir();
    let mut pods: Vec<Option<Pod>> = Vec::new();
    for target in &bench.targets {
        let wish = sleeper("exec", &bench.image, &logs, NamespaceMode::Node);
        pods.push(match target.start(&wish).await {
            Ok(pod) => Some(pod),
            Err(error) => {
                bench.report.fail(WHAT, Unit::Ms, &target.name, &error);
                None
            }
        });
    }
    for round in bench.rounds(bench.args.runs * 2) {
        for at in round.order {
            let Some(pod) = &pods[at] else { continue };
            let target = &bench.targets[at];
            let begin = Instant::now();
            let answer = target.cri.exec(&pod.container, &["/bin/true"], 10).await;
            let took = ms(begin, Instant::now());
            match answer {
                Ok(answer) if answer.exit_code == 0 => {
                    if round.counts {
                        bench.report.add(WHAT, Unit::Ms, &target.name, took);
                    }
                }
                Ok(answer) => {
                    let error = anyhow::anyhow!("true left with {}", answer.exit_code);
                    bench.report.fail(WHAT, Unit::Ms, &target.name, &error);
                }
                Err(error) => bench.report.fail(WHAT, Unit::Ms, &target.name, &error.into()),
            }
            tokio::time::sleep(Duration::from_millis(bench.args.rest / 5)).await;
        }
        if let Some(floor) = &mut bench.floor {
            let took = floor.exec()?;
            if round.counts {
                bench.report.add(WHAT, Unit::Ms, FLOOR, took);
            }
        }
    }
    for (target, pod) in bench.targets.iter().zip(&pods) {
        if let Some(pod) = pod {
            target.end(pod).await?;
        }
    }
    Ok(())
}
