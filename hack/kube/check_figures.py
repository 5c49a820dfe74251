"""How long it takes from a pod's creation in the API to the API saying Running: one pod, and fifty at once."""

import statistics
import threading
import time

from checks import check
from kube import container, expect, patience, pod

PATIENCE = 180


def created_to_running(c, names):
    """Seconds from the first create to Running, by name, as a watch of the API sees it."""
    version = c.api.get("/api/v1/namespaces/default/pods")["metadata"]["resourceVersion"]
    seen, everything, stop = {}, threading.Event(), threading.Event()

    def note(moment, changed):
        name = changed.get("metadata", {}).get("name")
        if name in names and name not in seen and changed["status"].get("phase") == "Running":
            seen[name] = moment
            if len(seen) == len(names):
                everything.set()

    connection = c.api.watch_pods(version, note, stop)
    begin = time.monotonic()
    creators = [threading.Thread(target=lambda part: [c.api.create(pod(n, container())) for n in part], args=(names[i::4],)) for i in range(4)]
    for creator in creators:
        creator.start()
    for creator in creators:
        creator.join()
    created = time.monotonic() - begin
    complete = everything.wait(patience(PATIENCE))
    stop.set()
    connection.sock.shutdown(2)
    expect(complete, f"{len(seen)} of {len(names)} pods are Running after {PATIENCE} s")
    return created, sorted(moment - begin for moment in seen.values())


def remove(c, names):
    begin = time.monotonic()
    for name in names:
        c.api.delete(name)
    for name in names:
        c.api.gone(name, PATIENCE)
    return time.monotonic() - begin


@check(alone=True)
def one_pod(c):
    times = []
    for i in range(5):
        name = f"one-{i}"
        times += created_to_running(c, [name])[1]
        remove(c, [name])
    print(f"      one pod, created to Running: {statistics.median(times):.2f} s, median of {len(times)} ({', '.join(f'{t:.2f}' for t in times)})")


@check(alone=True)
def fifty_pods_at_once(c):
    for count in (20, 50):
        names = [f"many-{i}" for i in range(count)]
        created, times = created_to_running(c, names)
        gone = remove(c, names)
        print(f"      {count} pods at once: the last is Running after {times[-1]:.2f} s, half after {statistics.median(times):.2f} s"
              f" (the API had created them after {created:.2f} s); all are gone {gone:.2f} s after their deletion")
