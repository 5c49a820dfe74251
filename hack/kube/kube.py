"""What the checks need of Kubernetes: its API over HTTPS, kubectl, and pods as dictionaries.

Owns: requests, waiting, manifests. Leaves out: the processes (cluster.py) and what is checked (check_*.py).
"""

import http.client
import json
import os
import ssl
import subprocess
import threading
import time

IMAGE = "localhost/kube/busybox:1"
NODE = "node"

# How many times longer than on an ordinary machine things may take: an emulated one is slow.
SLOWNESS = float(os.environ.get("SLOWNESS", "1"))

# Fields of every pod's spec, unless its check says otherwise.
POD_DEFAULTS = {}


def patience(seconds):
    return seconds * SLOWNESS


class CheckFailed(Exception):
    """A check did not see what it should; the text says what it saw."""


def expect(condition, text):
    if not condition:
        raise CheckFailed(text)


def expect_equal(seen, wanted, what):
    expect(seen == wanted, f"{what}: {seen!r}, not {wanted!r}")


class Api:
    """The kube-apiserver's HTTPS endpoint, as an administrator."""

    def __init__(self, host, port, ca, certificate, key):
        self.host, self.port = host, port
        self.tls = ssl.create_default_context(cafile=ca)
        self.tls.load_cert_chain(certificate, key)

    def connect(self, timeout=30):
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=patience(timeout))

    def raw(self, method, path, body=None, kind="application/json", timeout=30):
        """Status code and bytes."""
        connection = self.connect(timeout)
        try:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"Content-Type": kind, "Accept": "application/json, */*"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def call(self, method, path, body=None, kind="application/json"):
        status, data = self.raw(method, path, body, kind)
        expect(status < 300, f"{method} {path}: {status} {data[:600].decode(errors='replace')}")
        return json.loads(data)

    def get(self, path):
        return self.call("GET", path)

    def replace(self, kind, name, body):
        """Creates, or creates again, what is no pod."""
        self.raw("DELETE", f"/api/v1/namespaces/default/{kind}/{name}")
        self.call("POST", f"/api/v1/namespaces/default/{kind}", {"metadata": {"name": name}, **body})

    # Pods, all in the namespace `default`.

    def create(self, pod):
        return self.call("POST", "/api/v1/namespaces/default/pods", pod)

    def pod(self, name):
        """The pod, or None."""
        status, data = self.raw("GET", f"/api/v1/namespaces/default/pods/{name}")
        if status == 404:
            return None
        expect(status == 200, f"get pod {name}: {status} {data[:300]}")
        return json.loads(data)

    def pods(self):
        return self.get("/api/v1/namespaces/default/pods")["items"]

    def delete(self, name, grace=1):
        status, data = self.raw("DELETE", f"/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds={grace}")
        expect(status < 300 or status == 404, f"delete pod {name}: {status} {data[:300]}")

    def wait(self, name, condition, seconds, what):
        """Polls the pod until `condition(pod)` is true; the pod is None once it is gone."""
        deadline = time.monotonic() + patience(seconds)
        while True:
            pod = self.pod(name)
            if condition(pod):
                return pod
            if time.monotonic() > deadline:
                raise CheckFailed(f"pod {name} is not {what} after {seconds} s: {describe(pod)}; {self.events(name)}")
            time.sleep(0.1)

    def running(self, name, seconds=60):
        """Waits until the pod is Running and every container of it is ready."""
        return self.wait(name, is_ready, seconds, "Running and ready")

    def ended(self, name, phase="Succeeded", seconds=60):
        pod = self.wait(name, lambda p: p and p["status"].get("phase") in ("Succeeded", "Failed"), seconds, "at its end")
        expect_equal(pod["status"]["phase"], phase, f"phase of pod {name} ({describe(pod)})")
        return pod

    def gone(self, name, seconds=60):
        self.wait(name, lambda p: p is None, seconds, "gone")

    def events(self, name):
        items = self.get(f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{name}")["items"]
        return "events: " + "; ".join(f"{e['reason']}: {e['message'][:300]}" for e in items[-6:])

    def watch_pods(self, version, seen, stop):
        """Calls `seen(moment, pod)` for every change after resource version `version`, in a thread of its own."""
        connection = self.connect(timeout=120)
        connection.request("GET", f"/api/v1/namespaces/default/pods?watch=1&resourceVersion={version}")
        response = connection.getresponse()

        def read():
            while not stop.is_set():
                try:
                    line = response.readline()
                except OSError:
                    if stop.is_set():
                        return
                    raise
                if not line:
                    return
                seen(time.monotonic(), json.loads(line)["object"])

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return connection


class Kubectl:
    """The kubectl under test, with a kubeconfig. `websocket` picks the transport of exec, attach and port-forward."""

    def __init__(self, program, config):
        self.program, self.config = program, config

    def command(self, *words):
        return [self.program, "--kubeconfig", self.config, *words]

    @staticmethod
    def environment(websocket):
        value = "true" if websocket else "false"
        return {**os.environ, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": value, "KUBECTL_PORT_FORWARD_WEBSOCKETS": value}

    def run(self, *words, stdin=b"", websocket=True, timeout=60):
        """(exit code, stdout, stderr)"""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, timeout=patience(timeout), env=self.environment(websocket), check=False
        )
        return done.returncode, done.stdout, done.stderr

    def start(self, *words, websocket=True):
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*words), stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment(websocket))

    def output(self, *words, **options):
        code, out, err = self.run(*words, **options)
        expect(code == 0, f"kubectl {' '.join(words)}: exit code {code}: {err.decode(errors='replace')[:500]}")
        return out.decode(errors="replace")

    def sh(self, pod, script, container=None, **options):
        """Output of a shell script in a container."""
        where = ["-c", container] if container else []
        return self.output("exec", pod, *where, "--", "sh", "-c", script, **options)


def container(name="main", script="exec sleep 100000", **fields):
    """`trap` makes it end at once on SIGTERM, which the init of a PID namespace ignores otherwise."""
    command = ["sh", "-c", script] if isinstance(script, str) else script
    return {"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command, **fields}


def pod(name, *containers, labels=None, annotations=None, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"check": name}, "annotations": annotations or {}},
        "spec": {
            "nodeName": NODE,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": list(containers) or [container()],
            **POD_DEFAULTS,
            **spec,
        },
    }


def is_ready(seen):
    status = (seen or {}).get("status", {})
    statuses = status.get("containerStatuses", [])
    return status.get("phase") == "Running" and bool(statuses) and all(s["ready"] for s in statuses)


def status_of(seen, name="main", kind="containerStatuses"):
    for status in seen["status"].get(kind, []):
        if status["name"] == name:
            return status
    raise CheckFailed(f"pod {seen['metadata']['name']} has no {kind} of {name}: {describe(seen)}")


def describe(seen):
    if seen is None:
        return "no such pod"
    status = seen["status"]
    parts = [f"phase {status.get('phase')}", status.get("reason", ""), status.get("message", "")]
    for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        parts += [f"{s['name']} ready={s['ready']} restarts={s['restartCount']} {json.dumps(s['state'])}" for s in status.get(kind, [])]
    return ", ".join(p for p in parts if p)
