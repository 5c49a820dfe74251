//! What stands in each image that critest names.
//!
//! The specs judge by output, so two programs are chosen with care: the shell of the default image must run `ls` as a file
//! (Debian's static busybox would run it inside itself, past a masked path), and `pgrep` and `ipcs` are in no busybox here.

use std::path::Path;

use holdfast_conformance::builder::{Entry, Layer, PackedLayer, Packing, Pusher, pack, sha256};
use serde_json::{Value, json};

use crate::debian::Tree;

/// Registries that the names of the images begin with.
pub const REGISTRIES: &[&str] = &["registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws"];

const E2E: &str = "e2e-test-images";
const STAGING: &str = "k8s-staging-cri-tools";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n";
/// Port of the web server for pods with the host's network.
const HOST_NETWORK_PORT: u16 = 12003;
/// Prints the effective user id: the shell's own words only, so that nothing drops what the set-uid bit gave.
const EFFECTIVE_UID: &str = "while read -r name real effective rest; do [ \"$name\" = Uid: ] && echo \"Effective uid: $effective\"; \
     done </proc/self/status; exit 0";

/// A layer packed once and used by several images.
struct Packed {
    diff_id: String,
    blob: Vec<u8>,
}

impl Packed {
    fn of(layer: &Layer) -> anyhow::Result<Self> {
        let tar = layer.finish();
        Ok(Self {
            diff_id: sha256(&tar),
            blob: pack(&tar, Packing::Gzip)?,
        })
    }

    fn layer(&self) -> PackedLayer {
        PackedLayer {
            diff_id: self.diff_id.clone(),
            blob: self.blob.clone(),
            packing: Packing::Gzip,
        }
    }
}

/// Makes every image and pushes it under the path that it has in its own registry.
pub async fn push(pusher: &Pusher, cache: &Path) -> anyhow::Result<()> {
    let dynamic = Tree::dynamic(cache);
    let fixed = Tree::fixed(cache);
    let tools = Packed::of(&tools(&dynamic)?)?;
    let small = Packed::of(&small(&fixed)?)?;
    let put = async |name: String, layers: &[&Packed], config: Value| {
        let layers = layers.iter().map(|layer| layer.layer()).collect();
        pusher.push_packed(&name, layers, &config, false).await.map(drop)
    };

    let shell = json!({"Cmd": ["sh"], "Env": [PATH]});
    put(format!("{E2E}/busybox:1.29-2"), &[&tools], shell.clone()).await?;
    let nginx = json!({"Cmd": ["nginx", "-g", "daemon off;"], "Env": [PATH], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"});
    let server = Packed::of(&web_server(&dynamic, 80)?)?;
    put(format!("{E2E}/nginx:1.14-2"), &[&tools, &server], nginx.clone()).await?;
    let server = Packed::of(&web_server(&dynamic, HOST_NETWORK_PORT)?)?;
    let arch = holdfast_conformance::builder::host_architecture();
    let name = format!("{STAGING}/hostnet-nginx-{arch}:latest");
    put(name, &[&tools, &server], nginx).await?;
    let mut page = Layer::default();
    page.dir("var/www", 0o755)
        .file("var/www/index.html", b"It works!\n", 0o644);
    let httpd = json!({"Cmd": ["sh", "-c", "echo httpd: serving on port 80; exec httpd -f -vv -p 80 -h /var/www"], "Env": [PATH]});
    put(
        format!("{E2E}/httpd:2.4.39-4"),
        &[&tools, &Packed::of(&page)?],
        httpd,
    )
    .await?;
    let escalating = Packed::of(&set_uid(&dynamic)?)?;
    let nonewprivs = json!({"Entrypoint": ["/nnp", "-p", "-c", EFFECTIVE_UID], "Env": [PATH]});
    put(format!("{E2E}/nonewprivs:1.3"), &[&escalating], nonewprivs).await?;

    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let config = json!({"Cmd": ["sh"], "Env": [PATH], "User": user});
        put(
            format!("{STAGING}/test-image-user-{name}:latest"),
            &[&small],
            config,
        )
        .await?;
    }
    let groups = Packed::of(&predefined_group())?;
    let config = json!({"Cmd": ["sh"], "Env": [PATH], "User": "1000"});
    let name = format!("{STAGING}/test-image-predefined-group:latest");
    put(name, &[&small, &groups], config).await?;

    for name in [
        "test-image-latest:latest",
        "test-image-tag:test",
        "test-image-tag:all",
        "test-image-1:latest",
        "test-image-2:latest",
        "test-image-3:latest",
        "test-image-tags:1",
        "test-image-tags:2",
        "test-image-tags:3",
    ] {
        // Three tags of one image; all the others differ.
        let contents = if name.starts_with("test-image-tags:") {
            "test-image-tags"
        } else {
            name
        };
        let marker = Packed::of(&marker(contents))?;
        put(format!("{STAGING}/{name}"), &[&small, &marker], shell.clone()).await?;
    }
    let pause = json!({"Entrypoint": ["/bin/sleep", "infinity"], "Env": [PATH], "User": "65535:65535"});
    put(
        "pause:3.9".to_owned(),
        &[&small, &Packed::of(&marker("pause"))?],
        pause,
    )
    .await?;
    for tag in ["1", "1-glibc", "1-musl", "1-uclibc", "1.35.0-glibc"] {
        let marker = Packed::of(&marker(&format!("benchmark {tag}")))?;
        let name = format!("docker/library/busybox:{tag}");
        put(name, &[&small, &marker], shell.clone()).await?;
    }
    Ok(())
}

fn directories(layer: &mut Layer) {
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("mnt", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
        ("var/lib", 0o755),
        ("var/log", 0o755),
        ("var/run", 0o755),
    ] {
        layer.dir(dir, mode);
    }
    layer
        .file("etc/passwd", PASSWD, 0o644)
        .file("etc/group", GROUP, 0o644);
}

fn name_busybox(layer: &mut Layer, applet: &str) {
    let link = Entry::HardLink("bin/busybox".to_owned());
    layer.add(&format!("bin/{applet}"), &link, 0o755, (0, 0));
}

fn applets(layer: &mut Layer, list: &str) {
    for applet in list.lines().filter(|name| *name != "busybox") {
        name_busybox(layer, applet);
    }
}

/// busybox under the name of each applet, with the tools that it lacks, and every library of the web server too.
fn tools(tree: &Tree) -> anyhow::Result<Layer> {
    let mut layer = Layer::default();
    directories(&mut layer);
    tree.add(&mut layer, "busybox", "bin/busybox", 0o755)?;
    applets(&mut layer, &tree.output("busybox", &["--list"])?);
    tree.add(&mut layer, "ipcs", "usr/bin/ipcs", 0o755)?;
    tree.add(&mut layer, "pgrep", "usr/bin/pgrep", 0o755)?;
    tree.add_libraries(&mut layer, &["busybox", "ipcs", "pgrep"])?;
    Ok(layer)
}

/// One static file and its names: what most images need.
fn small(tree: &Tree) -> anyhow::Result<Layer> {
    let mut layer = Layer::default();
    directories(&mut layer);
    tree.add(&mut layer, "busybox", "bin/busybox", 0o755)?;
    for applet in ["sh", "ls", "cat", "echo", "id", "sleep", "top", "touch"] {
        name_busybox(&mut layer, applet);
    }
    Ok(layer)
}

/// nginx on a port, above the tools.
fn web_server(tree: &Tree, port: u16) -> anyhow::Result<Layer> {
    let mut layer = Layer::default();
    tree.add(&mut layer, "nginx", "usr/sbin/nginx", 0o755)?;
    tree.add_libraries(&mut layer, &["nginx"])?;
    for dir in ["etc/nginx", "var/lib/nginx", "var/log/nginx", "var/www"] {
        layer.dir(dir, 0o755);
    }
    layer.file("var/www/index.html", b"Welcome to nginx!\n", 0o644);
    let config = format!(
        "user www-data;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\n  access_log off;\n  default_type text/html;\n  server {{\n    listen {port};\n    root /var/www;\n  }}\n}}\n"
    );
    layer.file("etc/nginx/nginx.conf", config.as_bytes(), 0o644);
    Ok(layer)
}

/// A set-uid root program that says as whom it runs: a shell that keeps its privileges when told to.
fn set_uid(tree: &Tree) -> anyhow::Result<Layer> {
    let mut layer = Layer::default();
    layer.dir("proc", 0o555).dir("sys", 0o555).dir("dev", 0o755);
    tree.add(&mut layer, "dash", "nnp", 0o4755)?;
    tree.add_libraries(&mut layer, &["dash"])?;
    Ok(layer)
}

fn predefined_group() -> Layer {
    let mut layer = Layer::default();
    let passwd = [PASSWD, b"default-user:x:1000:1000::/home/default-user:/bin/sh\n"].concat();
    let group = [
        GROUP,
        b"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    ]
    .concat();
    layer
        .dir("home/default-user", 0o755)
        .file("etc/passwd", &passwd, 0o644)
        .file("etc/group", &group, 0o644);
    layer
}

/// Makes an image differ from others of the same base.
fn marker(text: &str) -> Layer {
    let mut layer = Layer::default();
    layer.file("image-name", format!("{text}\n").as_bytes(), 0o644);
    layer
}
