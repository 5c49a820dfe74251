"""Limits, resizing in place, out of memory, eviction, statistics and metrics."""

import json
import time

from checks import check
from cluster import cgroups
from kube import CheckFailed, container, describe, expect, expect_equal, is_ready, patience, pod, status_of


def limits(cpu, memory):
    both = {"cpu": cpu, "memory": memory}
    return {"requests": both, "limits": both}


def cgroup_value(container_id, v1, v2):
    """Content of the file `v1` or `v2` of the container's cgroup, whichever hierarchy has it."""
    short = container_id.split("//")[1]
    for directory in cgroups():
        if short in directory:
            for file in (v1, v2):
                try:
                    with open(f"{directory}/{file}", encoding="utf-8") as value:
                        return value.read().strip()
                except OSError:
                    pass
    raise CheckFailed(f"no cgroup of {short} has {v1} or {v2}")


def memory_limit(seen):
    return int(cgroup_value(status_of(seen)["containerID"], "memory.limit_in_bytes", "memory.max"))


def cpu_quota(seen):
    """Microseconds of each 100,000."""
    return int(cgroup_value(status_of(seen)["containerID"], "cpu.cfs_quota_us", "cpu.max").split()[0])


@check
def resize_in_place(c):
    c.api.create(pod("resized", container(resources=limits("100m", "64Mi"))))
    before = c.api.running("resized")
    expect_equal((cpu_quota(before), memory_limit(before)), (10000, 64 << 20), "limits at the start")
    expect_equal(status_of(before)["resources"]["limits"], {"cpu": "100m", "memory": "64Mi"}, "resources in the status")
    for cpu, memory, quota, size in (("300m", "128Mi", 30000, 128 << 20), ("200m", "96Mi", 20000, 96 << 20)):
        patch = {"spec": {"containers": [{"name": "main", "resources": limits(cpu, memory)}]}}
        kind = "application/strategic-merge-patch+json"
        c.api.call("PATCH", "/api/v1/namespaces/default/pods/resized/resize", patch, kind)
        resized = lambda p: status_of(p).get("resources", {}).get("limits") == {"cpu": cpu, "memory": memory}
        try:
            after = c.api.wait("resized", resized, 40, f"resized to {cpu} and {memory}")
        except CheckFailed as error:
            conditions = [k for k in c.api.pod("resized")["status"]["conditions"] if "Resize" in k["type"]]
            raise CheckFailed(f"{error}; {json.dumps(conditions)}") from None
        expect_equal((cpu_quota(after), memory_limit(after)), (quota, size), "limits in the cgroup")
    expect_equal(status_of(after)["restartCount"], 0, "restarts")
    expect_equal(status_of(after)["containerID"], status_of(before)["containerID"], "container")


@check
def out_of_memory(c):
    eat = "dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived; exit 9"
    c.api.create(pod("oom", container(script="exec dd if=/dev/zero of=/dev/null bs=200M count=1", resources=limits("500m", "32Mi")), restartPolicy="Never"))
    c.api.create(pod("oom-child", container(script=eat, resources=limits("500m", "32Mi")), restartPolicy="Never"))
    ended = status_of(c.api.ended("oom", "Failed"))["state"]["terminated"]
    expect_equal((ended["reason"], ended["exitCode"]), ("OOMKilled", 137), "how it ended")
    child = c.api.ended("oom-child", "Failed")
    reason = status_of(child)["state"]["terminated"]["reason"]
    # kubelet asks for memory.oom.group on version 2: there the whole container dies. On version 1 its init lives on.
    wanted = ("OOMKilled", 137) if c.unified else ("Error", 9)
    expect_equal((reason, status_of(child)["state"]["terminated"]["exitCode"]), wanted, "how a container ended whose child was killed")


@check
def eviction_by_volume_and_by_layer(c):
    fill = "dd if=/dev/zero of={} bs=1M count=20 2>/dev/null; exec sleep 100000"
    c.api.create(pod(
        "evict-volume",
        container(script=fill.format("/dir/big"), volumeMounts=[{"name": "dir", "mountPath": "/dir"}]),
        volumes=[{"name": "dir", "emptyDir": {"sizeLimit": "5Mi"}}],
    ))
    limit = {"ephemeral-storage": "5Mi"}
    c.api.create(pod("evict-layer", container(script=fill.format("/big"), resources={"limits": limit, "requests": limit})))
    for name, word in (("evict-volume", "dir"), ("evict-layer", "ephemeral")):
        seen = c.api.ended(name, "Failed", seconds=150)
        expect_equal(seen["status"].get("reason"), "Evicted", f"reason of {name}'s end ({describe(seen)})")
        expect(word in seen["status"].get("message", ""), f"message of the eviction: {seen['status'].get('message')}")


@check
def summary_and_metrics(c):
    c.api.create(pod("measured", container(script="while :; do :; done", resources=limits("100m", "64Mi"))))
    c.api.running("measured")
    for measure in (pod_summary, pod_resource_metrics):
        retry(lambda: measure(c, "measured"), 60)


def retry(function, seconds):
    deadline = time.monotonic() + patience(seconds)
    while True:
        try:
            return function()
        except CheckFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def node_proxy(c, path):
    status, data = c.api.raw("GET", f"/api/v1/nodes/node/proxy/{path}")
    expect_equal(status, 200, f"{path}: {data[:200]}")
    return data.decode()


def pod_summary(c, name):
    summary = json.loads(node_proxy(c, "stats/summary"))
    ours = [p for p in summary["pods"] if p["podRef"]["name"] == name]
    expect_equal(len(ours), 1, f"pods of that name in the summary, which has {len(summary['pods'])}")
    main = ours[0]["containers"][0]
    expect(main["cpu"].get("usageNanoCores", 0) > 20_000_000, f"processor use {main['cpu']}")
    expect(main["memory"].get("workingSetBytes", 0) > 0, f"memory {main['memory']}")
    expect("usedBytes" in main.get("rootfs", {}), f"writable layer {main.get('rootfs')}")
    return ours[0]


def pod_summary_with_network(c, name):
    """Without the gate kubelet's own cAdvisor reads interfaces, and it does so for containerd and CRI-O alone."""
    network = pod_summary(c, name).get("network") or {}
    expect(network.get("name") == "eth0" and network.get("rxBytes", 0) > 0, f"network {network}")


def pod_resource_metrics(c, name):
    for path, metric in (("metrics/resource", "container_cpu_usage_seconds_total"), ("metrics/resource", "pod_memory_working_set_bytes")):
        lines = [line for line in node_proxy(c, path).splitlines() if line.startswith(metric) and f'pod="{name}"' in line]
        expect(lines, f"{path} has no {metric} of pod {name}")


@check(alone=True)
def stats_from_the_runtime(c):
    """With PodAndContainerStatsFromCRI kubelet's cAdvisor metrics are the runtime's, and carry the pod's labels."""
    c.restart_kubelet({"PodAndContainerStatsFromCRI": "true"})
    try:
        c.api.create(pod("from-cri", container(script="while :; do :; done", resources=limits("100m", "64Mi"))))
        c.api.running("from-cri")
        wanted = (
            "container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_usage_bytes", "container_processes",
            "container_network_receive_bytes_total", "container_spec_memory_limit_bytes", "container_last_seen", "container_start_time_seconds",
        )

        def labelled():
            lines = node_proxy(c, "metrics/cadvisor").splitlines()
            for metric in wanted:
                ours = [line for line in lines if line.startswith(metric + "{") and 'pod="from-cri"' in line and 'namespace="default"' in line]
                expect(ours, f"no {metric} with the pod's labels among {sum(line.startswith(metric) for line in lines)} of that name")
                if "network" not in metric:
                    expect(any('container="main"' in line for line in ours), f"no {metric} of container main: {ours[:3]}")

        retry(labelled, 60)
        retry(lambda: pod_summary_with_network(c, "from-cri"), 60)
        retry(lambda: pod_resource_metrics(c, "from-cri"), 60)
    finally:
        c.api.delete("from-cri")
        c.restart_kubelet()


@check(alone=True)
def eviction_by_node_pressure(c):
    """A threshold that no disk keeps: the node says DiskPressure and evicts the best-effort pod."""
    c.api.create(pod("pressed", container(script="dd if=/dev/zero of=/big bs=1M count=30; exec sleep 100000")))
    c.api.running("pressed")
    hard = {"imagefs.available": "100000Gi", "nodefs.available": "1Mi"}
    c.restart_kubelet(settings={"evictionHard": hard, "evictionPressureTransitionPeriod": "2s"})
    try:
        seen = c.api.ended("pressed", "Failed", seconds=120)
        expect_equal(seen["status"].get("reason"), "Evicted", f"reason ({describe(seen)})")
    finally:
        c.restart_kubelet()
    # Eviction also collects images, all that no container uses.
    c.load_images()
    expect(not any(is_ready(p) and p["metadata"]["name"] == "pressed" for p in c.api.pods()), "the evicted pod runs")
