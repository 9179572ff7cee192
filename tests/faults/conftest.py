# SPDX-License-Identifier: Apache-2.0
"""One control plane with a pretended kubelet, operators behind proxies, and the table of what became of the jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kinema_cluster.control_plane import ControlPlane, control_plane

from tests.controlplane.installation import install, kubeconfig
from tests.controlplane.kubelet import Kubelet
from tests.controlplane.process import written
from tests.controlplane.team import Team, make_team
from tests.faults.process import Quick
from tests.faults.proxy import Proxy
from tests.faults.table import Table
from tests.waiting import until

TABLE = Table()


@dataclass
class Replica:
    """An operator, and the proxy between it and the API server."""

    operator: Quick
    proxy: Proxy

    def start(self) -> None:
        self.operator.start()

    def ready(self) -> None:
        until(f"{self.operator.identity} is not ready", self.operator.ready)

    def takes_over(self) -> None:
        until(f"{self.operator.identity} does not lead", lambda: self.leads)

    @property
    def leads(self) -> bool:
        return "kinema_leader 1.0" in self.operator.metrics()

    @property
    def pid(self) -> int:
        assert self.operator.process is not None
        return self.operator.process.pid


@dataclass
class Stand:
    """Everything that a test of faults stands on."""

    plane: ControlPlane
    kubelet: Kubelet
    folder: Path
    table: Table

    def team(self) -> Team:
        return make_team(self.plane, self.kubelet)

    @contextmanager
    def replicas(self, count: int = 1, **settings: Any) -> Iterator[list[Replica]]:
        """Operators that are not started yet; those that run at the end are killed."""
        with ExitStack() as stack:
            made = [self._replica(stack, number, settings) for number in range(count)]
            try:
                yield made
            finally:
                for replica in made:
                    if replica.operator.process is not None and replica.operator.process.poll() is None:
                        replica.operator.kill()

    def _replica(self, stack: ExitStack, number: int, settings: dict[str, Any]) -> Replica:
        proxy = stack.enter_context(Proxy(self.plane))
        folder = self.folder / f"operator-{proxy.port}"
        folder.mkdir()
        ports = written(folder, kubeconfig(self.plane, server=proxy.server), **settings)
        return Replica(Quick(folder, *ports, identity=f"kinema-operator-{number}"), proxy)


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with control_plane(name=f"faults-{os.getpid()}", nodes=0) as plane:
        install(plane)
        with Kubelet(plane) as kubelet:
            yield Stand(plane, kubelet, tmp_path_factory.mktemp("faults"), TABLE)
            assert kubelet.error is None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of what was run."""
    if TABLE.rows:
        terminalreporter.section("faults on the control plane, and what became of the jobs")
        terminalreporter.write_line(TABLE.text())
