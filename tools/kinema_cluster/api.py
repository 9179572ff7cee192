# SPDX-License-Identifier: Apache-2.0
"""A small client of the API server: enough to wait for things without starting kubectl again and again."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kinema_cluster.build import KUBERNETES
from kinema_cluster.errors import ClusterError
from kinema_cluster.processes import environment

FIELD_MANAGER = "kinema-cluster"


class Api:
    """One API server, as its administrator."""

    def __init__(self, *, host: str, port: int, pki: Path, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def request(self, method: str, path: str, body: object = None, *, content_type: str = "application/json") -> Any:
        """The answer's JSON, or its text; None for 404. OSError when nobody answers."""
        connection = http.client.HTTPSConnection(self._host, self._port, context=self._tls, timeout=10)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status == 404:
            return None
        if answer.status >= 400:
            raise OSError(f"{method} {path}: {answer.status} {text[:500]}")
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return json.loads(text) if is_json else text

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def ready(self) -> bool:
        try:
            return bool(self.get("/readyz") == "ok")
        except OSError:
            return False

    def apply(self, objects: Iterable[object]) -> None:
        """Apply objects on the server's side."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", *APPLY, "-f", "-", text=json.dumps(listed))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl on this cluster and return what it prints."""
        command = [str(KUBERNETES.binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        env = environment(os.environ)
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=env)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


APPLY = ["--server-side", "--force-conflicts", f"--field-manager={FIELD_MANAGER}"]


def condition(resource: Any, kind: str) -> bool:
    """Whether an object's condition of that type is True."""
    found = ((resource or {}).get("status") or {}).get("conditions") or []
    return any(entry["type"] == kind and entry["status"] == "True" for entry in found)


def wait_for(what: str, test: Callable[[], bool], *, seconds: float, hint: Callable[[], str] = lambda: "") -> None:
    """Wait until `test` holds; ClusterError with the hint when it does not in time."""
    deadline = time.monotonic() + seconds
    pause = 0.05
    while not test():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} not within {seconds:.0f} s. {hint()}".strip())
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)
