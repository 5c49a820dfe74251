"""The life of a pod: start, logs, init and sidecar containers, restarts, probes, hooks, termination, static pods."""

import json
import time

from checks import check
from kube import POD_DEFAULTS, CheckFailed, container, describe, expect, expect_equal, is_ready, patience, pod, status_of


@check
def pod_runs(c):
    c.api.create(pod("runs", container(script='echo "hello from $HOSTNAME"; echo to stderr >&2; exec sleep 100000')))
    seen = c.api.running("runs")
    expect(seen["status"]["podIP"].startswith("10.87."), f"podIP {seen['status'].get('podIP')}")
    expect_equal(seen["status"]["hostIP"], "10.99.0.1", "hostIP")
    main = status_of(seen)
    expect(main["containerID"].startswith("holdfast://"), f"containerID {main['containerID']}")
    expect(main["imageID"], "no imageID")
    expect("10.87." in c.kubectl.sh("runs", "ip -o -4 addr show eth0"), "eth0 has no address of the pod network")
    expect_equal(c.kubectl.sh("runs", "cat /proc/1/comm").strip(), "sleep", "process 1")
    mapped = c.kubectl.sh("runs", "cat /proc/self/uid_map").split()[1] != "0"
    expect_equal(mapped, POD_DEFAULTS.get("hostUsers") is False, "whether the pod has a user namespace")
    warnings = [e for e in c.api.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Druns")["items"]
                if e["type"] != "Normal" and e["reason"] not in ("MissingClusterDNS",)]
    expect(not warnings, f"warnings: {[(e['reason'], e['message']) for e in warnings]}")


@check
def logs(c):
    script = 'for i in $(seq 1000); do echo "line $i"; echo "error $i" >&2; done; sleep 2; echo late; exec sleep 100000'
    c.api.create(pod("logs", container(script=script)))
    c.api.running("logs")
    follower = c.kubectl.start("logs", "-f", "logs")
    time.sleep(patience(2.5))
    lines = c.kubectl.output("logs", "logs").splitlines()
    expect_equal(len(lines), 2001, "lines of the log")
    expect_equal([line for line in lines if line.startswith("line")], [f"line {i}" for i in range(1, 1001)], "lines of stdout")
    expect_equal(c.kubectl.output("logs", "logs", "--tail=1").strip(), "late", "the last line")
    stamped = c.kubectl.output("logs", "logs", "--tail=1", "--timestamps")
    expect(stamped[:3] == "202" and "T" in stamped[:20], f"no timestamp: {stamped}")
    follower.terminate()
    out, _ = follower.communicate(timeout=patience(10))
    expect(b"line 1000\n" in out and b"late\n" in out, f"followed: …{out[-100:]}")


@check
def init_and_sidecar_containers(c):
    share = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
    say = lambda name: f"echo {name} >>/share/order"
    c.api.create(pod(
        "sidecar",
        container("main", f"{say('main')}; sleep 1; cat /share/order", **share),
        initContainers=[
            container("first", say("first"), **share),
            container("side", f"trap '{say('side-end')}; exit 0' TERM; sleep 1; touch /share/up; {say('side')}; while :; do sleep 0.1; done",
                      restartPolicy="Always",
                      startupProbe={"exec": {"command": ["test", "-e", "/share/up"]}, "periodSeconds": 1}, **share),
            container("second", say("second"), **share),
        ],
        volumes=[{"name": "share", "emptyDir": {}}],
        restartPolicy="Never",
        terminationGracePeriodSeconds=10,
    ))
    seen = c.api.ended("sidecar", seconds=60)
    expect_equal(c.kubectl.output("logs", "sidecar", "-c", "main").split(), ["first", "side", "second", "main"], "order")
    side = status_of(seen, "side", "initContainerStatuses")
    expect_equal(side["state"].get("terminated", {}).get("exitCode"), 0, f"exit code of the sidecar ({describe(seen)})")


@check
def init_container_fails(c):
    c.api.create(pod("init-fails", initContainers=[container("bad", "echo no; exit 4")], restartPolicy="Never"))
    seen = c.api.ended("init-fails", "Failed")
    expect_equal(status_of(seen, "bad", "initContainerStatuses")["state"]["terminated"]["exitCode"], 4, "exit code")
    expect_equal(list(status_of(seen)["state"]), ["waiting"], "state of the container after it")


@check
def crash_loop(c):
    c.api.create(pod("crash", container(script="echo run at $(date +%s); exit 3")))
    backs_off = lambda p: p and status_of(p)["restartCount"] >= 2 and status_of(p)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
    c.api.wait("crash", lambda p: p["status"].get("containerStatuses") and backs_off(p), 60, "in CrashLoopBackOff")
    last = status_of(c.api.pod("crash"))["lastState"]["terminated"]
    expect_equal((last["exitCode"], last["reason"]), (3, "Error"), "last state")
    previous = c.kubectl.output("logs", "crash", "--previous")
    expect("run at" in previous, f"no previous log but {previous!r} of {last['containerID']}")


@check
def restart_on_failure_only(c):
    script = "test -e /share/ran && exit 0; touch /share/ran; exit 1"
    c.api.create(pod(
        "on-failure",
        container(script=script, volumeMounts=[{"name": "share", "mountPath": "/share"}]),
        volumes=[{"name": "share", "emptyDir": {}}],
        restartPolicy="OnFailure",
    ))
    expect_equal(status_of(c.api.ended("on-failure", seconds=90))["restartCount"], 1, "restarts")


@check
def termination_message(c):
    c.api.create(pod(
        "message",
        container("file", "echo -n from the file >/dev/termination-log; exit 1"),
        container("log", "echo from the log; exit 1", terminationMessagePolicy="FallbackToLogsOnError"),
        restartPolicy="Never",
    ))
    seen = c.api.ended("message", "Failed")
    expect_equal(status_of(seen, "file")["state"]["terminated"]["message"], "from the file", "message by file")
    expect_equal(status_of(seen, "log")["state"]["terminated"]["message"].strip(), "from the log", "message by log")


@check
def exec_probes(c):
    c.api.create(pod(
        "probe-exec",
        container(
            script="touch /tmp/live /tmp/ready; exec sleep 100000",
            readinessProbe={"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
            livenessProbe={"exec": {"command": ["test", "-e", "/tmp/live"]}, "periodSeconds": 1, "failureThreshold": 1},
        ),
    ))
    c.api.running("probe-exec")
    c.kubectl.sh("probe-exec", "rm /tmp/ready")
    c.api.wait("probe-exec", lambda p: not status_of(p)["ready"], 20, "unready")
    c.kubectl.sh("probe-exec", "touch /tmp/ready")
    c.api.running("probe-exec")
    c.kubectl.sh("probe-exec", "rm /tmp/live")
    c.api.wait("probe-exec", lambda p: status_of(p)["restartCount"] == 1 and is_ready(p), 40, "restarted by its liveness probe")


@check
def probe_times_out(c):
    c.api.create(pod(
        "probe-slow",
        container(readinessProbe={"exec": {"command": ["sleep", "60"]}, "periodSeconds": 2, "timeoutSeconds": 1}),
    ))
    c.api.wait("probe-slow", lambda p: p["status"].get("phase") == "Running", 30, "Running")
    deadline = time.monotonic() + patience(20)
    while "timed out" not in c.api.events("probe-slow"):
        expect(time.monotonic() < deadline, f"no time-out of the probe: {c.api.events('probe-slow')}")
        time.sleep(0.3)
    expect(not is_ready(c.api.pod("probe-slow")), "ready although its probe never succeeded")
    deadline = time.monotonic() + patience(10)
    while (count := int(c.kubectl.sh("probe-slow", "ps -o comm,args | grep -c '[s]leep 60'; true"))) > 1:
        expect(time.monotonic() < deadline, f"{count} processes of probes that timed out are left")
        time.sleep(0.3)


@check
def http_and_tcp_probes(c):
    serve = "mkdir -p /www; echo ok >/www/healthz; exec httpd -f -p 8080 -h /www"
    c.api.create(pod(
        "probe-http",
        container(
            script=serve,
            startupProbe={"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            readinessProbe={"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1},
            livenessProbe={"httpGet": {"path": "/live", "port": 8080}, "periodSeconds": 1, "failureThreshold": 3, "initialDelaySeconds": 4},
        ),
    ))
    c.api.running("probe-http")
    c.api.wait("probe-http", lambda p: status_of(p)["restartCount"] >= 1, 40, "restarted by its liveness probe")
    expect_equal(status_of(c.api.pod("probe-http"))["lastState"]["terminated"]["exitCode"] in (137, 143), True, "killed")


@check
def hooks_and_graceful_end(c):
    """preStop before SIGTERM, SIGTERM before SIGKILL, all within the grace period; the order is on the node's disk."""
    share = c.host_directory("hooks")
    (share / "order").unlink(missing_ok=True)
    say = lambda word: f"echo {word} >>/share/order"
    main = container(
        script=f"trap '{say('term')}; sleep 1; {say('ended')}; exit 0' TERM; {say('started')}; while :; do sleep 0.1; done",
        volumeMounts=[{"name": "share", "mountPath": "/share"}],
        lifecycle={
            "postStart": {"exec": {"command": ["sh", "-c", say("post-start")]}},
            "preStop": {"exec": {"command": ["sh", "-c", f"sleep 1; {say('pre-stop')}"]}},
        },
    )
    c.api.create(pod("hooks", main, volumes=[{"name": "share", "hostPath": {"path": str(share)}}], terminationGracePeriodSeconds=20))
    c.api.running("hooks")
    begin = time.monotonic()
    c.api.delete("hooks", grace=20)
    c.api.gone("hooks", 30)
    took = time.monotonic() - begin
    order = (share / "order").read_text().split()
    expect_equal(sorted(order[:2]), ["post-start", "started"], "the start")
    expect_equal(order[2:], ["pre-stop", "term", "ended"], "the end")
    # With EventedPLEG kubelet waits twice for its cache's clock, which ticks every five seconds.
    expect(2 <= took < patience(30), f"the end took {took:.1f} s")


@check
def sigkill_after_the_grace_period(c):
    c.api.create(pod("stubborn", container(script="trap '' TERM; while :; do sleep 0.1; done")))
    c.api.running("stubborn")
    begin = time.monotonic()
    c.api.delete("stubborn", grace=3)
    c.api.gone("stubborn", 30)
    took = time.monotonic() - begin
    expect(3 <= took < patience(30), f"gone after {took:.1f} s with a grace period of 3")


@check
def static_pod(c):
    manifest = c.work / "manifests" / "static.json"
    name = "static-node"
    write = lambda word: manifest.write_text(json.dumps(pod("static", container(script=f"echo {word}; exec sleep 100000"))))
    write("one")
    seen = c.api.running(name)
    expect("kubernetes.io/config.mirror" in seen["metadata"]["annotations"], "no mirror pod")
    expect_equal(c.kubectl.output("logs", name).strip(), "one", "log")
    write("two")
    deadline = time.monotonic() + patience(60)
    while True:
        try:
            if c.kubectl.output("logs", name).strip() == "two":
                break
        except CheckFailed:
            pass
        expect(time.monotonic() < deadline, f"the changed manifest is not run: {describe(c.api.pod(name))}")
        time.sleep(0.5)
    manifest.unlink()
    c.api.gone(name)


@check
def ephemeral_container(c):
    """`kubectl debug --target`: the target's processes, in the target's PID namespace."""
    c.api.create(pod("debugged", container(script="sleep 98765 & wait")))
    c.api.running("debugged")
    script = "ps -o pid,args; ls /proc/1/root/ >/dev/null && echo root-seen; sleep 100000"
    c.kubectl.output(
        "debug", "debugged", "--image", "localhost/kube/busybox:1", "--image-pull-policy", "IfNotPresent", "--target", "main",
        "--profile", "general", "--container", "debugger", "--", "sh", "-c", script,
    )
    deadline = time.monotonic() + patience(30)
    while "sleep 98765" not in (text := c.kubectl.run("logs", "debugged", "-c", "debugger")[1].decode()):
        expect(time.monotonic() < deadline, f"the debugger does not see the target's processes: {text!r}, {describe(c.api.pod('debugged'))}")
        time.sleep(0.3)
    # The log is there before kubelet has told the API server.
    told = lambda p: any("running" in s["state"] for s in p["status"].get("ephemeralContainerStatuses", []) if s["name"] == "debugger")
    c.api.wait("debugged", told, 20, "told to run its debugger")


@check
def missing_image_and_command(c):
    c.api.create(pod("no-image", {**container(), "image": "localhost:1/nobody/made:this"}))
    c.api.create(pod("no-command", container(script=["/no/such/program"])))
    waits = lambda p: status_of(p)["state"].get("waiting", {}) if p and p["status"].get("containerStatuses") else {}
    c.api.wait("no-image", lambda p: waits(p).get("reason") in ("ErrImagePull", "ImagePullBackOff"), 40, "in ErrImagePull")
    state = lambda p: json.dumps([status_of(p)["state"], status_of(p)["lastState"]]) if waits(p) else ""
    c.api.wait("no-command", lambda p: "/no/such/program" in state(p), 40, "told of the missing program")


@check
def shared_pid_namespace_and_host_network(c):
    c.api.create(pod("shared-pids", container("one", "sleep 87654 & wait"), container("two"), shareProcessNamespace=True))
    c.api.create(pod("host-net", container(), hostNetwork=True, hostUsers=True, dnsPolicy="Default"))
    c.api.running("shared-pids")
    expect("sleep 87654" in c.kubectl.sh("shared-pids", "ps -o args", container="two"), "the other container's process is not seen")
    seen = c.api.running("host-net")
    expect_equal(seen["status"]["podIP"], "10.99.0.1", "podIP on the host network")
    expect("node0" in c.kubectl.sh("host-net", "ip -o link"), "the host's links are not seen")


@check
def runtime_class(c):
    """A class of the built-in handler runs; one of a handler that nobody configured fails with its name."""
    for name, handler in (("built-in", "holdfast"), ("nowhere", "no-such-handler")):
        body = {"metadata": {"name": name}, "handler": handler}
        status, data = c.api.raw("POST", "/apis/node.k8s.io/v1/runtimeclasses", body)
        expect(status in (201, 409), f"RuntimeClass {name}: {status} {data[:200]}")
    c.api.create(pod("class-known", runtimeClassName="built-in"))
    c.api.create(pod("class-unknown", runtimeClassName="nowhere"))
    c.api.running("class-known")
    deadline = time.monotonic() + patience(30)
    while "no-such-handler" not in c.api.events("class-unknown"):
        expect(time.monotonic() < deadline, f"no event names the handler: {c.api.events('class-unknown')}")
        time.sleep(0.3)
