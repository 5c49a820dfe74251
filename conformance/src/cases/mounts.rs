//! Mounts, volumes and devices beyond the plain bind: options, images, id maps, recursive read-only, CDI.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use rustix::process::Signal;
use tonic::Code;

use super::security_context::user_namespace_pod;
use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, invalid, must_fail};
use crate::newer::{self, Extra, ImageSpec, Mount};
use crate::{NotApplicable, expect};

cases!["mounts";
    mount_options => "the peer's release is older than the field",
    mount_options_that_are_none => "the peer's release is older than the field",
    recursive_read_only => "the peer asks runc, which knows it from 1.1 on; Debian's release of the peer is older than the field",
    read_only_and_propagation_contradict => "the peer's release is older than the field",
    images_as_volumes => "the peer's release is older than the field",
    images_as_volumes_that_are_refused => "the peer's release is older than the field",
    image_volumes_after_a_restart => "the peer's release is older than the field",
    volumes_through_id_maps => "the peer's release is older than user namespaces",
    volumes_that_an_image_declares,
    shared_memory,
    huge_pages,
    stop_signal => "the peer's release is older than the field",
    cdi_devices => "Debian 12's release of the peer is older than CDI",
    cdi_devices_that_are_not_there => "Debian 12's release of the peer is older than CDI",
    a_broken_cdi_spec_harms_nobody => "Debian 12's release of the peer is older than CDI, and a newer one names the file in its log alone",
];

fn bind(host: &Path, inside: &str) -> Mount {
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.into(),
        ..Mount::default()
    }
}

fn image_mount(image: &str, inside: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: inside.into(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.into(),
            ..ImageSpec::default()
        }),
        image_sub_path: sub_path.into(),
        ..Mount::default()
    }
}

fn mounts(list: Vec<Mount>) -> Extra {
    Extra {
        mounts: list,
        stop_signal: 0,
    }
}

/// A busybox that sleeps, with mounts that `k8s-cri` does not know.
async fn with_mounts(c: &Context, pod: &Pod, name: &str, list: Vec<Mount>) -> Result<String, tonic::Status> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let config = container_config(name, &image, &["/bin/sleep", "3600"]);
    let id = newer::create(&c.cri, &pod.id, &config, mounts(list), &pod.config).await?;
    c.cri.start(&id).await?;
    Ok(id)
}

/// The options of what is mounted at `path` in a container.
async fn options_at(c: &Context, id: &str, path: &str) -> anyhow::Result<Vec<String>> {
    let line = c
        .cri
        .shell(id, &format!("grep ' {path} ' /proc/self/mounts | tail -n 1"))
        .await?;
    let options = line
        .split(' ')
        .nth(3)
        .with_context(|| format!("nothing is mounted at {path}"))?;
    Ok(options.split(',').map(str::to_owned).collect())
}

async fn mount_options(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = c.scratch.join("options");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("program"), "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(
        dir.join("program"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let pod = Pod::run(&c, "mount-options").await?;
    let mut narrow = bind(&dir, "/narrow");
    narrow.mount_options = ["noexec", "nodev", "nosuid"].map(str::to_owned).to_vec();
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut volume = image_mount(&image, "/image", "");
    volume.mount_options = vec!["noexec".into()];
    let id = with_mounts(&c, &pod, "options", vec![narrow, bind(&dir, "/plain"), volume]).await?;
    let at = options_at(&c, &id, "/narrow").await?;
    for option in ["rw", "noexec", "nodev", "nosuid"] {
        ensure!(at.iter().any(|o| o == option), "no {option} among {at:?}");
    }
    expect!(
        c.cri.shell(&id, "/plain/program").await?,
        "ran",
        "a program of a plain mount"
    );
    for program in ["/narrow/program", "/image/bin/true"] {
        let refused = c.cri.exec(&id, &["/bin/sh", "-c", program], 10).await?;
        ensure!(refused.exit_code != 0, "{program} ran from a mount with noexec");
    }
    let shown = newer::status(&c.cri, &id).await?;
    expect!(
        shown.mounts[0].mount_options,
        ["noexec", "nodev", "nosuid"],
        "mount_options in the status"
    );
    pod.end().await
}

async fn mount_options_that_are_none(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "no-options").await?;
    for option in [
        "lowerdir=/",
        "upperdir=/x",
        "remount",
        "rbind",
        "size=1",
        "",
        "noexec,suid",
        "nosuch",
    ] {
        let mut mount = bind(&c.scratch, "/x");
        mount.mount_options = vec![option.into()];
        must_fail(
            with_mounts(&c, &pod, "refused", vec![mount]).await,
            invalid(),
            &["mounts[0].mount_options"],
        )?;
    }
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    pod.end().await
}

fn host_mount(args: &[&str]) -> anyhow::Result<()> {
    let status = std::process::Command::new("mount").args(args).status()?;
    ensure!(status.success(), "mount {args:?}: {status}");
    Ok(())
}

/// A directory with another file system in it, taken off again at the end.
struct Nested(std::path::PathBuf);

impl Nested {
    fn make(c: &Context, name: &str) -> anyhow::Result<Self> {
        let dir = c.scratch.join(name);
        std::fs::create_dir_all(&dir)?;
        let shown = dir.to_string_lossy().into_owned();
        host_mount(&["-t", "tmpfs", "tmpfs", &shown])?;
        let nested = Self(dir);
        std::fs::create_dir_all(nested.0.join("inner"))?;
        host_mount(&["-t", "tmpfs", "tmpfs", &nested.0.join("inner").to_string_lossy()])?;
        Ok(nested)
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        // Also when the case fails; there is nobody to tell.
        let _ = std::process::Command::new("umount")
            .arg("-R")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

async fn recursive_read_only(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = Nested::make(&c, "rro")?;
    let pod = Pod::run(&c, "rro").await?;
    let mut recursive = bind(&dir.0, "/recursive");
    (recursive.readonly, recursive.recursive_read_only) = (true, true);
    let mut flat = bind(&dir.0, "/flat");
    flat.readonly = true;
    let id = with_mounts(&c, &pod, "rro", vec![recursive, flat]).await?;
    c.cri.shell(&id, "echo x >/flat/inner/made").await?;
    for path in ["/flat/x", "/recursive/x", "/recursive/inner/x"] {
        let write = c.cri.exec(&id, &["/bin/touch", path], 10).await?;
        ensure!(write.exit_code != 0, "{path} was written");
    }
    let shown = c.cri.status(&id).await?.mounts;
    ensure!(
        shown[0].recursive_read_only && !shown[1].recursive_read_only,
        "in the status: {shown:?}"
    );
    pod.end().await
}

async fn read_only_and_propagation_contradict(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "rro-refused").await?;
    for (readonly, propagation) in [
        (false, cri::MountPropagation::PropagationPrivate),
        (true, cri::MountPropagation::PropagationHostToContainer),
        (true, cri::MountPropagation::PropagationBidirectional),
    ] {
        let mut mount = bind(&c.scratch, "/x");
        (mount.readonly, mount.recursive_read_only) = (readonly, true);
        mount.propagation = propagation.into();
        must_fail(
            with_mounts(&c, &pod, "refused", vec![mount]).await,
            invalid(),
            &["mounts[0].recursive_read_only"],
        )?;
    }
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    pod.end().await
}

async fn images_as_volumes(c: Arc<Context>) -> anyhow::Result<()> {
    let layered = c.cri.pull(c.image("layered")).await?;
    let pod = Pod::run(&c, "image-volumes").await?;
    let id = with_mounts(
        &c,
        &pod,
        "volumes",
        vec![
            image_mount(&layered, "/whole", ""),
            image_mount(c.image("layered"), "/part", "data"),
            image_mount(&layered, "/file", "data/kept"),
            // A link of the image is followed inside it.
            image_mount(&layered, "/linked", "other-alias"),
        ],
    )
    .await?;
    expect!(
        c.cri
            .shell(
                &id,
                "cat /whole/data/kept /part/kept /file; ls /part/gone 2>/dev/null; ls /linked"
            )
            .await?,
        "kept\nkept\nkept\nabove\nbelow",
        "what is in the volumes"
    );
    expect!(
        c.cri.shell(&id, "/whole/bin/echo ran").await?,
        "ran",
        "a program of a volume"
    );
    for path in ["/whole/x", "/part/x", "/file"] {
        let write = c
            .cri
            .exec(&id, &["/bin/sh", "-c", &format!("echo x >{path}")], 10)
            .await?;
        ensure!(write.exit_code != 0, "{path} of an image was written");
    }
    let shown = newer::status(&c.cri, &id).await?.mounts;
    for mount in &shown {
        let image = mount
            .image
            .as_ref()
            .context("a mount without its image in the status")?;
        expect!(image.image_ref, layered, "image_ref of {}", mount.container_path);
    }
    expect!(shown[1].image_sub_path, "data", "image_sub_path in the status");
    // What is mounted stays when its image goes.
    c.cri.remove_image(&layered).await?;
    expect!(
        c.cri.shell(&id, "cat /part/kept").await?,
        "kept",
        "after the image's removal"
    );
    pod.end().await
}

async fn images_as_volumes_that_are_refused(c: Arc<Context>) -> anyhow::Result<()> {
    let layered = c.cri.pull(c.image("layered")).await?;
    let pod = Pod::run(&c, "image-refused").await?;
    let mut writable = image_mount(&layered, "/x", "");
    writable.readonly = false;
    let mut both = image_mount(&layered, "/x", "");
    both.host_path = "/etc".into();
    let mut nothing = image_mount(&layered, "/x", "");
    (nothing.image, nothing.image_sub_path) = (None, "data".into());
    let cases = [
        (writable, "mounts[0].readonly"),
        (both, "mounts[0].host_path"),
        (nothing, "mounts[0].image_sub_path"),
        (image_mount(&layered, "/x", "not/there"), "not/there"),
        (image_mount(&layered, "/x", "../etc"), "mounts[0].image_sub_path"),
        (image_mount(&layered, "/x", "/data"), "mounts[0].image_sub_path"),
        (image_mount(&layered, "/x", "data/device"), "data/device"),
    ];
    for (mount, word) in cases {
        let refused = with_mounts(&c, &pod, "refused", vec![mount]).await;
        must_fail(refused, invalid(), &[word]).with_context(|| word.to_owned())?;
    }
    let unknown = image_mount("localhost/never-pulled:1", "/x", "");
    must_fail(
        with_mounts(&c, &pod, "refused", vec![unknown]).await,
        &[Code::NotFound],
        &["localhost/never-pulled:1"],
    )?;
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    pod.end().await
}

async fn image_volumes_after_a_restart(c: Arc<Context>) -> anyhow::Result<()> {
    let server = c.server()?;
    let layered = c.cri.pull(c.image("layered")).await?;
    let pod = Pod::run(&c, "image-restart").await?;
    let id = with_mounts(&c, &pod, "volumes", vec![image_mount(&layered, "/part", "data")]).await?;
    server.end(Signal::KILL).await?;
    server.start(&c.cri).await?;
    c.cri.remove_image(&layered).await?;
    expect!(
        c.cri.shell(&id, "cat /part/kept").await?,
        "kept",
        "after a restart and the image's removal"
    );
    let shown = newer::status(&c.cri, &id).await?.mounts;
    let image = shown.first().and_then(|mount| mount.image.as_ref());
    expect!(
        image.map(|i| i.image_ref.as_str()),
        Some(layered.as_str()),
        "image_ref after a restart"
    );
    pod.end().await
}

async fn volumes_through_id_maps(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = c.scratch.join("mapped");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("roots"), "")?;
    std::fs::write(dir.join("apps"), "")?;
    std::os::unix::fs::chown(dir.join("apps"), Some(1000), Some(1000))?;
    let (config, map) = user_namespace_pod(&c, "id-maps", cri::NamespaceMode::Pod);
    let pod = Pod::run_with(&c, config).await?;
    let mut mapped = bind(&dir, "/mapped");
    (mapped.uid_mappings, mapped.gid_mappings) = (vec![map], vec![map]);
    let id = with_mounts(&c, &pod, "mapped", vec![mapped, bind(&dir, "/plain")]).await?;
    expect!(
        c.cri
            .shell(
                &id,
                "cd /mapped; stat -c %u:%g roots apps; touch made; cd /plain; stat -c %u roots"
            )
            .await?,
        "0:0\n1000:1000\n65534",
        "owners through the map, and without"
    );
    use std::os::unix::fs::MetadataExt as _;
    expect!(
        std::fs::metadata(dir.join("made"))?.uid(),
        0,
        "the owner on the host of what is made inside"
    );
    // Another map than the pod's cannot be.
    let mut other = bind(&dir, "/x");
    let shifted = cri::IdMapping {
        host_id: map.host_id + 1,
        ..map
    };
    (other.uid_mappings, other.gid_mappings) = (vec![shifted], vec![shifted]);
    must_fail(
        with_mounts(&c, &pod, "refused", vec![other]).await,
        invalid(),
        &["mounts[0].uidMappings"],
    )?;
    pod.end().await?;
    let pod = Pod::run(&c, "no-id-maps").await?;
    let mut mapped = bind(&dir, "/x");
    (mapped.uid_mappings, mapped.gid_mappings) = (vec![map], vec![map]);
    must_fail(
        with_mounts(&c, &pod, "refused", vec![mapped]).await,
        invalid(),
        &["mounts[0].uidMappings"],
    )?;
    pod.end().await
}

async fn volumes_that_an_image_declares(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("volumes")).await?;
    let pod = Pod::run(&c, "declared").await?;
    let mut config = container_config("one", &image, &["/bin/sleep", "3600"]);
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.readonly_rootfs = true;
    }
    let one = pod.start(&config).await?;
    // Begins with what the image has there, and is writable though the root is not.
    expect!(
        c.cri
            .shell(
                &one,
                "cat /data/kept; echo new >/data/kept; touch /made/here; ls /data"
            )
            .await?,
        "kept\ndevice\nfirst\nkept\nopaque\nowned\nsecond",
        "a declared volume"
    );
    config.metadata = Some(cri::ContainerMetadata {
        name: "two".into(),
        attempt: 0,
    });
    let two = pod.start(&config).await?;
    expect!(
        c.cri.shell(&two, "cat /data/kept; ls /made").await?,
        "kept",
        "another container's volume"
    );
    // It is the container's: it goes with it, and is not in the status.
    expect!(c.cri.status(&one).await?.mounts.len(), 0, "mounts in the status");
    pod.end().await
}

async fn shared_memory(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "shm").await?;
    let one = pod.sleeper(&c).await?;
    let two = pod
        .start(&container_config("other", &image, &["/bin/sleep", "3600"]))
        .await?;
    c.cri.shell(&one, "echo shared >/dev/shm/x").await?;
    expect!(
        c.cri.shell(&two, "cat /dev/shm/x").await?,
        "shared",
        "the pod's shared memory"
    );
    expect!(
        c.cri
            .shell(&one, "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2")
            .await?,
        "65536",
        "its size in KiB"
    );
    // A larger one, as kubelet brings it for an emptyDir in memory.
    let dir = c.scratch.join("shm");
    std::fs::create_dir_all(&dir)?;
    let shown = dir.to_string_lossy().into_owned();
    host_mount(&["-t", "tmpfs", "-o", "size=128m,mode=1777", "tmpfs", &shown])?;
    let mut config = container_config("large", &image, &["/bin/sleep", "3600"]);
    config.mounts = vec![cri::Mount {
        host_path: shown.clone(),
        container_path: "/dev/shm".into(),
        ..Default::default()
    }];
    let checked = async {
        let large = pod.start(&config).await?;
        c.cri
            .shell(&large, "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2")
            .await
    };
    let checked = checked.await;
    pod.end().await?;
    std::process::Command::new("umount")
        .arg("-l")
        .arg(&dir)
        .status()?;
    expect!(checked?, "131072", "the size of the client's own");
    Ok(())
}

async fn huge_pages(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = c.scratch.join("hugepages");
    std::fs::create_dir_all(&dir)?;
    let shown = dir.to_string_lossy().into_owned();
    if !std::fs::read_to_string("/proc/filesystems")?.contains("hugetlbfs") {
        return Err(NotApplicable("this kernel has no huge pages").into());
    }
    host_mount(&["-t", "hugetlbfs", "-o", "pagesize=2M", "hugetlbfs", &shown])?;
    let pod = Pod::run(&c, "hugepages").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config("huge", &image, &["/bin/sleep", "3600"]);
    config.mounts = vec![cri::Mount {
        host_path: shown,
        container_path: "/hugepages".into(),
        ..Default::default()
    }];
    let checked = async {
        let id = pod.start(&config).await?;
        c.cri
            .shell(&id, "grep ' /hugepages ' /proc/self/mounts | cut -d ' ' -f 3,4")
            .await
    };
    let checked = checked.await;
    pod.end().await?;
    std::process::Command::new("umount")
        .arg("-l")
        .arg(&dir)
        .status()?;
    let mounted = checked?;
    ensure!(
        mounted.starts_with("hugetlbfs ") && mounted.contains("pagesize=2M"),
        "at /hugepages: {mounted}"
    );
    Ok(())
}

/// The CRI's own numbers.
const SIGHUP: i32 = 8;
const SIGTERM: i32 = 23;
const SIGUSR1: i32 = 29;
const SIGUSR2: i32 = 30;
const SIGWINCH: i32 = 32;

async fn stop_signal(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "stop-signal").await?;
    let image = c.cri.pull(c.image("configured")).await?;
    let script = "for s in HUP INT QUIT USR1 USR2 TERM WINCH; do trap \"echo $s; exit 42\" $s; done; echo on; while :; do sleep 0.05; done";
    let mut seen = Vec::new();
    for (number, wanted) in [
        (0, "USR1"),
        (SIGHUP, "HUP"),
        (SIGUSR2, "USR2"),
        (SIGTERM, "TERM"),
        (SIGWINCH, "WINCH"),
    ] {
        let name = format!("stops-{number}");
        let config = container_config(&name, &image, &["/bin/sh", "-c", script]);
        let extra = Extra {
            mounts: Vec::new(),
            stop_signal: number,
        };
        let id = newer::create(&c.cri, &pod.id, &config, extra, &pod.config).await?;
        c.cri.start(&id).await?;
        let log = Path::new(&pod.config.log_directory).join(format!("{name}.log"));
        for _ in 0..500 {
            if std::fs::read_to_string(&log).unwrap_or_default().contains("on") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        c.cri.stop(&id, 20).await?;
        let text = std::fs::read_to_string(&log)?;
        ensure!(
            text.contains(&format!(" F {wanted}\n")),
            "signal {number} is to be {wanted}: {text}"
        );
        expect!(c.cri.status(&id).await?.exit_code, 42, "exit code after {wanted}");
        seen.push(newer::status(&c.cri, &id).await?.stop_signal);
    }
    expect!(
        seen,
        [SIGUSR1, SIGHUP, SIGUSR2, SIGTERM, SIGWINCH],
        "stop_signal in the status: the image's where none was asked for"
    );
    let config = container_config("odd", &image, &["/bin/true"]);
    let extra = Extra {
        mounts: Vec::new(),
        stop_signal: 999,
    };
    must_fail(
        newer::create(&c.cri, &pod.id, &config, extra, &pod.config).await,
        invalid(),
        &["stop_signal"],
    )?;
    pod.end().await
}

const SPEC: &str = r#"{"cdiVersion": "0.5.0", "kind": "conformance.test/thing",
    "containerEdits": {"env": ["ALL_THINGS=1"], "mounts": [{"hostPath": "LIB", "containerPath": "/opt/thing", "options": ["ro", "bind"]}]},
    "devices": [
        {"name": "zero", "containerEdits": {"env": ["THING=zero"],
            "deviceNodes": [{"path": "/dev/things/zero", "hostPath": "/dev/zero"},
                {"path": "/dev/things/log", "hostPath": "/dev/kmsg", "permissions": "w"}]}},
        {"name": "full", "containerEdits": {"env": ["THING=full"],
            "deviceNodes": [{"path": "/dev/things/full", "hostPath": "/dev/full"}]}}]}"#;

/// Writes a spec; the file goes with the value.
pub(super) struct Written(std::path::PathBuf);

impl Written {
    pub(super) fn new(dir: &Path, name: &str, text: &str) -> anyhow::Result<Self> {
        let path = dir.join(name);
        std::fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn library(c: &Context) -> anyhow::Result<String> {
    let lib = c.scratch.join("thing-lib");
    std::fs::create_dir_all(&lib)?;
    std::fs::write(lib.join("version"), "7\n")?;
    Ok(SPEC.replace("LIB", &lib.to_string_lossy()))
}

async fn cdi_devices(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = c.cdi_dir()?;
    let _spec = Written::new(dir, "thing.json", &library(&c)?)?;
    // The peer looks at its files when it is told of a change.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let pod = Pod::run(&c, "cdi").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config("field", &image, &["/bin/sleep", "3600"]);
    config.cdi_devices = ["zero", "zero", "full"]
        .map(|name| cri::CdiDevice {
            name: format!("conformance.test/thing={name}"),
        })
        .to_vec();
    let id = pod.start(&config).await?;
    expect!(
        c.cri.shell(&id, "echo $ALL_THINGS $THING; cat /opt/thing/version; head -c 3 /dev/things/zero | wc -c; ls /dev/things").await?,
        "1 full\n7\n3\nfull\nlog\nzero",
        "devices of the field"
    );
    // Only writing was granted; without a rule for it the device filter lets nobody open it.
    c.cri.shell(&id, ": >/dev/things/log").await?;
    for script in ["head -c 1 /dev/things/log", "touch /opt/thing/x"] {
        let refused = c.cri.exec(&id, &["/bin/sh", "-c", script], 10).await?;
        ensure!(refused.exit_code != 0, "`{script}` was possible");
    }
    let mut config = container_config("annotation", &image, &["/bin/sleep", "3600"]);
    config.annotations = [(
        "cdi.k8s.io/plugin_1".to_owned(),
        "conformance.test/thing=zero".to_owned(),
    )]
    .into();
    let id = pod.start(&config).await?;
    expect!(
        c.cri
            .shell(&id, "echo $ALL_THINGS $THING; ls /dev/things")
            .await?,
        "1 zero\nlog\nzero",
        "a device of an annotation"
    );
    pod.end().await
}

async fn cdi_devices_that_are_not_there(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = c.cdi_dir()?;
    let _good = Written::new(dir, "thing.json", &library(&c)?)?;
    let _other = Written::new(
        dir,
        "missing.yaml",
        "cdiVersion: 0.5.0\nkind: conformance.test/missing\ndevices:\n- name: node\n  containerEdits:\n    deviceNodes:\n    - path: /dev/never-there\n",
    )?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let pod = Pod::run(&c, "cdi-missing").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let ask = async |name: &str| {
        let mut config = container_config("refused", &image, &["/bin/sleep", "3600"]);
        config.cdi_devices = vec![cri::CdiDevice { name: name.into() }];
        c.cri.create(&pod.id, &config, &pod.config).await
    };
    let missing = [Code::FailedPrecondition, Code::Unknown];
    must_fail(
        ask("conformance.test/thing=other").await,
        &missing,
        &["conformance.test/thing=other"],
    )?;
    must_fail(
        ask("unheard.of/thing=one").await,
        &missing,
        &["unheard.of/thing=one"],
    )?;
    must_fail(
        ask("conformance.test/missing=node").await,
        &missing,
        &["/dev/never-there", "missing.yaml"],
    )?;
    let wrong = [Code::InvalidArgument, Code::Unknown];
    must_fail(ask("thing").await, &wrong, &["CDI_devices[0].name"])?;
    let mut config = container_config("refused", &image, &["/bin/sleep", "3600"]);
    config.annotations = [("cdi.k8s.io/x".to_owned(), "rubbish".to_owned())].into();
    must_fail(
        c.cri.create(&pod.id, &config, &pod.config).await,
        &wrong,
        &["annotations[\"cdi.k8s.io/x\"]"],
    )?;
    ensure!(
        c.cri.containers(None).await?.is_empty(),
        "a refused container is listed"
    );
    pod.end().await
}

async fn a_broken_cdi_spec_harms_nobody(c: Arc<Context>) -> anyhow::Result<()> {
    let dir = c.cdi_dir()?;
    let _good = Written::new(dir, "thing.json", &library(&c)?)?;
    let _broken = Written::new(
        dir,
        "broken.json",
        r#"{"cdiVersion": "0.5.0", "kind": "conformance.test/broken", "devices": 7}"#,
    )?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let pod = Pod::run(&c, "cdi-broken").await?;
    let image = c.cri.pull(c.image("busybox")).await?;
    let mut config = container_config("good", &image, &["/bin/sleep", "3600"]);
    let device = |name: &str| vec![cri::CdiDevice { name: name.into() }];
    config.cdi_devices = device("conformance.test/thing=zero");
    let id = pod.start(&config).await?;
    expect!(
        c.cri.shell(&id, "echo $THING").await?,
        "zero",
        "a device beside a broken spec"
    );
    let mut config = container_config("bad", &image, &["/bin/sleep", "3600"]);
    config.cdi_devices = device("conformance.test/broken=one");
    must_fail(
        c.cri.create(&pod.id, &config, &pod.config).await,
        &[Code::FailedPrecondition, Code::Unknown],
        &["conformance.test/broken=one", "broken.json"],
    )?;
    let info = c
        .cri
        .runtime
        .clone()
        .status(cri::StatusRequest { verbose: true })
        .await?
        .into_inner()
        .info;
    let told = info.get("cdi").cloned().unwrap_or_default();
    ensure!(
        told.contains("broken.json") && told.contains("conformance.test/thing=zero"),
        "Status tells of CDI: {told}"
    );
    pod.end().await
}
