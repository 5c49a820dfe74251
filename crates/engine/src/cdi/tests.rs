#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use holdfast_model::ContainerSpec;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Process};
use proptest::prelude::*;

use super::spec::parse;
use super::*;
use crate::Kind;

const NULL: &str = r#"{"cdiVersion": "0.5.0", "kind": "vendor.com/null", "devices": [
    {"name": "a", "containerEdits": {"env": ["WHICH=a"], "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/null"}]}},
    {"name": "b", "containerEdits": {"env": ["WHICH=b"]}}],
    "containerEdits": {"env": ["ALL=1"], "mounts": [
        {"hostPath": "/lib", "containerPath": "/opt/lib", "options": ["ro", "bind"]}]}}"#;

fn spec_of(kind: &str, env: &str) -> String {
    format!(
        r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "devices": [{{"name": "d", "containerEdits": {{"env": ["{env}"]}}}}]}}"#
    )
}

struct Dirs {
    scratch: tempfile::TempDir,
    cdi: Arc<Cdi>,
}

impl Dirs {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dirs = ["low", "high"].map(|name| scratch.path().join(name)).to_vec();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
        }
        Self {
            scratch,
            cdi: Cdi::open(dirs),
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.scratch.path().join(name), text).unwrap();
    }

    fn inject(&self, names: &[&str]) -> Result<OciSpec, Error> {
        let names: Vec<Name> = names.iter().map(|name| Name::parse(name).unwrap()).collect();
        self.cdi.inject(&names, container())
    }

    fn refused(&self, name: &str) -> String {
        self.inject(&[name]).unwrap_err().to_string()
    }
}

fn container() -> OciSpec {
    let mut process = Process::default();
    process.set_env(Some(vec!["PATH=/bin".into(), "WHICH=image".into()]));
    let mut spec = OciSpec::default();
    spec.set_process(Some(process));
    let mut linux = Linux::default();
    linux.set_devices(None);
    spec.set_linux(Some(linux));
    spec.set_mounts(Some(Vec::new()));
    spec
}

fn env(spec: &OciSpec) -> Vec<String> {
    spec.process().as_ref().unwrap().env().clone().unwrap()
}

#[test]
fn names() {
    for good in [
        "vendor.com/class=a",
        "v/c=0",
        "nvidia.com/gpu=all",
        "a-b_c.d/e=f:g-1.h",
    ] {
        assert_eq!(Name::parse(good).unwrap().to_string(), good);
    }
    for bad in [
        "",
        "a",
        "vendor.com/class",
        "vendor.com/class=",
        "/class=a",
        "vendor.com/=a",
        "1v/c=a",
        "v/c=a/b",
        "v/c=-a",
        "v/c=a,",
        "v/c/d=a",
        "v/c=a b",
        "v-/c=a",
    ] {
        assert!(Name::parse(bad).is_err(), "{bad:?}");
    }
    assert!(Name::parse(&format!("{}/c=d", "v".repeat(254))).is_err());
}

#[test]
fn who_asks() {
    let mut container = ContainerSpec {
        cdi_devices: vec!["v/c=one".into(), "v/c=one".into()],
        ..ContainerSpec::default()
    };
    container.annotations = [
        ("cdi.k8s.io/b".to_owned(), "v/c=three".to_owned()),
        ("cdi.k8s.io/a".to_owned(), "v/c=one,v/c=two".to_owned()),
        ("other".to_owned(), "no name".to_owned()),
    ]
    .into();
    let names: Vec<String> = requested(&container)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["v/c=one", "v/c=two", "v/c=three"]);
    container
        .annotations
        .insert("cdi.k8s.io/c".into(), "rubbish".into());
    let refused = requested(&container).unwrap_err();
    assert_eq!(refused.field, "annotations[\"cdi.k8s.io/c\"]");
    container.cdi_devices.push("rubbish".into());
    assert_eq!(requested(&container).unwrap_err().field, "CDI_devices[2].name");
}

#[test]
fn specs_that_are_refused() {
    let wrong = |edit: &str| {
        format!(
            r#"{{"cdiVersion":"1.1.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{{{edit}}}}}]}}"#
        )
    };
    let cases = [
        ("expected value", "rubbish".to_owned()),
        ("missing field `devices`|no devices", r#"{"cdiVersion":"0.5.0","kind":"v/c"}"#.into()),
        ("no devices", r#"{"cdiVersion":"0.5.0","kind":"v/c","devices":[]}"#.into()),
        ("unknown field", r#"{"cdiVersion":"0.5.0","kind":"v/c","device":[]}"#.into()),
        ("cdiVersion \"9.9.9\"", r#"{"cdiVersion":"9.9.9","kind":"v/c","devices":[{"name":"d"}]}"#.into()),
        ("\"c\" is not a kind", r#"{"cdiVersion":"0.5.0","kind":"c","devices":[{"name":"d"}]}"#.into()),
        ("twice", r#"{"cdiVersion":"0.5.0","kind":"v/c","devices":[{"name":"d"},{"name":"d"}]}"#.into()),
        ("came with 0.6.0", r#"{"cdiVersion":"0.5.0","kind":"v/c.d","devices":[{"name":"d"}]}"#.into()),
        ("came with 0.5.0", r#"{"cdiVersion":"0.4.0","kind":"v/c","devices":[{"name":"0"}]}"#.into()),
        (
            "came with 0.7.0",
            r#"{"cdiVersion":"0.6.0","kind":"v/c","devices":[{"name":"d","containerEdits":{"additionalGids":[5]}}]}"#.into(),
        ),
        ("is not KEY=value", wrong(r#""env":["=x"]"#)),
        ("HOME contains a newline", wrong(r#""env":["HOME=/a\nb"]"#)),
        ("not an absolute path", wrong(r#""deviceNodes":[{"path":"dev/x"}]"#)),
        ("no type of a device", wrong(r#""deviceNodes":[{"path":"/dev/x","type":"z"}]"#)),
        ("is not made of", wrong(r#""deviceNodes":[{"path":"/dev/x","permissions":"x"}]"#)),
        ("to an absolute path", wrong(r#""mounts":[{"hostPath":"/a","containerPath":"b"}]"#)),
        ("no such hook", wrong(r#""hooks":[{"hookName":"before","path":"/x"}]"#)),
        ("not absolute", wrong(r#""hooks":[{"hookName":"poststop","path":"x"}]"#)),
        ("greater than zero", wrong(r#""hooks":[{"hookName":"poststop","path":"/x","timeout":0}]"#)),
    ];
    for (wanted, text) in cases {
        let reason = parse(&text, true).unwrap_err();
        assert!(wanted.split('|').any(|w| reason.contains(w)), "{text}: {reason}");
    }
}

#[test]
fn yaml_is_read_as_the_fields_tools_write_it() {
    let text = "---\ncdiVersion: 0.5.0\nkind: v/c\ncontainerEdits: null\ndevices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes:\n    \
        - path: /dev/x\n      hostPath: /dev/null\n      fileMode: 0640\n      permissions: r\n    hooks: []\n";
    let spec = parse(text, false).unwrap();
    assert_eq!(
        spec.devices[0].container_edits.device_nodes[0].file_mode,
        Some(0o640)
    );
    let number = parse(&text.replace("0640", "416"), false).unwrap();
    assert_eq!(number, spec);
    // Aliases that grow without end are the parser's to stop.
    let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (one, two) in ["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi", "ij"]
        .iter()
        .map(|p| p.split_at(1))
    {
        bomb.push_str(&format!(
            "{two}: &{two} [*{one},*{one},*{one},*{one},*{one},*{one},*{one},*{one},*{one}]\n"
        ));
    }
    assert!(parse(&bomb, false).is_err());
}

#[test]
fn edits_of_a_spec_come_once_and_before_those_of_its_devices() {
    let dirs = Dirs::new();
    dirs.write("low/null.json", NULL);
    let spec = dirs.inject(&["vendor.com/null=a", "vendor.com/null=b"]).unwrap();
    assert_eq!(env(&spec), ["PATH=/bin", "WHICH=b", "ALL=1"]);
    let linux = spec.linux().as_ref().unwrap();
    let nodes = linux.devices().as_ref().unwrap();
    assert_eq!(nodes.len(), 1);
    assert_eq!((nodes[0].major(), nodes[0].minor()), (1, 3));
    assert_eq!(nodes[0].file_mode(), Some(0o666));
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    let last = rules.last().unwrap();
    assert_eq!(
        (last.allow(), last.major(), last.minor(), last.access().as_deref()),
        (true, Some(1), Some(3), Some("rwm"))
    );
    let mounts = spec.mounts().as_ref().unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].options().as_ref().unwrap(), &["ro", "bind"]);
}

#[test]
fn a_user_namespace_maps_what_is_bound() {
    let dirs = Dirs::new();
    dirs.write("low/null.json", NULL);
    let mut spec = container();
    let mut user = LinuxNamespace::default();
    user.set_typ(LinuxNamespaceType::User);
    spec.linux_mut()
        .as_mut()
        .unwrap()
        .set_namespaces(Some(vec![user]));
    let names = [Name::parse("vendor.com/null=b").unwrap()];
    let spec = dirs.cdi.inject(&names, spec).unwrap();
    let options = spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
    assert_eq!(options, ["ro", "bind", "idmap"]);
}

#[test]
fn groups_hooks_and_what_is_not_supported() {
    let dirs = Dirs::new();
    let edits = |edits: &str| {
        format!(
            r#"{{"cdiVersion":"1.1.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{{{edits}}}}}]}}"#
        )
    };
    dirs.write("low/x.json", &edits(r#""additionalGids":[0,44,44]"#));
    let spec = dirs.inject(&["v/c=d"]).unwrap();
    let groups = spec.process().as_ref().unwrap().user().additional_gids().clone();
    assert_eq!(groups, Some(vec![44]));
    dirs.write(
        "low/x.json",
        &edits(r#""hooks":[{"hookName":"createContainer","path":"/usr/bin/x","args":["x"]}]"#),
    );
    let spec = dirs.inject(&["v/c=d"]).unwrap();
    let hooks = spec.hooks().clone().unwrap();
    assert_eq!(
        hooks.create_container().as_ref().unwrap()[0].path().to_str(),
        Some("/usr/bin/x")
    );
    for (edit, word) in [
        (r#""intelRdt":{"closID":"x"}"#, "intelRdt"),
        (
            r#""netDevices":[{"hostInterfaceName":"eth9","name":"eth1"}]"#,
            "eth9",
        ),
    ] {
        dirs.write("low/x.json", &edits(edit));
        let error = dirs.inject(&["v/c=d"]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(
            error.to_string().contains(word) && error.to_string().contains("x.json"),
            "{error}"
        );
    }
    dirs.write(
        "low/x.json",
        &edits(r#""deviceNodes":[{"path":"/dev/never-there"}]"#),
    );
    assert!(dirs.refused("v/c=d").contains("/dev/never-there"));
    // One that says everything about itself need not be there.
    dirs.write(
        "low/x.json",
        &edits(r#""deviceNodes":[{"path":"/dev/never-there","type":"c","major":1,"minor":5,"permissions":"none"}]"#),
    );
    let spec = dirs.inject(&["v/c=d"]).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.devices().as_ref().unwrap()[0].minor(), 5);
    let rules = linux.resources().as_ref().and_then(|r| r.devices().clone());
    let rule = |one: &oci_spec::runtime::LinuxDeviceCgroup| one.allow() && one.minor() == Some(5);
    assert!(
        !rules.unwrap_or_default().iter().any(rule),
        "`none` gives no rule"
    );
}

#[test]
fn priorities_and_conflicts() {
    let dirs = Dirs::new();
    dirs.write("low/a.json", &spec_of("v/c", "FROM=low"));
    assert!(env(&dirs.inject(&["v/c=d"]).unwrap()).contains(&"FROM=low".to_owned()));
    dirs.write("low/b.json", &spec_of("v/c", "FROM=other"));
    let refused = dirs.refused("v/c=d");
    assert!(
        refused.contains("a.json") && refused.contains("b.json"),
        "{refused}"
    );
    assert_eq!(dirs.cdi.status().broken.len(), 1);
    dirs.write("high/c.json", &spec_of("v/c", "FROM=high"));
    assert!(env(&dirs.inject(&["v/c=d"]).unwrap()).contains(&"FROM=high".to_owned()));
    assert_eq!(dirs.cdi.status().broken, []);
    assert_eq!(dirs.cdi.status().devices, ["v/c=d"]);
}

#[test]
fn a_broken_spec_harms_nobody_and_is_named() {
    let dirs = Dirs::new();
    dirs.write("low/good.json", &spec_of("good.com/c", "GOOD=1"));
    dirs.write(
        "low/bad.json",
        r#"{"cdiVersion":"0.5.0","kind":"bad.com/c","devices":7}"#,
    );
    dirs.write("low/rubbish.yaml", "\u{0}");
    dirs.write("low/readme.txt", "not a spec");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        dirs.scratch.path().join("low/pipe.json"),
        0o600.into(),
    )
    .unwrap();
    std::fs::create_dir(dirs.scratch.path().join("low/dir.json")).unwrap();
    std::fs::write(
        dirs.scratch.path().join("low/large.json"),
        vec![b' '; (4 << 20) + 1],
    )
    .unwrap();
    dirs.inject(&["good.com/c=d"]).unwrap();
    let refused = dirs.refused("bad.com/c=d");
    assert!(refused.contains("bad.json"), "{refused}");
    // Of a kind that is not the broken one's: that is no suspect, the unreadable one is.
    let refused = dirs.refused("good.com/c=other");
    assert!(
        !refused.contains("bad.json") && refused.contains("rubbish.yaml"),
        "{refused}"
    );
    let broken: Vec<String> = dirs
        .cdi
        .status()
        .broken
        .into_iter()
        .map(|(what, _)| what)
        .collect();
    for name in ["bad.json", "large.json", "pipe.json", "rubbish.yaml"] {
        assert!(
            broken.iter().any(|what| what.ends_with(name)),
            "{name}: {broken:?}"
        );
    }
    assert_eq!(broken.len(), 4);
}

#[tokio::test]
async fn what_is_written_is_noticed_without_being_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("made/later");
    let cdi = Cdi::open(vec![dir.clone()]);
    cdi.watch();
    let until = async |wanted: &dyn Fn(&CdiStatus) -> bool| {
        for _ in 0..500 {
            if wanted(&cdi.status()) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("not noticed: {:?}", cdi.status());
    };
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    std::fs::create_dir(scratch.path().join("made")).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.json"), spec_of("v/c", "A=1")).unwrap();
    until(&|status| status.devices == ["v/c=d"]).await;
    std::fs::write(dir.join("a.json"), "{").unwrap();
    until(&|status| status.devices.is_empty() && status.broken.len() == 1).await;
    std::fs::remove_file(dir.join("a.json")).unwrap();
    until(&|status| status.broken.is_empty()).await;
}

proptest! {
    #[test]
    fn nothing_that_is_read_panics(text in ".{0,200}", name in ".{0,40}") {
        let _ = parse(&text, true);
        let _ = parse(&text, false);
        let _ = Name::parse(&name);
        let _ = parse(&format!("cdiVersion: 0.5.0\nkind: {name}\ndevices: [{{name: {text}}}]"), false);
    }
}
