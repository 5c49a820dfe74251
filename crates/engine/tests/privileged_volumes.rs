//! Images as volumes, and the volumes that images declare.
#![allow(clippy::unwrap_used)]

mod node;

use std::path::Path;

use holdfast_engine::Kind;
use holdfast_model::{ContainerSpec, IdMapping, ImageSpec, Mount, MountImage, NamespaceMode, UserNamespace};
use node::Node;

const LAYERED: &str = "localhost/layered:1";

fn lower(root: &Path) {
    std::fs::create_dir_all(root.join("data/deep")).unwrap();
    std::fs::write(root.join("data/kept"), "kept\n").unwrap();
    std::fs::write(root.join("data/deep/gone"), "gone\n").unwrap();
    std::fs::write(root.join("data/deep/left"), "left\n").unwrap();
    std::os::unix::fs::symlink("/data/deep", root.join("data/link")).unwrap();
}

fn upper(root: &Path) {
    std::fs::create_dir_all(root.join("data/deep")).unwrap();
    std::fs::write(root.join("data/added"), "added\n").unwrap();
    // A whiteout in an archive.
    std::fs::write(root.join("data/deep/.wh.gone"), "").unwrap();
}

fn node(name: &str) -> Node {
    let node = Node::new(name);
    node.load(LAYERED, &[lower, upper], &["/data", "/made/by/volume"]);
    node
}

fn image_mount(path: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: path.into(),
        image: Some(MountImage {
            image: ImageSpec {
                image: LAYERED.into(),
                ..ImageSpec::default()
            },
            sub_path: sub_path.into(),
        }),
        readonly: true,
        ..Mount::default()
    }
}

fn with_mounts(node: &Node, mounts: Vec<Mount>) -> ContainerSpec {
    let mut spec = node.script("main", "sleep 1000");
    spec.mounts = mounts;
    spec
}

fn user_namespace() -> UserNamespace {
    let map = IdMapping {
        host_id: 300_000,
        container_id: 0,
        length: 65_536,
    };
    UserNamespace {
        mode: NamespaceMode::Pod,
        uids: vec![map],
        gids: vec![map],
    }
}

fn images_as_volumes_in(node: &Node, pod: &str) {
    let mounts = vec![
        image_mount("/whole", ""),
        image_mount("/part", "data"),
        image_mount("/linked", "data/link"),
        image_mount("/one/file", "data/kept"),
    ];
    let main = node.run(pod, with_mounts(node, mounts));
    assert_eq!(
        node.sh(&main, "cd /part; echo *; cat kept added"),
        "added deep kept link\nkept\nadded\n"
    );
    assert_eq!(
        node.sh(&main, "ls /linked /whole/data/deep; cat /one/file"),
        "/linked:\nleft\n\n/whole/data/deep:\nleft\nkept\n"
    );
    assert_eq!(
        node.sh(&main, "stat -c '%u %g' /whole /part/kept /one/file"),
        "0 0\n0 0\n0 0\n"
    );
    assert_eq!(node.sh(&main, "/whole/bin/echo runs"), "runs\n");
    for place in ["/whole/x", "/part/x", "/one/file"] {
        let refused = node.exec(&main, &["/bin/sh", "-c", &format!("echo x >{place}")]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(text.contains("Read-only file system"), "{place}: {text}");
    }
    let id = node.images().get(LAYERED).unwrap().id.to_string();
    assert_eq!(node.status(&main).mount_images, vec![id; 4]);
}

#[test]
fn images_as_volumes() {
    let mut node = node("imagevolumes");
    let pod = node.run_pod(node.host_pod("one"));
    images_as_volumes_in(&node, &pod);
    // The layers of an image that is gone stay for as long as they are mounted.
    node.block_on(node.images().remove(LAYERED)).unwrap();
    let main = node.engine().containers()[0].id.to_string();
    assert_eq!(node.sh(&main, "cat /part/added"), "added\n");
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn images_as_volumes_through_id_maps() {
    let mut node = node("imageids");
    let mut spec = node.pod("one");
    spec.security.namespaces.user = Some(user_namespace());
    let pod = node.run_pod(spec);
    images_as_volumes_in(&node, &pod);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn what_an_image_does_not_have_is_refused_and_leaves_nothing() {
    let mut node = node("imagerefused");
    let pod = node.run_pod(node.host_pod("one"));
    let create = |mount: Mount| {
        let made = node
            .engine()
            .create_container(&pod, with_mounts(&node, vec![image_mount("/good", ""), mount]));
        node.block_on(made).unwrap_err()
    };
    assert_eq!(create(image_mount("/a", "no/such")).kind(), Kind::Invalid);
    let mut unknown = image_mount("/a", "");
    unknown.image.as_mut().unwrap().image.image = "localhost/never-pulled:1".into();
    assert_eq!(create(unknown).kind(), Kind::NotFound);
    let mut writable = image_mount("/a", "");
    writable.readonly = false;
    let error = create(writable);
    assert!(error.to_string().contains("mounts[1].readonly"), "{error}");
    node.remove_pod(&pod);
    node.assert_clean();
}

fn declared_volumes_in(node: &Node, pod: &str) {
    let layered = || ImageSpec {
        image: LAYERED.into(),
        ..ImageSpec::default()
    };
    let mut spec = node.script("main", "sleep 1000");
    spec.image = layered();
    spec.security.readonly_rootfs = true;
    let main = node.run(pod, spec);
    // Begins with what the image has, and can be written though the root cannot.
    assert_eq!(
        node.sh(
            &main,
            "cat /data/kept; echo new >/data/kept; rm -r /data/deep; ls /data; touch /made/by/volume/x"
        ),
        "kept\nadded\nkept\nlink\n"
    );
    assert_ne!(node.exec(&main, &["touch", "/made/by/x"]).exit_code, 0);
    // Another container of the image begins anew; one that mounts something there gets that.
    let mut spec = node.script("other", "sleep 1000");
    spec.image = layered();
    let host = node.path("host");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("mine"), "").unwrap();
    spec.mounts = vec![Mount {
        container_path: "/made/by/volume/".into(),
        host_path: host.to_str().unwrap().into(),
        ..Mount::default()
    }];
    let other = node.run(pod, spec);
    assert_eq!(
        node.sh(&other, "cat /data/kept; ls /data/deep /made/by/volume"),
        "kept\n/data/deep:\nleft\n\n/made/by/volume:\nmine\n"
    );
}

#[test]
fn volumes_that_an_image_declares() {
    let mut node = node("declared");
    let pod = node.run_pod(node.host_pod("one"));
    declared_volumes_in(&node, &pod);
    node.remove_pod(&pod);
    let mut spec = node.pod("two");
    spec.security.namespaces.user = Some(user_namespace());
    let pod = node.run_pod(spec);
    declared_volumes_in(&node, &pod);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_volume_at_etc_does_not_take_the_pods_names_away() {
    let mut node = Node::new("etcvol");
    let pod = node.run_pod(node.host_pod("one"));
    let etc = node.path("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("own"), "mine\n").unwrap();
    std::fs::write(node.path("named"), "1.2.3.4 named\n").unwrap();
    let mount = |container: &str, host: &Path| Mount {
        container_path: container.into(),
        host_path: host.to_str().unwrap().into(),
        ..Mount::default()
    };
    let mounts = vec![mount("/etc", &etc), mount("/etc/hosts", &node.path("named"))];
    let main = node.run(&pod, with_mounts(&node, mounts));
    let hostname = std::fs::read_to_string(node.state().join(format!("pods/{pod}/hostname"))).unwrap();
    assert_eq!(
        node.sh(
            &main,
            "cat /etc/own /etc/hosts /etc/hostname; test -s /etc/resolv.conf && echo names"
        ),
        format!("mine\n1.2.3.4 named\n{hostname}names\n")
    );
    // By now there is something in it to mount them on; in an empty one that is read-only there is not.
    let readonly = |host: &Path| Mount {
        readonly: true,
        ..mount("/etc", host)
    };
    let named = |name: &str, mounts: Vec<Mount>| {
        let mut spec = with_mounts(&node, mounts);
        spec.metadata.name = name.into();
        spec
    };
    let second = node.run(&pod, named("second", vec![readonly(&etc)]));
    assert_eq!(
        node.sh(&second, "cat /etc/own /etc/hostname"),
        format!("mine\n{hostname}")
    );
    let empty = node.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let refused = node
        .block_on(
            node.engine()
                .create_container(&pod, named("third", vec![readonly(&empty)])),
        )
        .unwrap_err()
        .chain();
    assert!(
        refused.contains("/etc/") && refused.contains("read-only file system"),
        "{refused}"
    );
    node.remove_pod(&pod);
    node.assert_clean();
}
