//! Debian's CNI plugins, executed one after the other for a sandbox with nothing around them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::Node;
use super::container::Sandbox;
use crate::pods::CONFLIST;
use crate::target::ms;

const BIN: &str = "/usr/lib/cni";

/// Milliseconds of ADD and of DEL through the whole list.
pub fn timed(node: &mut Node) -> anyhow::Result<[f64; 2]> {
    node.next += 1;
    let sandbox = Sandbox::new(node, node.next, true)?;
    let list: Value = serde_json::from_str(CONFLIST)?;
    let plugins = list["plugins"].as_array().context("no plugins in the list")?;
    let pod = Pod {
        id: format!("floor-{}-{}", std::process::id(), node.next),
        netns: format!("/proc/{}/ns/net", sandbox.pid()),
    };
    let begin = Instant::now();
    let mut result = Value::Null;
    for plugin in plugins {
        result = pod.run("ADD", &list, plugin, &result)?;
    }
    let added = Instant::now();
    for plugin in plugins.iter().rev() {
        pod.run("DEL", &list, plugin, &result)?;
    }
    let took = [ms(begin, added), ms(added, Instant::now())];
    sandbox.end()?;
    Ok(took)
}

struct Pod {
    id: String,
    netns: String,
}

impl Pod {
    fn run(&self, command: &str, list: &Value, plugin: &Value, previous: &Value) -> anyhow::Result<Value> {
        let mut config = plugin.clone();
        // Pods of the floor come from a subnet that no runtime uses.
        if config["ipam"].is_object() {
            config["bridge"] = json!("floorcni0");
            config["ipam"]["ranges"] = json!([[{"subnet": "10.91.0.0/16"}]]);
        }
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = json!("floor");
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let name = plugin["type"].as_str().context("a plugin without a type")?;
        let mut child = Command::new(Path::new(BIN).join(name))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", BIN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {BIN}/{name}: install Debian's containernetworking-plugins"))?;
        child
            .stdin
            .take()
            .context("no stdin of a plugin")?
            .write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{name} {command}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}
