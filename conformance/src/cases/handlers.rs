//! Runtime handlers with a program of their own (runc, crun): what Status says of them, and that containers which they
//! make live as all others do. For that, other modules' cases are run once more for each handler.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;
use tonic::Code;

use super::streaming::exec_url;
use super::{Case, Pod, cases, containers, exec, hooks, logs, survival};
use crate::cri::{container_config, must_fail, pod_config};
use crate::streams::{Channel, Over, Remote};
use crate::{Context, NotApplicable, expect};

/// What hack/conformance configures.
const NAMES: [&str; 2] = ["runc", "crun"];

mod own {
    use super::*;

    cases!["handlers";
        status_shows_what_can_be_used => "the peer's runtimes are another configuration's",
        unknown_and_broken_ones_are_named => "the peer's runtimes are another configuration's",
        an_image_for_another_handler => "the peer does not look at the image's handler",
    ];
}

mod each {
    use super::*;

    cases!["own";
        the_handler_is_in_the_status,
        hooks_run_with_the_right_state,
        what_the_program_says_is_in_the_error,
        volumes_propagate_and_the_root_does_not,
        an_image_volume_and_a_sized_limit,
        a_terminal,
    ];
}

pub fn all() -> Vec<Case> {
    let mut all = own::all();
    for handler in NAMES {
        let borrowed = [
            each::all(),
            hooks::all(),
            containers::all(),
            exec::all(),
            logs::all(),
            survival::all(),
        ];
        for case in borrowed.into_iter().flatten() {
            // One string for each case of the suite, for as long as the suite runs.
            let name = Box::leak(format!("handlers::{handler}::{}", case.name).into_boxed_str());
            all.push(Case {
                name,
                handler: Some(handler),
                ..case
            });
        }
    }
    all
}

/// The context in which pods are made with this handler; an error that says why there is none.
pub fn with_handler(c: &Context, handler: &'static str) -> anyhow::Result<Arc<Context>> {
    let program = c
        .handlers
        .get(handler)
        .ok_or_else(|| not_applicable(format!("the server has no handler {handler} (--handler)")))?;
    if let Some(why) = cannot_run(program)? {
        return Err(not_applicable(format!(
            "{} cannot run here: {why}",
            program.display()
        )));
    }
    let mut with = c.clone();
    with.cri.handler = handler.to_owned();
    Ok(Arc::new(with))
}

/// The text lives as long as the suite, which has few of them.
fn not_applicable(text: String) -> anyhow::Error {
    NotApplicable(Box::leak(text.into_boxed_str())).into()
}

/// Runs the program by itself, without any of ours. What it says when that does not work: crun refuses a machine with
/// cgroups of both versions where the second has a controller.
fn cannot_run(program: &Path) -> anyhow::Result<Option<String>> {
    static KNOWN: std::sync::Mutex<Vec<(std::path::PathBuf, Option<String>)>> =
        std::sync::Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, why)) = known.iter().find(|(path, _)| path == program) {
        return Ok(why.clone());
    }
    let dir = tempfile::tempdir()?;
    std::fs::create_dir_all(dir.path().join("rootfs/proc"))?;
    for name in ["bin", "dev", "sys"] {
        std::fs::create_dir_all(dir.path().join("rootfs").join(name))?;
    }
    std::fs::copy(
        crate::builder::busybox_path()?,
        dir.path().join("rootfs/bin/busybox"),
    )?;
    let name = format!("holdfast-probe-{}", std::process::id());
    let spec = serde_json::json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/busybox", "true"], "env": ["PATH=/bin"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"cgroupsPath": format!("/{name}"), "namespaces": [{"type": "mount"}, {"type": "pid"}]},
    });
    std::fs::write(dir.path().join("config.json"), spec.to_string())?;
    let output = Command::new(program)
        .arg("--root")
        .arg(dir.path().join("state"))
        .args(["run", "--bundle"])
        .arg(dir.path())
        .arg(&name)
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    let why = (!output.status.success()).then(|| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        format!("{}: {said}", output.status)
    });
    known.push((program.to_owned(), why.clone()));
    Ok(why)
}

/// The handlers' names and features, as Status has them now.
async fn shown(c: &Context) -> anyhow::Result<Vec<cri::RuntimeHandler>> {
    let request = cri::StatusRequest { verbose: true };
    Ok(c.cri
        .runtime
        .clone()
        .status(request)
        .await?
        .into_inner()
        .runtime_handlers)
}

fn configured(c: &Context) -> anyhow::Result<()> {
    match c.handlers.is_empty() {
        true => Err(NotApplicable("the server has no handlers with a program (--handler)").into()),
        false => Ok(()),
    }
}

async fn status_shows_what_can_be_used(c: Arc<Context>) -> anyhow::Result<()> {
    configured(&c)?;
    let handlers = shown(&c).await?;
    ensure!(
        handlers.first().is_some_and(|handler| handler.name.is_empty()),
        "the default is not the first of {handlers:?}"
    );
    for (name, program) in &c.handlers {
        let one = handlers.iter().find(|handler| handler.name == *name);
        let one = one.with_context(|| format!("{name} is not shown"))?;
        let features = one.features.as_ref().context("no features")?;
        // What the program itself says.
        let output = Command::new(program).arg("features").output()?;
        let said: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
        let has = |option: &str| {
            said.as_ref()
                .and_then(|said| said["mountOptions"].as_array())
                .is_some_and(|list| list.iter().any(|item| item == option))
        };
        expect!(features.recursive_read_only_mounts, has("rro"), "{name}: rro");
        expect!(features.user_namespaces, false, "{name}: user namespaces");
    }
    ensure!(
        !handlers.iter().any(|handler| handler.name == "broken"),
        "a handler whose program is missing is shown"
    );
    Ok(())
}

async fn unknown_and_broken_ones_are_named(c: Arc<Context>) -> anyhow::Result<()> {
    configured(&c)?;
    let run = |handler: &str| {
        let mut cri = c.cri.clone();
        cri.handler = handler.to_owned();
        let config = pod_config("no-handler", &c.logs());
        async move { cri.run_pod(&config).await }
    };
    let mut words = vec!["nosuch"];
    words.extend(c.handlers.keys().map(String::as_str));
    must_fail(
        run("nosuch").await,
        &[Code::InvalidArgument, Code::NotFound],
        &words,
    )?;
    must_fail(
        run("broken").await,
        &[Code::FailedPrecondition],
        &["broken", "/nowhere/runtime"],
    )?;
    must_fail(
        run("no-runtime").await,
        &[Code::FailedPrecondition],
        &["no-runtime", "/bin/true", "no OCI runtime"],
    )?;
    ensure!(c.cri.pods(None).await?.is_empty(), "a refused pod is listed");
    let request = cri::StatusRequest { verbose: true };
    let status = c.cri.runtime.clone().status(request).await?.into_inner();
    let conditions = status.status.context("no status")?.conditions;
    let condition = conditions.iter().find(|one| one.r#type == "RuntimeHandlersReady");
    let condition = condition.context("no condition of the handlers")?;
    ensure!(
        !condition.status && condition.message.contains("/nowhere/runtime"),
        "{condition:?}"
    );
    ensure!(
        status
            .info
            .get("handlerDetails")
            .is_some_and(|info| info.contains("/nowhere/runtime")),
        "the verbose status does not say what is wrong"
    );
    Ok(())
}

async fn an_image_for_another_handler(c: Arc<Context>) -> anyhow::Result<()> {
    let reference = c.image("busybox");
    let pull = |handler: &str| {
        let mut image = crate::cri::image_spec(reference);
        image.runtime_handler = handler.to_owned();
        let request = cri::PullImageRequest {
            image: Some(image),
            auth: None,
            sandbox_config: None,
        };
        let mut client = c.cri.image.clone();
        async move { client.pull_image(request).await }
    };
    must_fail(
        pull("nosuch").await,
        &[Code::InvalidArgument],
        &["nosuch", "holdfast"],
    )?;
    let id = pull("holdfast").await?.into_inner().image_ref;
    expect!(
        c.cri.pull(reference).await?,
        id,
        "the image of the default handler"
    );
    let pod = Pod::run(&c, "image-handler").await?;
    let mut config = container_config("other", &id, &["/bin/sleep", "9"]);
    if let Some(image) = &mut config.image {
        image.runtime_handler = "holdfast".into();
    }
    let created = c.cri.create(&pod.id, &config, &pod.config).await;
    must_fail(created, &[Code::InvalidArgument], &["image.runtime_handler"])?;
    pod.end().await
}

async fn the_handler_is_in_the_status(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "of-handler").await?;
    let id = pod.sleeper(&c).await?;
    expect!(
        c.cri.pod_status(&pod.id).await?.runtime_handler,
        c.cri.handler,
        "the pod's handler"
    );
    let info = verbose(&c, &id).await?;
    expect!(info["runtimeType"], "oci", "the type of runtime");
    let program = c.handlers[&c.cri.handler].display().to_string();
    expect!(info["runtimeOptions"]["BinaryName"], program, "the program");
    // The same namespaces as the pod's: one address, one name.
    let namespace = |pid: &serde_json::Value| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    let pause = verbose_pod(&c, &pod.id).await?;
    expect!(
        namespace(&info["pid"])?,
        namespace(&pause["pid"])?,
        "network namespaces"
    );
    expect!(c.cri.shell(&id, "hostname").await?, "of-handler", "the name");
    // What two containers of a pod share.
    let second = pod
        .start(&container_config(
            "second",
            c.image("busybox"),
            &["/bin/sleep", "99"],
        ))
        .await?;
    c.cri.shell(&id, "echo shared > /dev/shm/x").await?;
    expect!(
        c.cri.shell(&second, "cat /dev/shm/x").await?,
        "shared",
        "/dev/shm"
    );
    pod.end().await
}

async fn verbose(c: &Context, id: &str) -> anyhow::Result<serde_json::Value> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let reply = c
        .cri
        .runtime
        .clone()
        .container_status(request)
        .await?
        .into_inner();
    Ok(serde_json::from_str(reply.info.get("info").context("no info")?)?)
}

async fn verbose_pod(c: &Context, id: &str) -> anyhow::Result<serde_json::Value> {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: true,
    };
    let reply = c
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await?
        .into_inner();
    Ok(serde_json::from_str(reply.info.get("info").context("no info")?)?)
}

/// Each line of the hooks' log: the hook's name, whether it found the root file system, and the state that it read.
async fn hooks_run_with_the_right_state(c: Arc<Context>) -> anyhow::Result<()> {
    let Some(log) = &c.hooks_log else {
        bail!(NotApplicable(
            "the handlers have no hooks that are known (--hooks-log)"
        ));
    };
    let pod = Pod::run(&c, "hooks").await?;
    let id = pod.sleeper(&c).await?;
    let lines = |wanted: &str| -> Vec<(String, String, serde_json::Value)> {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, ' ');
                let (hook, root, state) = (parts.next()?, parts.next()?, parts.next()?);
                let state: serde_json::Value = serde_json::from_str(state).ok()?;
                (state["id"] == wanted).then(|| (hook.to_owned(), root.to_owned(), state))
            })
            .collect()
    };
    let names = |lines: &[(String, String, serde_json::Value)]| -> Vec<String> {
        lines.iter().map(|(hook, ..)| hook.clone()).collect()
    };
    expect!(
        names(&lines(&id)),
        ["prestart", "createRuntime", "createContainer", "poststart"],
        "the hooks of a container that runs"
    );
    let info = verbose(&c, &id).await?;
    for (hook, root, state) in lines(&id) {
        expect!(root, "root", "{hook} and the root file system");
        if hook != "createContainer" {
            expect!(state["pid"], info["pid"], "{hook}: the pid");
        }
        let status = state["status"].as_str().unwrap_or_default().to_owned();
        let fine = match hook.as_str() {
            // runc 1.1 says `created` as long as its start is not over.
            "poststart" => ["running", "created"].contains(&status.as_str()),
            _ => ["creating", "created"].contains(&status.as_str()),
        };
        ensure!(fine, "{hook}: status {status}");
    }
    c.cri.stop(&id, 0).await?;
    // Without waiting for the container's removal.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !names(&lines(&id)).iter().any(|hook| hook == "poststop") {
        ensure!(tokio::time::Instant::now() < deadline, "no poststop hook");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, root, state) = lines(&id).pop().context("no line")?;
    expect!(
        (root.as_str(), state["status"].as_str()),
        ("root", Some("stopped")),
        "poststop"
    );
    pod.end().await?;
    expect!(
        names(&lines(&id))
            .iter()
            .filter(|hook| *hook == "poststop")
            .count(),
        1,
        "poststop hooks in all"
    );
    Ok(())
}

async fn what_the_program_says_is_in_the_error(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "program-says").await?;
    let bad = container_config("bad", &image, &["/no/such/program"]);
    let outcome = match c.cri.create(&pod.id, &bad, &pod.config).await {
        Ok(id) => {
            let started = c.cri.start(&id).await;
            c.cri.remove(&id).await?;
            started
        }
        Err(error) => Err(error),
    };
    let codes = [Code::NotFound, Code::InvalidArgument, Code::Internal];
    must_fail(outcome, &codes, &[&c.cri.handler, "/no/such/program"])?;
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a container that could not be made is listed"
    );
    pod.end().await
}

async fn volumes_propagate_and_the_root_does_not(c: Arc<Context>) -> anyhow::Result<()> {
    let volume = c.scratch.join(format!("volume-{}", c.cri.handler));
    std::fs::create_dir_all(volume.join("in"))?;
    let shared = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_bind(&volume, &volume)?;
    rustix::mount::mount_change(&volume, shared)?;
    let outcome = propagate(&c, &volume).await;
    let _gone = rustix::mount::unmount(volume.join("in"), rustix::mount::UnmountFlags::DETACH);
    rustix::mount::unmount(&volume, rustix::mount::UnmountFlags::DETACH)?;
    outcome
}

async fn propagate(c: &Arc<Context>, volume: &Path) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = pod_config("propagates", &c.logs());
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.privileged = true;
    }
    let pod = Pod::run_with(c, config).await?;
    let mut config = container_config("mounts", &image, &["/bin/sleep", "3600"]);
    config.mounts = vec![cri::Mount {
        container_path: "/volume".into(),
        host_path: volume.to_string_lossy().into_owned(),
        propagation: cri::MountPropagation::PropagationBidirectional.into(),
        ..Default::default()
    }];
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.privileged = true;
    }
    let id = pod.start(&config).await?;
    c.cri
        .shell(
            &id,
            "mount -t tmpfs t /volume/in && echo inside > /volume/in/file",
        )
        .await?;
    expect!(
        std::fs::read_to_string(volume.join("in/file"))?,
        "inside\n",
        "what the container has mounted, on the host"
    );
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !table.contains(&id),
        "a mount of the container is in the host's table"
    );
    c.cri.shell(&id, "umount /volume/in").await?;
    pod.end().await
}

/// The program makes it and hands its other end over.
async fn a_terminal(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "terminal").await?;
    let mut config = container_config(
        "terminal",
        &image,
        &["/bin/sh", "-c", "tty; test -t 0 && test -t 2; exit $?"],
    );
    config.tty = true;
    let ended = pod.once(&c, &config).await?;
    expect!(ended.status.exit_code, 0, "are its streams terminals");
    ensure!(ended.text.starts_with("/dev/pts/0"), "tty says {:?}", ended.text);
    config.stdin = true;
    config.command = vec!["/bin/cat".into()];
    let id = pod.start(&config).await?;
    let size =
        "until size=$(stty size 2>/dev/null); [ -n \"$size\" ]; do sleep 0.05; done; echo size $size; exit 6";
    let channels = [Channel::Error, Channel::Stdin, Channel::Stdout, Channel::Resize];
    let url = exec_url(&c.cri, &id, &["/bin/sh", "-c", size], &channels).await?;
    let mut remote = Remote::open(&url, Over::WebSocket, &channels).await?;
    remote.resize(132, 43).await?;
    let said = remote.rest().await?;
    let text = String::from_utf8_lossy(&said.stdout);
    ensure!(text.contains("size 43 132"), "the exec's terminal: {text:?}");
    expect!(said.exit_code()?, 6, "the exec's exit code");
    c.cri.stop(&id, 0).await?;
    pod.end().await
}

async fn an_image_volume_and_a_sized_limit(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "image-volume").await?;
    let mut config = container_config("limited", &image, &["/bin/sleep", "3600"]);
    config.mounts = vec![cri::Mount {
        container_path: "/image".into(),
        image: Some(crate::cri::image_spec(&image)),
        readonly: true,
        ..Default::default()
    }];
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 48 << 20,
            ..Default::default()
        });
    }
    let id = pod.start(&config).await?;
    c.cri
        .shell(&id, "test -x /image/bin/busybox && ! touch /image/x")
        .await?;
    let request = cri::ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = c.cri.runtime.clone().container_stats(request).await?.into_inner();
    let memory = stats
        .stats
        .and_then(|stats| stats.memory)
        .context("no memory in the stats")?;
    let used = memory.working_set_bytes.context("no working set")?.value;
    ensure!((1..48 << 20).contains(&used), "a working set of {used} bytes");
    pod.end().await
}
