# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of one cluster, remembers them, and waits for what they should bring about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kinema_cluster import components, processes
from kinema_cluster.api import Api, wait_for
from kinema_cluster.certificates import issue, make_authority, make_signing_key, write_kubeconfig
from kinema_cluster.components import Plane
from kinema_cluster.errors import ClusterError
from kinema_cluster.record import Record, write_atomically

PLANE_IDENTITIES = ("kube-controller-manager", "kube-scheduler")
LAST_LINES = 8


class Supervisor:
    """The processes of one cluster. Every start is on record before anything else happens."""

    def __init__(self, *, plane: Plane, record: Record) -> None:
        self.plane = plane
        self.record = record
        self.layout = plane.layout

    def api(self) -> Api:
        return Api(
            host=self.plane.host, port=self.plane.ports.api, pki=self.layout.pki, kubeconfig=self.layout.kubeconfig
        )

    def ensure(self, name: str, argv: Sequence[str]) -> bool:
        """Have `argv` running under `name`; returns whether it had to be started."""
        running = self.record.living().get(name)
        if running and running.argv == tuple(argv):
            return False
        if running:
            processes.stop([running], grace=10)
        self.record.processes[name] = processes.start(name, argv, log=self.layout.log(name))
        self.record.save()
        return True

    def wait(self, what: str, test: Callable[[], bool], *, seconds: float, needs: Sequence[str]) -> None:
        """Wait for a condition; fail as soon as one of the components that it needs is dead."""

        def checked() -> bool:
            living = self.record.living()
            for name in needs:
                if name not in living:
                    raise ClusterError(f"{name} ended by itself. {self.last_lines(name)}")
            return test()

        wait_for(what, checked, seconds=seconds, hint=lambda: self.last_lines(needs[-1]))

    def last_lines(self, name: str) -> str:
        log = self.layout.log(name)
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.exists() else []
        return f"The end of {log}:\n" + "\n".join(lines)

    def make_credentials(self) -> None:
        """Certificates and kubeconfigs of the control plane, those that are not there yet."""
        pki = self.layout.pki
        make_authority(pki)
        make_signing_key(pki, "service-accounts")
        for identity in components.identities(self.plane.host):
            issue(pki, identity)
        self.write_kubeconfig(self.layout.kubeconfig, "admin")
        for name in PLANE_IDENTITIES:
            self.write_kubeconfig(self.layout.config / f"{name}.kubeconfig", name)

    def write_kubeconfig(self, path: Path, identity: str) -> None:
        if not path.exists():
            write_kubeconfig(path, server=self.plane.server, pki=self.layout.pki, identity=identity)

    def write_config(self, name: str, value: str | dict[str, Any]) -> None:
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        write_atomically(self.layout.config / name, text)

    def start_api_server(self) -> None:
        self.ensure("etcd", components.etcd(self.plane))
        self.ensure("kube-apiserver", components.api_server(self.plane))

    def wait_for_api_server(self) -> None:
        api = self.api()
        self.wait("the API server was not ready", api.ready, seconds=120, needs=["etcd", "kube-apiserver"])

    def start_controllers(self) -> None:
        self.ensure("kube-controller-manager", components.controller_manager(self.plane))
        self.ensure("kube-scheduler", components.scheduler(self.plane))

    def stop(self, names: Sequence[str] | None = None, *, grace: float = 5) -> None:
        """Stop these components, or all, in the reverse order of their start."""
        living = self.record.living()
        chosen = [process for name, process in living.items() if names is None or name in names]
        processes.stop(reversed(chosen), grace=grace)
