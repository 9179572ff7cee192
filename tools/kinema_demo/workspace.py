# SPDX-License-Identifier: Apache-2.0
"""The workspace volume, filled and read through a pod that mounts it as the job's pods do."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kinema_api.locations import claim_of, mount_path
from kinema_demo.errors import DemoError
from kinema_demo.kubectl import Kubectl, Object

USER = 65532
_SLEEP = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"
_UNPACK = (
    "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(sys.argv[1], filter='data')"
)
_PACK = """
import pathlib, sys, tarfile
root = pathlib.Path(sys.argv[1])
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as tar:
    for pattern in sys.argv[2:]:
        for path in sorted(root.glob(pattern)):
            tar.add(path, arcname=str(path.relative_to(root)))
"""


@dataclass(frozen=True, slots=True)
class Shell:
    """A running pod with the claim mounted, where commands can be run."""

    kubectl: Kubectl
    pod: str

    def run(self, *command: str, timeout: float | None = 300) -> str:
        """What a command prints.

        Raises:
            DemoError: it failed.
        """
        return self.kubectl.run("exec", self.pod, "--", *command, timeout=timeout)

    def exists(self, path: str) -> bool:
        """Whether a path is there."""
        code = "import pathlib, sys; print(pathlib.Path(sys.argv[1]).exists())"
        return self.run("python", "-c", code, path).strip() == "True"

    def read(self, path: str) -> str:
        """The text of a file; empty when there is none."""
        code = "import pathlib, sys; path = pathlib.Path(sys.argv[1]); print(path.read_text() if path.exists() else '')"
        return self.run("python", "-c", code, path).strip()

    def write(self, path: str, text: str) -> None:
        """Write a small text file."""
        self.run("python", "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])", path, text)

    def put(self, folder: Path, path: str) -> None:
        """Make `path` hold the files of a local folder."""
        self.run("python", "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(0o777, True, True)", path)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for file in sorted(folder.rglob("*")):
                tar.add(file, arcname=str(file.relative_to(folder)), recursive=False)
        command = self.kubectl.command("exec", "-i", self.pod, "--", "python", "-c", _UNPACK, path)
        self._binary(command, packed.getvalue())

    def fetch(self, path: str, folder: Path, *patterns: str) -> list[Path]:
        """Copy what the patterns match below `path` into a local folder; the files."""
        command = self.kubectl.command("exec", self.pod, "--", "python", "-c", _PACK, path, *patterns)
        with tarfile.open(fileobj=io.BytesIO(self._binary(command, b""))) as tar:
            tar.extractall(folder, filter="data")
            return [folder / member.name for member in tar.getmembers() if member.isfile()]

    def _binary(self, command: list[str], data: bytes) -> bytes:
        done = subprocess.run(command, input=data, capture_output=True, env=self.kubectl.environment, timeout=600)
        if done.returncode:
            raise DemoError(f"{' '.join(command[:8])} ...: {done.stderr.decode(errors='replace').strip()[-1000:]}")
        return done.stdout


@contextlib.contextmanager
def shell(kubectl: Kubectl, *, name: str, claim: str, image: str, pull_policy: str = "IfNotPresent") -> Iterator[Shell]:
    """A pod with the claim; gone afterwards."""
    kubectl.run("delete", "pod", name, "--ignore-not-found", "--wait", "--grace-period=1")
    kubectl.apply(_pod(name, claim=claim, image=image, pull_policy=pull_policy))
    try:
        kubectl.run("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=600s", timeout=630)
        yield Shell(kubectl, name)
    finally:
        kubectl.attempt("delete", "pod", name, "--ignore-not-found", "--wait=false", "--grace-period=1")


def inside(uri: str) -> str:
    """The path of a `pvc://` address in pods.

    Raises:
        DemoError: it is another kind of address.
    """
    claim = claim_of(uri)
    if claim is None:
        raise DemoError(f"{uri}: the demo reads and fills volumes only, addresses that begin with pvc://")
    return f"{mount_path(claim.name)}/{claim.path}".rstrip("/")


def _pod(name: str, *, claim: str, image: str, pull_policy: str) -> Object:
    container = {
        "name": "shell",
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": ["python", "-c", _SLEEP],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "OMP_NUM_THREADS", "value": "2"}],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "claim", "mountPath": mount_path(claim)},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "claim", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
