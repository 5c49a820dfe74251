"""The register of checks and their runner.

A check is a function that takes the cluster and raises CheckFailed. Checks marked `alone` change the node (they kill the
runtime, reboot) and run one after the other, after all others, which run several at a time.
"""

import concurrent.futures
import time
import traceback

from kube import CheckFailed

AT_A_TIME = 5


class DoesNotApply(Exception):
    """The node has not what the check is about; the text says what. Counted and printed, never silent."""


REGISTER = []


def check(function=None, *, alone=False):
    def register(function):
        function.alone = alone
        REGISTER.append(function)
        return function

    return register(function) if function else register


def run(cluster, names, label="", with_alone=True):
    """Runs the checks whose names contain one of `names` (or all); how many passed, and the names of those that failed."""
    chosen = [f for f in REGISTER if not names or any(n in f.__name__ for n in names)]
    together, alone = [f for f in chosen if not f.alone], [f for f in chosen if f.alone and with_alone]
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(lambda f: one(cluster, f, label), together))
    results += [one(cluster, f, label) for f in alone]
    return results.count(True), [label + f.__name__ for f, passed in zip(together + alone, results) if passed is False]


def one(cluster, function, label="", name=None):
    """True or False, or None where the check does not apply."""
    name = label + (name or function.__name__)
    begin = time.monotonic()
    error = None
    try:
        function(cluster)
    except DoesNotApply as why:
        print(f"N/A   {name}: {why}", flush=True)
        return None
    except CheckFailed as failed:
        error = str(failed)
    except Exception:  # pylint: disable=broad-except
        error = traceback.format_exc()
    took = time.monotonic() - begin
    print(f"{'FAIL' if error else 'PASS'}  {name} ({took:.1f} s){': ' + error if error else ''}", flush=True)
    return error is None
