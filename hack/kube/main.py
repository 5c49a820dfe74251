"""Entry point, run by hack/kube/test: starts the cluster, runs the checks, ends everything.

    main.py WORK NAME [CHECK...]
"""

import functools
import json
import os
import subprocess
import sys
import time

import check_figures
import check_life
import check_node
import check_resources
import check_streams
import check_volumes
import checks
import kube
from cluster import Cluster

assert all((check_figures, check_life, check_node, check_resources, check_streams, check_volumes))


def main():
    work, name, *names = sys.argv[1:]
    cluster = Cluster(work, name)
    # What the boot before this one has left: a whole machine is really rebooted.
    memory = cluster.work / "before-reboot.json"
    passed, failed = 0, []
    try:
        cluster.runtime()
        if not memory.exists():
            cluster.load_images()
        cluster.control_plane()
        cluster.kubelet()
        if memory.exists():
            passed, failed, before = json.loads(memory.read_text())
            results = rounds(cluster, after_reboot=before)
        else:
            print(f"test-kube: {cluster.versions()}", flush=True)
            results = rounds(cluster, names)
        passed, failed = passed + results[0], failed + results[1]
        if os.environ.get("REBOOT") and not memory.exists():
            memory.write_text(json.dumps([passed, failed, check_node.before_reboot(cluster)]))
            print("test-kube: the machine reboots", flush=True)
            os.sync()
            subprocess.run(["reboot", "-f"], check=True)
            time.sleep(600)
    finally:
        cluster.stop()
        if failed or not passed:
            for process in ("holdfast", "kubelet"):
                print(f"--- the end of {process}'s log\n{cluster.tail(process)}")
    print(f"test-kube: {passed} passed, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
    return 0 if passed and not failed else 1


def rounds(cluster, names=(), after_reboot=None):
    """How many checks passed, and the names of those that failed."""
    if after_reboot:
        passed = checks.one(cluster, functools.partial(check_node.after_reboot, before=after_reboot), name="real_reboot")
        return int(passed), [] if passed else ["real_reboot"]
    passed, failed = 0, []
    for label, gates, user_namespaces in passes(cluster):
        if label:
            print(f"test-kube: again with {label}", flush=True)
            cluster.restart_kubelet(gates)
        kube.POD_DEFAULTS["hostUsers"] = not user_namespaces
        results = checks.run(cluster, names, label and f"[{label}] ", with_alone=not label)
        left = checks.one(cluster, check_node.nothing_left, label and f"[{label}] ")
        passed += results[0] + left
        failed += results[1] + [f"{label} nothing_left"] * (not left)
    kube.POD_DEFAULTS["hostUsers"] = True
    return passed, failed


def passes(cluster):
    """What differs from one round of checks to the next: a name, feature gates of kubelet, whether pods have user namespaces."""
    yield "", {}, False
    if os.environ.get("ONCE"):
        return
    user_namespaces = cluster.user_namespaces()
    yield "EventedPLEG" + " and user namespaces" * user_namespaces, {"EventedPLEG": "true"}, user_namespaces


if __name__ == "__main__":
    sys.exit(main())
