"""The processes of a one-node cluster: etcd, kube-apiserver, holdfast, kubelet.

Owns: their configuration, starts, ends, and the node's "reboot". Runs in the namespaces that hack/kube/test has made.
"""

import calendar
import json
import os
import pathlib
import signal
import subprocess
import time
import uuid

import certs
import kube
from kube import IMAGE, NODE, Api, CheckFailed, Kubectl, expect, patience

NODE_IP = "10.99.0.1"
BRIDGE = "holdfast0"
V1_ROOT = pathlib.Path("/sys/fs/cgroup")


class Cluster:
    def __init__(self, work, name):
        self.work = pathlib.Path(work)
        # Names of cgroups, unlike any other run's.
        self.name = name
        self.socket = self.work / "run/holdfast.sock"
        self.processes = {}
        self.bin = pathlib.Path(os.environ["BIN"])
        self.gates = dict(pair.split("=") for pair in os.environ.get("GATES", "").split(",") if pair)
        self.certs = self.work / "certs"
        if not self.certs.exists():
            certs.make(self.certs, NODE_IP, NODE)
        at = lambda file: str(self.certs / file)
        self.api = Api("127.0.0.1", 6443, at("ca.crt"), at("admin.crt"), at("admin.key"))
        server = "https://127.0.0.1:6443"
        self.kubectl = Kubectl(os.environ["KUBECTL"], certs.kubeconfig(self.certs, "admin", server))
        certs.kubeconfig(self.certs, "node", server)
        self.driver = os.environ.get("CGROUP_DRIVER", "cgroupfs")
        # Whether the node has no namespaces of its own, as in a virtual machine.
        self.whole_machine = bool(os.environ.get("WHOLE_MACHINE"))

    # Processes.

    def start(self, name, *words):
        log = open(self.work / "logs" / f"{name}.log", "ab")
        self.processes[name] = subprocess.Popen(
            [str(w) for w in words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        log.close()

    def end(self, name, how=signal.SIGTERM, seconds=20):
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise CheckFailed(f"{name} lives {seconds} s after {how.name}") from None

    def until(self, ready, seconds, what, process):
        begin = time.monotonic()
        deadline = begin + patience(seconds)
        while not ready():
            code = self.processes[process].poll()
            expect(code is None, f"{process} ended with {code} before {what}:\n{self.tail(process)}")
            expect(time.monotonic() < deadline, f"not {what} after {seconds} s:\n{self.tail(process)}")
            time.sleep(0.05)
        if kube.SLOWNESS > 1:
            print(f"      {what} after {time.monotonic() - begin:.0f} s", flush=True)

    def tail(self, name, lines=25):
        log = self.work / "logs" / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(it has not run)"

    def control_plane(self):
        at = lambda file: str(self.certs / file)
        self.start(
            "etcd", os.environ["ETCD"], "--data-dir", self.work / "etcd", "--unsafe-no-fsync", "--log-level", "warn",
            "--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
            "--listen-peer-urls", "http://127.0.0.1:2380",
        )
        self.start(
            "kube-apiserver", os.environ["KUBE_APISERVER"], "--etcd-servers", "http://127.0.0.1:2379",
            "--bind-address", "127.0.0.1", "--advertise-address", NODE_IP, "--secure-port", "6443",
            "--endpoint-reconciler-type", "none", "--cert-dir", self.work / "apiserver",
            "--tls-cert-file", at("apiserver.crt"), "--tls-private-key-file", at("apiserver.key"), "--client-ca-file", at("ca.crt"),
            "--kubelet-certificate-authority", at("ca.crt"), "--kubelet-client-certificate", at("admin.crt"),
            "--kubelet-client-key", at("admin.key"), "--kubelet-preferred-address-types", "InternalIP",
            "--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", at("sa.pub"),
            "--service-account-signing-key-file", at("sa.key"), "--service-cluster-ip-range", "10.250.0.0/24",
            "--authorization-mode", "AlwaysAllow", "--allow-privileged", "--disable-admission-plugins", "ServiceAccount,TaintNodesByCondition",
            *(["--feature-gates", gate_list(self.gates)] if self.gates else []),
        )

        def up():
            try:
                return self.api.raw("GET", "/readyz")[0] == 200 and self.api.raw("GET", "/api/v1/namespaces/default")[0] == 200
            except OSError:
                return False

        self.until(up, 120, "the API server answers", "kube-apiserver")

    # The runtime.

    def runtime(self, seconds=30):
        config = self.work / "holdfast.toml"
        text = f'[network.bridge]\nname = "{BRIDGE}"\n[log]\nlevel = "{os.environ.get("LOG_LEVEL", "info")}"\n[pods]\n'
        if self.driver == "cgroupfs":
            text += f'cgroup = "/{self.name}-pods"\nmonitor_cgroup = "/{self.name}-monitors"\n'
        else:
            text += f'cgroup_driver = "{self.driver}"\n'
        config.write_text(text)
        self.start(
            "holdfast", self.bin / "holdfast", "serve", "--root", self.work / "root", "--state", self.work / "run/state",
            "--listen", self.socket, "--config", config,
        )
        self.until(lambda: self.holdfast("version", check=False).returncode == 0, seconds, "the runtime answers", "holdfast")

    def holdfast(self, *words, check=True):
        command = [str(self.bin / "holdfast"), "-r", f"unix://{self.socket}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60), check=False)
        expect(not check or done.returncode == 0, f"holdfast {' '.join(words)}: {done.stderr}")
        return done

    def load_images(self):
        here = pathlib.Path(__file__).parent
        for name in (IMAGE, "localhost/kube/data:1"):
            archive = self.work / "image.tar"
            subprocess.run([here.parent / "busybox-image", archive, name], check=True)
            self.holdfast("image", "load", str(archive))
            archive.unlink()

    # The kubelet.

    def kubelet(self, gates=None, settings=None, seconds=60):
        at = lambda file: str(self.certs / file)
        root = f"/{self.name}"
        if self.driver == "cgroupfs":
            make_cgroup(root)
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": self.driver,
            "failCgroupV1": False,
            "failSwapOn": False,
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}, "x509": {"clientCAFile": at("ca.crt")}},
            "authorization": {"mode": "AlwaysAllow"},
            "tlsCertFile": at("kubelet.crt"),
            "tlsPrivateKeyFile": at("kubelet.key"),
            "staticPodPath": str(self.work / "manifests"),
            "resolvConf": "",
            "clusterDNS": ["10.250.0.10"],
            "clusterDomain": "cluster.local",
            "makeIPTablesUtilChains": False,
            "maxPods": 250,
            "serializeImagePulls": False,
            "registryPullQPS": 0,
            "eventRecordQPS": 0,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            # Shorter than a node's, so that a check does not wait minutes.
            "syncFrequency": "5s",
            "fileCheckFrequency": "1s",
            "nodeStatusUpdateFrequency": "3s",
            "volumeStatsAggPeriod": "3s",
            "evictionPressureTransitionPeriod": "3s",
            "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
            "imageGCHighThresholdPercent": 100,
            "featureGates": {k: v == "true" for k, v in {**self.gates, **(gates or {})}.items()},
            **({"cgroupRoot": root} if self.driver == "cgroupfs" else {}),
            **(settings or {}),
        }
        file = self.work / "kubelet.json"
        file.write_text(json.dumps(config, indent=1))
        started = time.time()
        self.start(
            "kubelet", os.environ["KUBELET"], "--config", file, "--kubeconfig", self.certs / "node.kubeconfig",
            "--hostname-override", NODE, "--node-ip", NODE_IP, "--cert-dir", self.work / "kubelet-certs",
            "--v", os.environ.get("KUBELET_LOG", "2"),
        )

        def ready():
            status, data = self.api.raw("GET", f"/api/v1/nodes/{NODE}")
            if status != 200:
                return False
            for condition in json.loads(data)["status"].get("conditions", []):
                if condition["type"] == "Ready" and condition["status"] == "True":
                    return stamp(condition["lastHeartbeatTime"]) >= int(started)
            return False

        self.until(ready, seconds, "the node is ready", "kubelet")

    def restart_kubelet(self, gates=None, settings=None):
        self.end("kubelet")
        self.kubelet(gates, settings)

    # What checks ask of the node.

    @property
    def unified(self):
        return (V1_ROOT / "cgroup.controllers").exists()

    @property
    def kubelet_root(self):
        return pathlib.Path("/var/lib/kubelet")

    def host_directory(self, name):
        """A directory of the node for a check's hostPath volumes."""
        directory = self.work / "host" / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def user_namespaces(self):
        """Whether the runtime says that it can give pods user namespaces."""
        handlers = self.api.get(f"/api/v1/nodes/{NODE}")["status"].get("runtimeHandlers", [])
        return any(h["name"] == "" and h.get("features", {}).get("userNamespaces") for h in handlers)

    def versions(self):
        info = self.api.get(f"/api/v1/nodes/{NODE}")["status"]["nodeInfo"]
        return f"kubelet {info['kubeletVersion']}, {info['containerRuntimeVersion']}, kernel {info['kernelVersion']}, cgroup v{2 if self.unified else 1}"

    def left_behind(self):
        """What of pods there is; for when there should be none."""
        left = [f"pod {line}" for line in self.holdfast("pods", "-q").stdout.split()]
        left += [f"mount {m}" for m in mounts() if "/pods/" in m and m.startswith(("/var/lib/kubelet/", str(self.work / "root")))]
        links = subprocess.run(["ip", "-o", "link", "show", "master", BRIDGE], capture_output=True, text=True, check=False).stdout
        left += [f"link {line.split(':')[1].strip()}" for line in links.splitlines()]
        pods = "/kubepods.slice/" if self.driver == "systemd" else f"/{self.name}/kubepods/"
        is_a_pods = lambda base: base.startswith("pod") or "-pod" in base
        left += [f"cgroup {d}" for d in cgroups() if pods in d and is_a_pods(os.path.basename(d))]
        return left

    # A reboot.

    def reboot(self):
        """Ends every process of the node but the control plane's, and undoes what a power cycle undoes: mounts, cgroups,
        links and rules, everything on tmpfs. The kernel's boot id is another afterwards."""
        keep = {os.getpid(), 1} | {p.pid for n, p in self.processes.items() if n in ("etcd", "kube-apiserver")}
        for _ in range(200):
            left = [pid for pid in pids() if pid not in keep and group_leader(pid) not in keep]
            if not left:
                break
            for pid in left:
                kill(pid)
            for name in ("kubelet", "holdfast"):
                if name in self.processes and self.processes[name].poll() is not None:
                    del self.processes[name]
            time.sleep(0.05)
        else:
            raise CheckFailed(f"processes that SIGKILL does not end: {left}")
        for _ in range(3):
            for target in mounts():
                if target.startswith(f"{self.work}/r") or target.startswith("/var/lib/kubelet/"):
                    subprocess.run(["umount", "-l", target], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["mount", "-t", "tmpfs", "run", self.work / "run"], check=True)
        remove_cgroups(self.name)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        boot = self.work / f"boot-id-{uuid.uuid4()}"
        boot.write_text(f"{uuid.uuid4()}\n")
        subprocess.run(["mount", "--bind", boot, "/proc/sys/kernel/random/boot_id"], check=True)

    def stop(self):
        for name in ("kubelet", "holdfast", "kube-apiserver", "etcd"):
            try:
                self.end(name)
            except CheckFailed as error:
                print(f"      {error}")


def gate_list(gates):
    return ",".join(f"{name}={value}" for name, value in gates.items())


def stamp(text):
    """Seconds since 1970 of an API time, which has no fraction."""

    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def pids():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def group_leader(pid):
    """Session of a process: threads and children of etcd and the API server are in theirs. None once it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def mounts():
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        return [line.split()[4] for line in lines][::-1]


def hierarchies():
    """Every mounted hierarchy: the one of version 2, or each of version 1."""
    if (V1_ROOT / "cgroup.controllers").exists():
        return [V1_ROOT]
    return [entry for entry in V1_ROOT.iterdir() if entry.is_dir() and not entry.is_symlink()]


def cgroups():
    """Every cgroup's path, in every hierarchy. They come and go meanwhile, which os.walk passes over."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy):
            yield directory


def make_cgroup(path):
    for hierarchy in hierarchies():
        directory = hierarchy / path.lstrip("/")
        directory.mkdir(exist_ok=True)
        # A new cpuset of version 1 admits nothing until it has processors and memory.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (directory / file).exists() and not (directory / file).read_text().strip() and (hierarchy / file).exists():
                (directory / file).write_text((hierarchy / file).read_text())


def remove_cgroups(name):
    for _ in range(100):
        left = [d for h in hierarchies() for d in h.glob(f"{name}*")]
        if not left:
            return
        for top in left:
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    pass
        time.sleep(0.05)
    raise CheckFailed(f"cgroups that do not go: {left}")
