//! What a client's mounts do to the runtime's own.

use super::*;

/// What is mounted on a volume that propagates outward is mounted on the host, too.
#[test]
fn the_pods_files_are_not_put_over_the_hosts() {
    let of = |propagations: &[(&str, Propagation)]| -> Vec<String> {
        let mut case = case();
        let mounts = propagations.iter().map(|(path, propagation)| Mount {
            container_path: (*path).into(),
            host_path: "/srv".into(),
            propagation: *propagation,
            ..Mount::default()
        });
        case.container.mounts = mounts.collect();
        let json = case.json();
        let all = json["mounts"].as_array().unwrap().iter();
        all.map(|mount| mount["destination"].as_str().unwrap().to_owned())
            .filter(|path| path.starts_with("/etc/"))
            .collect()
    };
    use Propagation::{Bidirectional, HostToContainer, Private};
    let files = ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];
    let own = of(&[]);
    assert!(
        own.iter().all(|path| files.contains(&path.as_str())) && own.len() >= 2,
        "{own:?}"
    );
    for propagation in [Private, HostToContainer] {
        assert_eq!(of(&[("/etc", propagation)]), own, "{propagation:?}");
    }
    assert!(of(&[("/etc", Bidirectional)]).is_empty());
    assert_eq!(
        of(&[("/etc", Bidirectional), ("/etc/hosts", Private)]),
        ["/etc/hosts"]
    );
    // Elsewhere it does no harm.
    assert_eq!(of(&[("/etcetera", Bidirectional)]), own);
}

#[test]
fn what_the_client_mounts_replaces_the_default() {
    let mut case = case();
    let mount = |path: &str| Mount {
        container_path: path.into(),
        host_path: "/srv".into(),
        ..Mount::default()
    };
    case.container.mounts = vec![mount("/dev/shm"), mount("/sys"), mount("/etc/./resolv.conf")];
    let json = case.json();
    let destinations: Vec<&str> = json["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    for path in ["/dev/shm", "/sys", "/etc/resolv.conf"] {
        assert_eq!(
            destinations
                .iter()
                .filter(|destination| **destination == path)
                .count(),
            1,
            "{path}"
        );
    }
    assert!(!destinations.contains(&"/sys/fs/cgroup"));
    case.container.mounts = vec![Mount {
        options: vec!["remount".into()],
        ..mount("/x")
    }];
    assert!(
        case.error()
            .starts_with("mounts[0].mount_options: \"remount\" is not one of")
    );
}
