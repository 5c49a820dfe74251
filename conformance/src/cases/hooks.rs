//! OCI hooks that CDI devices bring. What each saw is the same whoever makes the container: the built-in launcher, runc or
//! crun (`handlers` runs these cases once more for each).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use serde_json::{Value, json};
use tonic::Code;

use super::mounts::Written;
use super::{Pod, cases};
use crate::cri::{container_config, must_fail};
use crate::{Context, expect};

cases!["hooks";
    hooks_of_a_device => "Debian 12's release of the peer is older than CDI",
    a_hook_that_fails => "Debian 12's release of the peer is older than CDI",
];

const DEVICE: &str = "conformance.test/hooked=one";

/// Each leaves a line: its name, whether it found the root by its bundle's configuration, the status, and whether it is in
/// the container's PID namespace and has a working directory beside the root.
const RECORD: &str = r#"
state=$(tr -d '\n')
bundle=$(echo "$state" | sed -n 's/.*"bundle": *"\([^"]*\)".*/\1/p')
root=$(tr ',{}' '\n\n\n' <"$bundle/config.json" 2>/dev/null | sed -n 's/ *"path": *"\([^"]*rootfs\)".*/\1/p' | head -n 1)
found=none; [ -z "$root" ] || [ ! -e "$root/bin/busybox" ] || found=root
echo "$state" >"$SEEN/$0.state"
readlink /proc/self/ns/pid >"$SEEN/$0.ns"
tr '\0' '\n' </proc/self/environ | grep -c '^IMAGE_SAYS=' >"$SEEN/$0.leaked"
if [ $0 = createContainer ]; then
  ln -s libthing.so.1 "$root/etc/libthing.so" && echo vendor >"$root/etc/hooked" || exit 7
fi
echo "$0 $found" >>"$SEEN/order"
"#;

fn hook(seen: &Path, point: &str, script: &str) -> Value {
    json!({"hookName": point, "path": "/bin/sh", "args": ["/bin/sh", "-c", script, point],
        "env": [format!("SEEN={}", seen.display()), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]})
}

fn spec(hooks: &[Value]) -> String {
    json!({"cdiVersion": "0.5.0", "kind": "conformance.test/hooked",
        "devices": [{"name": "one", "containerEdits": {"env": ["IMAGE_SAYS=7"], "hooks": hooks}}]})
    .to_string()
}

fn seen(c: &Context, name: &str) -> anyhow::Result<PathBuf> {
    let dir = c.scratch.join(format!("{name}-{}", c.cri.handler));
    let _none = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn asking(image: &str, seen: &Path) -> cri::ContainerConfig {
    let mut config = container_config("hooked", image, &["/bin/sleep", "3600"]);
    config.cdi_devices = vec![cri::CdiDevice {
        name: DEVICE.to_owned(),
    }];
    config.mounts = vec![cri::Mount {
        container_path: seen.to_string_lossy().into_owned(),
        host_path: seen.to_string_lossy().into_owned(),
        ..cri::Mount::default()
    }];
    config
}

fn read(dir: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    text.trim().to_owned()
}

/// Waits up to 5 s for what hooks leave; says whether it came.
async fn until(there: impl Fn() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !there() {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

async fn hooks_of_a_device(c: Arc<Context>) -> anyhow::Result<()> {
    let seen = seen(&c, "hooks-seen")?;
    let points = [
        "createContainer",
        "poststop",
        "prestart",
        "startContainer",
        "createRuntime",
        "poststart",
    ];
    let hooks = points.map(|point| hook(&seen, point, RECORD));
    let _spec = Written::new(c.cdi_dir()?, "hooked.json", &spec(&hooks))?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pod = Pod::run(&c, "cdi-hooks").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = asking(&image, &seen);
    let linux = config.linux.get_or_insert_default();
    // crun (Debian's 1.8) makes the root read-only before these hooks run, which then can change nothing in it.
    let readonly = c.cri.handler != "crun";
    linux.security_context.get_or_insert_default().readonly_rootfs = readonly;
    let id = pod.start(&config).await?;
    // With runc, startContainer runs in init beside the answer. A hook's line is the last that it writes.
    until(|| read(&seen, "order").lines().count() >= 5).await;
    let order = read(&seen, "order");
    let mut order: Vec<&str> = order.lines().collect();
    if !c.cri.handler.is_empty() {
        // runc runs poststart as soon as init goes on, beside startContainer.
        order
            .get_mut(3..)
            .unwrap_or_default()
            .sort_unstable_by(|a, b| b.cmp(a));
    }
    expect!(
        order,
        [
            "prestart root",
            "createRuntime root",
            "createContainer root",
            "startContainer none",
            "poststart root"
        ],
        "the hooks of a container that runs, and whether they found its root"
    );
    expect!(
        c.cri
            .shell(&id, "readlink /etc/libthing.so; cat /etc/hooked; touch /etc/x 2>/dev/null && echo written; echo $IMAGE_SAYS")
            .await?,
        if readonly { "libthing.so.1\nvendor\n7" } else { "libthing.so.1\nvendor\nwritten\n7" },
        "what a hook has made of the root"
    );
    let inside = c.cri.shell(&id, "readlink /proc/self/ns/pid").await?;
    let own = std::fs::read_link("/proc/self/ns/pid")?
        .to_string_lossy()
        .into_owned();
    for point in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ] {
        let in_container = ["createContainer", "startContainer"].contains(&point);
        let expected = if in_container { &inside } else { &own };
        expect!(
            &read(&seen, &format!("{point}.ns")),
            expected,
            "{point}: the PID namespace"
        );
        expect!(
            read(&seen, &format!("{point}.leaked")),
            "0",
            "{point}: the environment is the hook's own"
        );
        let state: Value = serde_json::from_str(&read(&seen, &format!("{point}.state")))
            .with_context(|| format!("{point}: the state"))?;
        expect!(state["id"], json!(id), "{point}: the id");
        // crun is not held to it: this machine has no cgroups that it runs with, so nobody has looked.
        ensure!(
            !in_container || state["pid"] == 1 || c.cri.handler == "crun",
            "{point}: the pid as the container sees it: {state}"
        );
    }
    c.cri.stop(&id, 0).await?;
    // Without waiting for the container's removal.
    ensure!(
        until(|| read(&seen, "order").contains("poststop")).await,
        "no poststop hook"
    );
    pod.end().await?;
    expect!(
        read(&seen, "order")
            .lines()
            .filter(|line| *line == "poststop root")
            .count(),
        1,
        "poststop hooks in all"
    );
    Ok(())
}

async fn a_hook_that_fails(c: Arc<Context>) -> anyhow::Result<()> {
    let seen = seen(&c, "hooks-failed")?;
    let pod = Pod::run(&c, "cdi-hooks-failed").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    for point in ["createRuntime", "createContainer"] {
        let hooks = [
            hook(&seen, point, "echo 'no driver is loaded' >&2; exit 3"),
            hook(&seen, point, "echo $0 >>$SEEN/order"),
        ];
        let _spec = Written::new(c.cdi_dir()?, "hooked.json", &spec(&hooks))?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        must_fail(
            c.cri.create(&pod.id, &asking(&image, &seen), &pod.config).await,
            &[Code::Internal, Code::FailedPrecondition, Code::Unknown],
            &["hook"],
        )?;
        expect!(
            read(&seen, "order"),
            "",
            "{point}: the hook after the one that failed"
        );
        ensure!(
            c.cri
                .containers(None)
                .await?
                .iter()
                .all(|one| one.pod_sandbox_id != pod.id),
            "a container that failed is listed"
        );
    }
    pod.end().await
}
