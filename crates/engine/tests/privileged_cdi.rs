//! CDI devices in containers that run.
#![allow(clippy::unwrap_used)]

mod node;

use holdfast_engine::Kind;
use holdfast_model::{ContainerSpec, IdMapping, NamespaceMode, UserNamespace};
use node::Node;

const DEVICE: &str = "vendor.com/thing=one";

fn spec(more: &str, lib: &std::path::Path) -> String {
    format!(
        r#"{{"cdiVersion": "0.7.0", "kind": "vendor.com/thing",
        "containerEdits": {{"mounts": [{{"hostPath": "{}", "containerPath": "/opt/vendor", "options": ["ro", "nosuid", "bind"]}}]}},
        "devices": [{{"name": "one", "containerEdits": {{
            "env": ["THING=one"], "additionalGids": [4242],
            "deviceNodes": [{{"path": "/dev/vendor/thing", "hostPath": "/dev/zero"}},
                {{"path": "/dev/vendor/log", "hostPath": "/dev/kmsg", "permissions": "w"}}]{more}}}}}]}}"#,
        lib.display()
    )
}

fn node_with(name: &str, more: &str) -> Node {
    let node = Node::new(name);
    let (cdi, lib) = (node.path("cdi"), node.path("lib"));
    std::fs::create_dir_all(&cdi).unwrap();
    std::fs::create_dir_all(&lib).unwrap();
    std::fs::write(lib.join("version"), "7\n").unwrap();
    std::fs::write(cdi.join("thing.json"), spec(more, &lib)).unwrap();
    node
}

fn asking(node: &Node) -> ContainerSpec {
    let mut spec = node.script("main", "sleep 1000");
    spec.cdi_devices = vec![DEVICE.into()];
    spec
}

fn check(node: &Node, pod: &str, spec: ContainerSpec) {
    let main = node.run(pod, spec);
    assert_eq!(
        node.sh(
            &main,
            "echo $THING; cat /opt/vendor/version; head -c 3 /dev/vendor/thing | wc -c; id -G"
        ),
        "one\n7\n3\n0 4242\n"
    );
    // Only writing was granted; without a rule for it the device filter lets nobody open it.
    node.sh(&main, ": >/dev/vendor/log");
    assert_ne!(
        node.exec(&main, &["head", "-c", "1", "/dev/vendor/log"])
            .exit_code,
        0
    );
    assert_ne!(node.exec(&main, &["touch", "/opt/vendor/x"]).exit_code, 0);
    let record = node.status(&main);
    assert_eq!(record.user.groups, [0, 4242]);
    assert!(
        record.oci_spec.contains("/dev/vendor/thing"),
        "the adjusted spec is not the recorded one"
    );
}

#[test]
fn a_device_is_injected() {
    let mut node = node_with("cdi", "");
    let pod = node.run_pod(node.host_pod("one"));
    check(&node, &pod, asking(&node));
    let mut by_annotation = node.script("second", "sleep 1000");
    by_annotation.annotations = [("cdi.k8s.io/plugin_1".to_owned(), DEVICE.to_owned())].into();
    check(&node, &pod, by_annotation);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_device_is_injected_into_a_user_namespace() {
    let mut node = node_with("cdiids", "");
    let mut spec = node.pod("one");
    let map = IdMapping {
        host_id: 300_000,
        container_id: 0,
        length: 65_536,
    };
    spec.security.namespaces.user = Some(UserNamespace {
        mode: NamespaceMode::Pod,
        uids: vec![map],
        gids: vec![map],
    });
    let pod = node.run_pod(spec);
    check(&node, &pod, asking(&node));
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn what_cannot_be_injected_is_refused_and_leaves_nothing() {
    let mut node = node_with(
        "cdirefused",
        r#", "hooks": [{"hookName": "createContainer", "path": "bin/true"}]"#,
    );
    let pod = node.run_pod(node.host_pod("one"));
    let refused = |device: &str| {
        let mut spec = asking(&node);
        spec.cdi_devices = vec![device.into()];
        node.block_on(node.engine().create_container(&pod, spec))
            .unwrap_err()
    };
    let hook = refused(DEVICE);
    assert_eq!(hook.kind(), Kind::Precondition);
    assert!(hook.to_string().contains("createContainer"), "{hook}");
    // The next one, as soon as its spec is there.
    std::fs::write(node.path("cdi/thing.json"), spec("", &node.path("lib"))).unwrap();
    let unknown = refused("vendor.com/thing=two");
    assert_eq!(unknown.kind(), Kind::Precondition);
    assert!(unknown.to_string().contains("vendor.com/thing=two"), "{unknown}");
    let rubbish = refused("thing");
    assert_eq!(rubbish.kind(), Kind::Invalid);
    assert!(rubbish.to_string().contains("CDI_devices[0].name"), "{rubbish}");
    assert_eq!(node.engine().containers().len(), 0);
    check(&node, &pod, asking(&node));
    node.remove_pod(&pod);
    node.assert_clean();
}
