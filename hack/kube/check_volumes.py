"""Volumes: emptyDir, configMap, secret, projected, sub paths, propagation, images; and user namespaces over them."""

import subprocess
import time

from checks import DoesNotApply, check
from kube import container, expect, expect_equal, patience, pod


@check
def empty_dir(c):
    mount = lambda name, path: {"name": name, "mountPath": path}
    mounts = [mount("disk", "/disk"), mount("memory", "/memory")]
    c.api.create(pod(
        "empty-dir",
        container("one", "echo shared >/disk/file; exec sleep 100000", volumeMounts=mounts),
        container("two", volumeMounts=mounts),
        volumes=[{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}],
        securityContext={"fsGroup": 4321},
    ))
    c.api.running("empty-dir")
    expect_equal(c.kubectl.sh("empty-dir", "cat /disk/file", "two"), "shared\n", "what the other container wrote")
    expect_equal(c.kubectl.sh("empty-dir", "stat -c %g /disk", "two"), "4321\n", "group of the volume")
    line = c.kubectl.sh("empty-dir", "grep ' /memory ' /proc/mounts", "two")
    expect("tmpfs" in line and "size=8192k" in line, f"mount of the memory volume: {line}")


@check
def config_map_secret_and_sub_path(c):
    c.api.replace("configmaps", "settings", {"data": {"a": "1", "b": "2"}})
    c.api.replace("secrets", "hidden", {"stringData": {"word": "s3cret"}})
    c.api.create(pod(
        "config",
        container(
            env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
                 {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            volumeMounts=[
                {"name": "config", "mountPath": "/config"},
                {"name": "config", "mountPath": "/etc/one.conf", "subPath": "b"},
                {"name": "all", "mountPath": "/all", "readOnly": True},
                {"name": "dir", "mountPath": "/sub", "subPathExpr": "of-$(POD)/deep"},
                {"name": "dir", "mountPath": "/whole"},
            ],
        ),
        volumes=[
            {"name": "config", "configMap": {"name": "settings"}},
            {"name": "dir", "emptyDir": {}},
            {"name": "all", "projected": {"sources": [
                {"secret": {"name": "hidden"}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            ]}},
        ],
    ))
    c.api.running("config")
    say = lambda script: c.kubectl.sh("config", script)
    expect_equal(say("cat /config/a /etc/one.conf; echo; echo $A $POD"), "12\n1 config\n", "configMap by volume, sub path and variable")
    expect_equal(say("cat /all/word; grep -c check= /all/labels"), "s3cret1\n", "secret and labels")
    expect_equal(say("echo x >/sub/file; cat /whole/of-config/deep/file"), "x\n", "subPathExpr")
    c.api.call("PATCH", "/api/v1/namespaces/default/configmaps/settings", {"data": {"a": "new", "b": "new"}}, "application/merge-patch+json")
    deadline = time.monotonic() + patience(60)
    while say("cat /config/a") != "new":
        expect(time.monotonic() < deadline, "the changed configMap does not arrive")
        time.sleep(0.5)
    expect_equal(say("cat /etc/one.conf"), "2", "a sub path keeps what it had")


@check
def read_only_and_propagation(c):
    share = c.host_directory("propagation")
    (share / "inner").mkdir(exist_ok=True)
    volumes = [{"name": "share", "hostPath": {"path": str(share)}}]
    mount = lambda **fields: [{"name": "share", "mountPath": "/share", **fields}]
    # In a shared peer group, as a node's root is.
    subprocess.run(["mount", "--bind", share, share], check=True)
    subprocess.run(["mount", "--make-rshared", share], check=True)
    try:
        c.api.create(pod(
            "propagation",
            container("both", securityContext={"privileged": True}, volumeMounts=mount(mountPropagation="Bidirectional")),
            container("from-host", volumeMounts=mount(mountPropagation="HostToContainer")),
            container("none", volumeMounts=mount()),
            container("read-only", volumeMounts=mount(readOnly=True, recursiveReadOnly="Enabled")),
            volumes=volumes,
            hostUsers=True,
        ))
        c.api.running("propagation")
        c.kubectl.sh("propagation", "mount -t tmpfs x /share/inner; echo here >/share/inner/file", "both")
        expect_equal((share / "inner/file").read_text(), "here\n", "what was mounted by the container, on the host")
        expect_equal(c.kubectl.sh("propagation", "cat /share/inner/file", "from-host"), "here\n", "in a HostToContainer mount")
        expect_equal(c.kubectl.sh("propagation", "ls /share/inner", "none"), "", "in a private mount")
        code, _, err = c.kubectl.run("exec", "propagation", "-c", "read-only", "--", "touch", "/share/file")
        expect(code != 0 and b"Read-only" in err, f"a write to a read-only mount: {code} {err}")
    finally:
        subprocess.run(["umount", share / "inner"], check=False, stderr=subprocess.DEVNULL)
        c.api.delete("propagation")
        c.api.gone("propagation")
        subprocess.run(["umount", "-l", share], check=True)


@check
def image_volume(c):
    image = {"reference": "localhost/kube/data:1", "pullPolicy": "IfNotPresent"}
    c.api.create(pod(
        "image-volume",
        container(volumeMounts=[
            {"name": "data", "mountPath": "/data"},
            {"name": "data", "mountPath": "/only-etc", "subPath": "etc"},
        ]),
        volumes=[{"name": "data", "image": image}],
    ))
    c.api.running("image-volume")
    expect("root:x:0" in c.kubectl.sh("image-volume", "cat /data/etc/passwd"), "the image's file is not there")
    expect_equal(c.kubectl.sh("image-volume", "ls /only-etc"), "group\npasswd\n", "the sub path of the image")
    code, _, err = c.kubectl.run("exec", "image-volume", "--", "touch", "/data/new")
    expect(code != 0 and b"Read-only" in err, f"a write to an image volume: {code} {err}")


@check
def user_namespace(c):
    if not c.user_namespaces():
        raise DoesNotApply("the runtime does not advertise user namespaces on this kernel")
    c.api.replace("configmaps", "for-user", {"data": {"a": "1"}})
    c.api.create(pod(
        "user-ns",
        container(
            script="id -u; cat /proc/self/uid_map; exec sleep 100000",
            volumeMounts=[{"name": "dir", "mountPath": "/dir"}, {"name": "config", "mountPath": "/config"}],
        ),
        hostUsers=False,
        volumes=[{"name": "dir", "emptyDir": {}}, {"name": "config", "configMap": {"name": "for-user"}}],
    ))
    seen = c.api.running("user-ns")
    user, inside, outside, size = c.kubectl.output("logs", "user-ns").split()[:4]
    expect((user, inside, size) == ("0", "0", "65536") and int(outside) >= 65536, f"uid_map: {inside} {outside} {size}")
    expect_equal(c.kubectl.sh("user-ns", "echo x >/dir/file; stat -c %u /dir/file /config/a /bin/busybox"), "0\n0\n0\n", "owners inside")
    uid = seen["metadata"]["uid"]
    file = c.kubelet_root / f"pods/{uid}/volumes/kubernetes.io~empty-dir/dir/file"
    expect_equal(file.stat().st_uid, 0, "owner of the volume's file on the host, through an idmapped mount")
