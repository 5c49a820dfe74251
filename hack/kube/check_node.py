"""What happens to the node: the runtime is killed, kubelet restarts, the machine reboots, events replace polling."""

import json
import pathlib
import signal
import time

from checks import DoesNotApply, check
from kube import container, describe, expect, expect_equal, is_ready, patience, pod, status_of
from check_resources import node_proxy, retry


@check(alone=True)
def runtime_killed(c):
    """kill -9 of the runtime: pods run on, their logs have no gap, an exit in between is known afterwards."""
    ticks = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done"
    go = c.host_directory("leaver") / "go"
    go.unlink(missing_ok=True)
    c.api.create(pod("survivor", container(script=ticks)))
    c.api.create(pod("leaver", container(script="while [ ! -e /share/go ]; do sleep 0.1; done; exit 6",
                                         volumeMounts=[{"name": "share", "mountPath": "/share"}]),
                     volumes=[{"name": "share", "hostPath": {"path": str(c.host_directory("leaver"))}}], restartPolicy="Never"))
    before = c.api.running("survivor")
    c.api.running("leaver")
    c.end("holdfast", signal.SIGKILL)
    go.touch()
    time.sleep(3)
    c.runtime()
    seen = c.api.ended("leaver", "Failed", seconds=60)
    expect_equal(status_of(seen)["state"]["terminated"]["exitCode"], 6, "exit code of the one that ended meanwhile")
    c.until(lambda: is_ready(c.api.pod("survivor")), 30, "the survivor is ready", "kubelet")
    after = c.api.pod("survivor")
    expect_equal((status_of(after)["restartCount"], status_of(after)["containerID"], after["status"]["podIP"]),
                 (0, status_of(before)["containerID"], before["status"]["podIP"]), "restarts, container and address of the survivor")
    expect_equal(c.kubectl.sh("survivor", "echo alive"), "alive\n", "exec afterwards")
    numbers = [int(line.split()[1]) for line in c.kubectl.output("logs", "survivor").splitlines()]
    expect_equal(numbers, list(range(1, len(numbers) + 1)), "ticks of the log")
    c.api.delete("survivor")
    c.api.gone("survivor")


@check(alone=True)
def runtime_killed_while_pods_start(c):
    """kill -9 three times while twenty pods come and go: each of them runs in the end, once, and nothing is left of the rest."""
    names = [f"caught-{i}" for i in range(20)]
    for part in (names[:7], names[7:14], names[14:]):
        for name in part:
            c.api.create(pod(name))
        time.sleep(0.4)
        c.end("holdfast", signal.SIGKILL)
        c.runtime()
    for name in names:
        c.api.running(name, 120)
    for name in names[:10]:
        c.api.delete(name)
    time.sleep(0.5)
    c.end("holdfast", signal.SIGKILL)
    c.runtime()
    for name in names[10:]:
        c.api.delete(name)
    for name in names:
        c.api.gone(name, 90)


@check(alone=True)
def kubelet_restarted(c):
    c.api.create(pod("undisturbed"))
    before = c.api.running("undisturbed")
    c.restart_kubelet()
    time.sleep(5)
    after = c.api.running("undisturbed")
    expect_equal((status_of(after)["restartCount"], status_of(after)["containerID"]), (0, status_of(before)["containerID"]), "the container")
    c.api.delete("undisturbed")
    c.api.gone("undisturbed")


@check(alone=True)
def events_in_place_of_polling(c):
    """EventedPLEG: kubelet hears of an exit by the runtime's event, long before its next relist."""
    c.restart_kubelet({"EventedPLEG": "true"})
    try:
        metrics = lambda: sum(float(line.split()[-1]) for line in node_proxy(c, "metrics").splitlines()
                              if line.startswith("kubelet_evented_pleg_connection_success_count"))
        retry(lambda: expect(metrics() >= 1, "kubelet has not connected to the runtime's events"), 30)
        c.api.create(pod("evented", container(script="sleep 3; exit 5"), restartPolicy="Never"))
        seen = c.api.ended("evented", "Failed")
        expect_equal(status_of(seen)["state"]["terminated"]["exitCode"], 5, "exit code")
        c.api.create(pod("evented-crash", container(script="exit 3")))
        c.api.wait("evented-crash", lambda p: p["status"].get("containerStatuses") and status_of(p)["restartCount"] >= 2, 60, "restarted twice")
        c.api.create(pod("evented-end"))
        c.api.running("evented-end")
        for name in ("evented", "evented-crash", "evented-end"):
            c.api.delete(name)
        for name in ("evented", "evented-crash", "evented-end"):
            c.api.gone(name)
        # The stream breaks with the runtime; kubelet connects again or falls back to polling.
        c.end("holdfast", signal.SIGKILL)
        c.runtime()
        c.api.create(pod("evented-again", container(script="sleep 1"), restartPolicy="Never"))
        c.api.ended("evented-again", seconds=90)
    finally:
        c.restart_kubelet()


@check(alone=True)
def reboot(c):
    """Everything on the node ends at once; kubelet runs the pods again, with the same names and other containers."""
    if c.whole_machine:
        raise DoesNotApply("the node is a whole machine, which is rebooted after the checks")
    before = before_reboot(c)
    c.reboot()
    c.runtime()
    c.kubelet()
    after_reboot(c, before)


def before_reboot(c):
    """Starts pods that a reboot should find; their container ids and what else is to be compared, as JSON."""
    c.api.create(pod("rebooted", container(script="echo up; exec sleep 100000")))
    c.api.create(pod("finished", container(script="exit 0"), restartPolicy="Never"))
    (c.work / "manifests" / "fixed.json").write_text(json.dumps(pod("fixed")))
    seen = {name: c.api.running(name) for name in ("rebooted", "fixed-node")}
    c.api.ended("finished")
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    return {"boot": boot, "uid": seen["rebooted"]["metadata"]["uid"], "containers": {n: status_of(p)["containerID"] for n, p in seen.items()}}


def after_reboot(c, before):
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    expect(boot != before["boot"], "the boot id is the old one: there was no reboot")
    for name, old in before["containers"].items():
        again = lambda p, old=old: is_ready(p) and status_of(p)["containerID"] != old
        after = c.api.wait(name, again, 90, "running in another container")
        expect(name != "rebooted" or status_of(after)["restartCount"] >= 1, f"restarts after a reboot: {describe(after)}")
    expect_equal(c.api.pod("rebooted")["metadata"]["uid"], before["uid"], "uid")
    expect_equal(c.api.pod("finished")["status"]["phase"], "Succeeded", "phase of the pod that had ended")
    expect_equal(c.kubectl.sh("rebooted", "echo alive"), "alive\n", "exec afterwards")
    (c.work / "manifests" / "fixed.json").unlink()
    for name in ("rebooted", "finished"):
        c.api.delete(name)
    for name in ("rebooted", "finished", "fixed-node"):
        c.api.gone(name)


def nothing_left(c):
    """Once every pod is deleted the runtime has no pod, and the node no cgroup, mount or interface of one."""
    for seen in c.api.pods():
        c.api.delete(seen["metadata"]["name"], grace=0 if seen["metadata"].get("deletionTimestamp") else 1)
    for seen in c.api.pods():
        c.api.gone(seen["metadata"]["name"], 90)
    # The next pods have the same names: what happened to these is not about them. All at once are more than a slow API server
    # deletes within a request's time.
    while c.api.get("/api/v1/namespaces/default/events?limit=1")["items"]:
        c.api.call("DELETE", "/api/v1/namespaces/default/events?limit=50")
    # kubelet removes sandboxes of ended pods once a minute.
    deadline = time.monotonic() + patience(100)
    while left := c.left_behind():
        expect(time.monotonic() < deadline, f"left behind: {'; '.join(left)}")
        time.sleep(1)
