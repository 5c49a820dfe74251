"""exec, attach, port-forward and cp, each over WebSocket and over SPDY as kubectl speaks them."""

import fcntl
import hashlib
import http.client
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

from checks import check
from kube import container, expect, expect_equal, patience, pod

TRANSPORTS = ((True, "WebSocket"), (False, "SPDY"))


@check
def exec_exit_codes_and_streams(c):
    c.api.create(pod("exec"))
    c.api.running("exec")
    for websocket, name in TRANSPORTS:
        for code in (0, 1, 7, 255):
            seen = c.kubectl.run("exec", "exec", "--", "sh", "-c", f"exit {code}", websocket=websocket)
            expect_equal(seen[0], code, f"exit code over {name} ({seen[2]})")
        code, _, _ = c.kubectl.run("exec", "exec", "--", "sh", "-c", "kill -9 $$", websocket=websocket)
        expect_equal(code, 137, f"exit code of a killed program over {name}")
        code, out, err = c.kubectl.run("exec", "exec", "--", "sh", "-c", "echo out; echo err >&2", websocket=websocket)
        expect_equal((code, out, err), (0, b"out\n", b"err\n"), f"streams over {name}")
        code, _, err = c.kubectl.run("exec", "exec", "--", "/no/such/program", websocket=websocket)
        expect(code not in (0, None) and b"/no/such/program" in err, f"a missing program over {name}: {code}, {err}")


@check
def exec_20_mb_through_stdin(c):
    c.api.create(pod("bulk"))
    c.api.running("bulk")
    data = os.urandom(20 << 20)
    wanted = hashlib.sha256(data).hexdigest()
    for websocket, name in TRANSPORTS:
        code, out, err = c.kubectl.run("exec", "-i", "bulk", "--", "sha256sum", stdin=data, websocket=websocket, timeout=patience(120))
        expect_equal((code, out[:64].decode()), (0, wanted), f"sha256 of 20 MB over {name} ({err})")
        code, out, err = c.kubectl.run("exec", "-i", "bulk", "--", "cat", stdin=data, websocket=websocket, timeout=patience(120))
        expect(code == 0 and out == data, f"20 MB there and back over {name}: exit code {code}, {len(out)} bytes, {err}")


@check
def exec_terminal(c):
    c.api.create(pod("tty"))
    c.api.running("tty")
    for websocket, name in TRANSPORTS:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        client = subprocess.Popen(
            c.kubectl.command("exec", "-it", "tty", "--", "sh"), stdin=slave, stdout=slave, stderr=slave,
            env=c.kubectl.environment(websocket), start_new_session=True,
        )
        os.close(slave)
        try:
            # kubectl sends the size when the connection stands, and the shell may be quicker.
            ask(master, b"until [ -n \"$(stty size)\" ]; do sleep 0.2; done; stty size; echo do''ne\n", rb"33 101.*done", f"the terminal's size over {name}")
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 120, 0, 0))
            client.send_signal(signal.SIGWINCH)
            changed = b"until [ \"$(stty size)\" = '44 120' ]; do sleep 0.2; done; echo do''ne\n"
            ask(master, changed, rb"\ndone", f"the changed size over {name}")
            ask(master, b"sleep 50; echo end''ed $?\n", None, "")
            time.sleep(0.5)
            ask(master, b"\x03", rb"\^C", f"the interrupt over {name}")
            os.write(master, b"exit 5\n")
            expect_equal(client.wait(patience(15)), 5, f"exit code over {name}")
        finally:
            client.kill()
            client.wait()
            os.close(master)


def ask(master, text, pattern, what):
    """Types `text` and reads until `pattern` has come."""
    os.write(master, text)
    seen, deadline = b"", time.monotonic() + patience(15)
    while pattern and not re.search(pattern, seen, re.S):
        ready, _, _ = select.select([master], [], [], max(0, deadline - time.monotonic()))
        expect(ready, f"{what}: only {seen!r}")
        try:
            seen += os.read(master, 65536)
        except OSError as error:
            expect(False, f"{what}: {error} after {seen!r}")


@check
def attach(c):
    script = "while read line; do echo got $line; echo err $line >&2; done; echo stdin ended"
    for websocket, name in TRANSPORTS:
        one = f"attach-{name.lower()}"
        c.api.create(pod(one, container(script=script, stdin=True, stdinOnce=True), restartPolicy="Never"))
        c.api.running(one)
        client = c.kubectl.start("attach", "-i", one, "-c", "main", websocket=websocket)
        time.sleep(1)
        client.stdin.write(b"first\nsecond\n")
        client.stdin.flush()
        time.sleep(1)
        out, err = client.communicate(timeout=patience(20))
        expect(b"got first\n" in out and b"got second\n" in out and b"stdin ended\n" in out, f"attach over {name}: {out!r} {err!r}")
        expect(b"err second\n" in err, f"stderr of attach over {name}: {err!r}")
        c.api.ended(one)
        expect("got second" in c.kubectl.output("logs", one), "what was attached is not in the log")


@check
def port_forward(c):
    script = "mkdir -p /www; dd if=/dev/zero of=/www/big bs=1M count=20 2>/dev/null; echo small >/www/small; exec httpd -f -p 8080 -h /www"
    c.api.create(pod("forward", container(script=script, readinessProbe={"tcpSocket": {"port": 8080}, "periodSeconds": 1})))
    c.api.running("forward")
    for websocket, name in TRANSPORTS:
        client = c.kubectl.start("port-forward", "forward", ":8080", websocket=websocket)
        try:
            ready, _, _ = select.select([client.stdout], [], [], patience(20))
            expect(ready, f"port-forward over {name} says nothing")
            line = client.stdout.readline().decode()
            port = int(re.search(r"127.0.0.1:(\d+) ->", line).group(1))
            for _ in range(5):
                expect_equal(fetch(port, "/small"), b"small\n", f"over {name}")
            expect_equal(len(fetch(port, "/big")), 20 << 20, f"bytes over {name}")
            expect_equal(fetch(port, "/small"), b"small\n", f"over {name} after 20 MB")
        finally:
            client.terminate()
            client.wait()


def fetch(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(30))
    connection.request("GET", path)
    return connection.getresponse().read()


@check
def copy(c):
    c.api.create(pod("copy"))
    c.api.running("copy")
    there, back = c.host_directory("copy") / "there", c.host_directory("copy") / "back"
    there.write_bytes(os.urandom(3 << 20))
    c.kubectl.output("cp", str(there), "copy:/tmp/there")
    c.kubectl.output("cp", "copy:/tmp/there", str(back))
    expect_equal(back.read_bytes() == there.read_bytes(), True, "what came back is what went")
