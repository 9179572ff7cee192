# SPDX-License-Identifier: Apache-2.0
"""A Prometheus: one of our own, as a process, or any that has an address; and what it answers to our queries."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from kinema_dashboards.alerts import ALERTS
from kinema_dashboards.boards import Board, Panel, Query
from kinema_dashboards.build import BOARDS
from kinema_dashboards.files import recordings
from kinema_dashboards.programs import Programs
from kinema_dashboards.queries import filled, made_of, names
from kinema_dashboards.rules import ACCELERATORS, RECORDINGS

START_SECONDS = 60.0
POINTS, MOST_POINTS = 300, 10_000
"""Of a result that is drawn, and of any: Prometheus gives no more than 11,000."""
Raw = dict[str, Any]
EXCUSES: Mapping[str, str] = MappingProxyType(
    {rule.name: "only nodes with accelerators and their exporters have it" for rule in ACCELERATORS}
)
"""Metrics without which a query may be empty, and why."""


class LiveError(Exception):
    """Prometheus did not start, or refuses a query."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is scraped, with the labels that its monitor would give it."""

    job: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict)
    honours: bool = False
    """Whether its own labels win."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time, in Unix seconds."""

    start: float
    end: float

    def step(self, points: int = POINTS) -> float:
        """Seconds between two of so many points, at least one."""
        return max(1.0, math.ceil((self.end - self.start) / points))


@dataclass(frozen=True, slots=True)
class Series:
    """A result: labels, and points of time and value."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """Asks one at an address."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise LiveError(f"{self.address} refuses {parameters}: {said}") from error
        except (OSError, ValueError) as error:
            raise LiveError(f"{self.address} does not answer: {error}") from error

    def now(self, expr: str, *, at: float | None = None) -> list[Series]:
        """The result at this moment, or at a Unix time."""
        data = self._get("query", query=expr, **({} if at is None else {"time": f"{at}"}))
        if data["resultType"] == "scalar":
            return [Series({}, (_point(data["result"]),))]
        return [Series(item["metric"], (_point(item["value"]),)) for item in data["result"]]

    def over(self, expr: str, span: Span, *, points: int = POINTS) -> list[Series]:
        """The result over a time."""
        step = f"{span.step(points)}"
        data = self._get("query_range", query=expr, start=f"{span.start}", end=f"{span.end}", step=step)
        return [Series(item["metric"], tuple(_point(pair) for pair in item["values"])) for item in data["result"]]

    def healthy(self) -> list[str]:
        """Targets that do not answer."""
        data = self._get("targets", state="active")
        return [f"{item['scrapeUrl']}: {item['lastError']}" for item in data["activeTargets"] if item["health"] != "up"]


def _point(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@contextlib.contextmanager
def running(programs: Programs, folder: Path, scrapes: Sequence[Raw], *, interval: str = "1s") -> Iterator[Prometheus]:
    """A Prometheus with these scrape configs that keeps our recording rules; it ends with the block."""
    config, rules = folder / "prometheus.yaml", folder / "rules.yaml"
    config.write_text(yaml.safe_dump(_config(scrapes, rules, interval)), encoding="utf-8")
    rules.write_text(yaml.safe_dump(_fast(interval)), encoding="utf-8")
    port, log = free_port(), folder / "prometheus.log"
    command = [
        str(programs.prometheus),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _await_ready(process, port, log)
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
            return
        time.sleep(0.1)
    raise LiveError(f"Prometheus did not start: {log.read_text(errors='replace')[-2000:]}")


def static(targets: Sequence[Target]) -> list[Raw]:
    """The scrape configs of ports of this machine."""
    jobs: dict[str, Raw] = {}
    for target in targets:
        job = jobs.setdefault(
            target.job, {"job_name": target.job, "honor_labels": target.honours, "static_configs": []}
        )
        job["static_configs"].append({"targets": [f"127.0.0.1:{target.port}"], "labels": dict(target.labels)})
    return list(jobs.values())


def _config(scrapes: Sequence[Raw], rules: Path, interval: str) -> Raw:
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)],
        "scrape_configs": list(scrapes),
    }


def _fast(interval: str) -> Raw:
    """The chart's recording rules, evaluated as often as it is scraped here."""
    document: Raw = yaml.safe_load(recordings())
    for group in document["groups"]:
        group["interval"] = interval
    return document


@dataclass(frozen=True, slots=True)
class Silent:
    """A query without data."""

    where: str
    expr: str
    excused: str = ""
    """Why it need not have any; empty when it must."""


def asked() -> Iterator[tuple[Board, Panel, Query]]:
    """Every query of every panel."""
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                yield board, panel, query


def silent(
    prometheus: Prometheus, values: Mapping[str, str], *, span: Span | None = None, excuses: Mapping[str, str] = EXCUSES
) -> list[Silent]:
    """Every query of a panel or of a rule that has no data; of an alert, every series that it is made of.

    Args:
        prometheus: who is asked.
        values: of the dashboards' variables.
        span: data at some time within it will do; data at this moment when left out.
        excuses: names of metrics, and why a query that asks for no others need not have data.
    """

    def speaks(expr: str) -> bool:
        return bool(prometheus.now(expr) if span is None else prometheus.over(expr, span, points=MOST_POINTS))

    wanted = [(f"{board.title}: {panel.title}", filled(query.expr, values)) for board, panel, query in asked()]
    wanted += [(f"rule {rule.name}", rule.name) for rule in RECORDINGS]
    wanted += [(f"alert {alert.name}", expr) for alert in ALERTS for expr in made_of(alert.expr)]
    return [Silent(where, expr, _excuse(expr, excuses)) for where, expr in wanted if not speaks(expr)]


def _excuse(expr: str, excuses: Mapping[str, str]) -> str:
    asked_for = names(expr)
    return "; ".join(dict.fromkeys(excuses[name] for name in sorted(asked_for))) if asked_for <= excuses.keys() else ""
