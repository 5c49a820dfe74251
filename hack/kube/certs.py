"""One certificate authority and what it signs: the API server, the kubelet as server and as client, the administrator."""

import json
import subprocess


def openssl(*words):
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(words)}: {done.stderr}")


def make(directory, node_ip, node):
    """Writes ca, apiserver, kubelet, node, admin (`.crt`, `.key`) and the service accounts' sa.key and sa.pub."""
    directory.mkdir()
    path = lambda name: str(directory / name)
    key = lambda name: openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path(name))
    key("ca.key")
    # Python 3.13 is strict: it wants the identifiers and the usage of RFC 5280.
    authority = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign", "subjectKeyIdentifier=hash")
    extensions = [word for extension in authority for word in ("-addext", extension)]
    openssl("req", "-x509", "-new", "-key", path("ca.key"), "-subj", "/CN=test-kube", "-days", "30", *extensions, "-out", path("ca.crt"))
    subjects = {
        "apiserver": ("/CN=kube-apiserver", f"IP:127.0.0.1,IP:10.250.0.1,IP:{node_ip},DNS:localhost,DNS:kubernetes.default.svc"),
        "kubelet": (f"/CN={node}", f"IP:{node_ip},DNS:{node}"),
        "node": (f"/O=system:nodes/CN=system:node:{node}", None),
        "admin": ("/O=system:masters/CN=admin", None),
    }
    for serial, (name, (subject, names)) in enumerate(subjects.items(), 1):
        key(f"{name}.key")
        openssl("req", "-new", "-key", path(f"{name}.key"), "-subj", subject, "-out", path(f"{name}.csr"))
        usage = "serverAuth" if names else "clientAuth"
        identifiers = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nkeyUsage=critical,digitalSignature\n"
        (directory / "extensions").write_text(
            f"{identifiers}extendedKeyUsage={usage}\n" + (f"subjectAltName={names}\n" if names else "")
        )
        openssl(
            "x509", "-req", "-in", path(f"{name}.csr"), "-CA", path("ca.crt"), "-CAkey", path("ca.key"), "-days", "30",
            "-set_serial", str(serial), "-extfile", path("extensions"), "-out", path(f"{name}.crt"),
        )
    key("sa.key")
    openssl("ec", "-in", path("sa.key"), "-pubout", "-out", path("sa.pub"))


def kubeconfig(directory, name, server):
    """A kubeconfig for the client certificate `name`; JSON is YAML."""
    path = lambda file: str(directory / file)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": path("ca.crt")}}],
        "users": [{"name": name, "user": {"client-certificate": path(f"{name}.crt"), "client-key": path(f"{name}.key")}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
    }
    file = directory / f"{name}.kubeconfig"
    file.write_text(json.dumps(config))
    return str(file)
