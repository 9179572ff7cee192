# SPDX-License-Identifier: Apache-2.0
"""One certificate authority a cluster, made with the openssl command."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinema_cluster.errors import ClusterError
from kinema_cluster.record import write_atomically

DAYS = 3650
AUTHORITY = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate speaks for."""

    name: str
    """Of the files NAME.crt and NAME.key."""
    common_name: str
    organizations: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """DNS names and IP addresses; a certificate with hosts also serves."""

    def subject(self) -> str:
        return "".join(f"/O={name}" for name in self.organizations) + f"/CN={self.common_name}"

    def extensions(self) -> list[str]:
        usage = "clientAuth,serverAuth" if self.hosts else "clientAuth"
        found = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            f"extendedKeyUsage={usage}",
        ]
        if self.hosts:
            found.append("subjectAltName=" + ",".join(map(alternative_name, self.hosts)))
        return found


def alternative_name(host: str) -> str:
    is_address = ":" in host or host.replace(".", "").isdigit()
    return f"{'IP' if is_address else 'DNS'}:{host}"


def make_authority(folder: Path, name: str = "ca") -> None:
    """NAME.crt and NAME.key, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / f"{name}.crt").exists():
        _request(folder, name, "/CN=kinema-local-ca", AUTHORITY, signed_by=None)


def make_traditional_authority(folder: Path, name: str, *, host: str) -> None:
    """An authority for programs that read RSA keys in PKCS #1 only, and look for `host` in its own certificate."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / f"{name}.crt").exists():
        return
    key = folder / f"{name}.key"
    _openssl(["genrsa", "-traditional", "-out", str(key), "2048"])
    extensions = [*AUTHORITY, f"subjectAltName={alternative_name(host)}"]
    _request(folder, name, f"/CN={host}", extensions, signed_by=None, own_key=key)


def issue(folder: Path, identity: Identity, *, authority: str = "ca") -> None:
    """NAME.crt and NAME.key signed by the folder's authority, unless they are there."""
    if not (folder / f"{identity.name}.crt").exists():
        _request(folder, identity.name, identity.subject(), identity.extensions(), signed_by=authority)


def make_signing_key(folder: Path, name: str) -> None:
    """NAME.key and NAME.pub for service account tokens, unless they are there."""
    key, public = folder / f"{name}.key", folder / f"{name}.pub"
    if not public.exists():
        _openssl(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)])
        _openssl(["pkey", "-in", str(key), "-pubout", "-out", str(public)])


def write_kubeconfig(path: Path, *, server: str, pki: Path, identity: str) -> None:
    """A kubeconfig that holds all it needs, readable by its owner only."""
    write_atomically(path, json.dumps(kubeconfig(server=server, pki=pki, identity=identity), indent=1))


def kubeconfig(*, server: str, pki: Path, identity: str) -> dict[str, object]:
    cluster = {"server": server, "certificate-authority-data": encoded(pki / "ca.crt")}
    user = {
        "client-certificate-data": encoded(pki / f"{identity}.crt"),
        "client-key-data": encoded(pki / f"{identity}.key"),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kinema", "cluster": cluster}],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": "kinema", "context": {"cluster": "kinema", "user": identity}}],
        "current-context": "kinema",
    }


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _request(
    folder: Path,
    name: str,
    subject: str,
    extensions: Sequence[str],
    *,
    signed_by: str | None,
    own_key: Path | None = None,
) -> None:
    certificate = folder / f"{name}.crt"
    command = ["req", "-x509", "-days", str(DAYS), "-subj", subject]
    command += ["-key", str(own_key)] if own_key else [*KEY, "-keyout", str(folder / f"{name}.key")]
    if signed_by:
        command += ["-CA", str(folder / f"{signed_by}.crt"), "-CAkey", str(folder / f"{signed_by}.key")]
    for extension in extensions:
        command += ["-addext", extension]
    unfinished = folder / f".{name}.crt"
    # An empty configuration: the machine's own openssl.cnf must not add extensions.
    _openssl([*command, "-config", "/dev/stdin", "-out", str(unfinished)], "[req]\ndistinguished_name=dn\n[dn]\n")
    unfinished.rename(certificate)


def _openssl(arguments: list[str], text: str = "") -> None:
    done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, umask=0o077)
    if done.returncode:
        raise ClusterError(f"openssl {' '.join(arguments[:1])} failed: {done.stderr.strip()}")
