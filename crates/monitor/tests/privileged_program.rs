//! The monitor's own program, which its containers must not reach.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use support::{Pod, monitor_program, privileged, with_spec};

/// An entrypoint of /proc/self/exe runs the monitor itself; the container's root must not be able to change its file (the
/// class of CVE-2019-5736).
#[test]
fn a_container_that_runs_the_monitor_cannot_change_it() {
    privileged(|| async {
        // A copy, for the case that this test fails.
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("holdfast-monitor");
        std::fs::copy(monitor_program(), &program).unwrap();
        let (bytes, mode) = (
            std::fs::metadata(&program).unwrap().len(),
            std::fs::metadata(&program).unwrap().permissions().mode(),
        );
        let pod = Pod::start_with(program.clone()).await;
        let create = with_spec(pod.container("itself", ""), |spec| {
            spec["process"]["args"] = json!(["/proc/self/exe"]);
            // Where it is not linked statically, as in this test's build.
            for dir in ["/lib", "/lib64", "/usr/lib"]
                .iter()
                .filter(|dir| Path::new(dir).exists())
            {
                let mount =
                    json!({"destination": dir, "type": "bind", "source": dir, "options": ["bind", "ro"]});
                spec["mounts"].as_array_mut().unwrap().push(mount);
            }
        });
        let started = pod.create(create).await;
        pod.client().start(&started.id).await.unwrap();
        let script = "busybox cmp -s /proc/1/exe /bin/busybox || echo another; busybox chmod 4777 /proc/1/exe; \
                      busybox chown 1000 /proc/1/exe; : > /proc/1/exe";
        let finished = pod.exec(&started.id, script, Duration::from_secs(60)).await;
        let (out, err) = (
            String::from_utf8_lossy(&finished.stdout),
            String::from_utf8_lossy(&finished.stderr),
        );
        assert_eq!(out, "another\n", "it runs the monitor: {err}");
        assert_eq!(err.matches("Read-only file system").count(), 3, "{err}");
        let now = std::fs::metadata(&program).unwrap();
        assert_eq!((now.len(), now.permissions().mode()), (bytes, mode));
        pod.stop().await;
    });
}
