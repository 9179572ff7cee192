# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus beside the cluster: it scrapes what the chart's PodMonitors choose among all pods."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kinema_dashboards import live, monitors, programs
from kinema_dashboards.live import Prometheus
from kinema_demo.kubectl import Kubectl, Object

from tests.monitors import monitors as of_chart

EVERY = "2s"
RETRY = 0.5
"""Seconds before a broken watch is opened again."""
POOL = "cpu"
PRICE = {"deviceHour": 2.5, "currency": "EUR"}


@dataclass
class PodFile:
    """Writes down all pods of the cluster, again with each change."""

    kubectl: Kubectl
    path: Path
    _pods: dict[str, Object] = field(default_factory=dict)
    _written: list[Object] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _process: subprocess.Popen[str] | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> PodFile:
        self._write()
        self._thread = threading.Thread(target=self._watch, name="pods for Prometheus", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._process is not None:
            self._process.terminate()
        assert self._thread is not None
        self._thread.join(10)

    def _watch(self) -> None:
        command = ("get", "pods", "--all-namespaces", "-w", "-o", "json", "--output-watch-events")
        while not self._stop.is_set():
            self._pods.clear()
            with self.kubectl.popen(*command) as process:
                self._process = process
                for line in process.stdout or ():
                    if not line.endswith("\n"):
                        break  # kubectl was cut short
                    self._see(json.loads(line))
            self._stop.wait(RETRY)

    def _see(self, event: Object) -> None:
        pod = event["object"]
        if pod.get("kind") != "Pod":
            return
        if event["type"] == "DELETED":
            self._pods.pop(pod["metadata"]["uid"], None)
        else:
            self._pods[pod["metadata"]["uid"]] = pod
        self._write()

    def _write(self) -> None:
        described = monitors.described(self._pods.values())
        if described != self._written:
            monitors.write(self._pods.values(), self.path)
            self._written = described


@dataclass
class Scraping:
    """A Prometheus that scrapes the cluster, until `close`."""

    kubectl: Kubectl
    prometheus: Prometheus
    began: float
    """Unix time."""
    _stack: contextlib.ExitStack

    def price(self) -> None:
        """Give the pool a price until `close`. A job that has begun keeps the pool as it was."""
        self._patch(PRICE)
        self._stack.callback(self._patch, None)

    def _patch(self, prices: Object | None) -> None:
        self.kubectl.run("patch", "tpool", POOL, "--type=merge", "-p", json.dumps({"spec": {"prices": prices}}))

    def close(self) -> None:
        """End it; once more does nothing."""
        self._stack.close()


@contextlib.contextmanager
def scraped(kubectl: Kubectl, folder: Path) -> Iterator[Scraping]:
    """A Prometheus that scrapes what the chart's monitors choose."""
    pods = folder / "pods.json"
    configs = [item for monitor in of_chart() for item in monitors.scrape_configs(monitor, pods=pods, interval=EVERY)]
    with contextlib.ExitStack() as stack:
        began = time.time()
        stack.enter_context(PodFile(kubectl, pods))
        prometheus = stack.enter_context(live.running(programs.ensure(), folder, configs, interval=EVERY))
        yield Scraping(kubectl=kubectl, prometheus=prometheus, began=began, _stack=stack)
