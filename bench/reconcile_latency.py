# SPDX-License-Identifier: Apache-2.0
"""Seconds from a job's creation to its first pod: 50 VideoTrainingJobs at once against 50 PyTorchJobs at once.

Both run on one control plane without nodes, in turns, each round in a namespace of its own; both operators run all the
time, and have made a few pods before. The pods of both are alike. All times are those at which a client's watch of the
API server saw the object, on one clock; the figure is the p99 of all rounds together: a bad round counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time

from bench.common import Goal, Side, report
from bench.plane import (
    DEADLINE,
    PYTORCH,
    RATE,
    VTJ,
    Client,
    Raw,
    each,
    gang,
    limited,
    operator,
    processor_seconds,
    until,
    vtj,
)
from kinema_api.names import LABEL_JOB_UID
from kinema_cluster.control_plane import ControlPlane

WARM = 5
"""Jobs of each side before the measured ones."""
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
GANG_LABEL = "training.kubeflow.org/job-name"
GOAL = Goal(at_most=1.0)


class Watch:
    """When each object of a collection was first seen, with its metadata."""

    def __init__(self, plane: ControlPlane, path: str) -> None:
        self.seen: list[tuple[float, Raw]] = []
        client = Client(plane)
        version = client.request("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]
        client.http.request("GET", f"{path}?watch=true&resourceVersion={version}", headers={"Accept": METADATA})
        self._answer = client.http.getresponse()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while line := self._answer.readline():
            now = time.monotonic()
            event = json.loads(line)
            if event["type"] == "ADDED":
                self.seen.append((now, event["object"]["metadata"]))


class Kind:
    """One side: how its jobs are made, and how their pods are known.

    Args:
        path: of the collection, with a place for the namespace.
        label: the pods' label that names their job.
        key: the job's metadata field that the label holds.
    """

    def __init__(self, name: str, *, path: str, label: str, key: str) -> None:
        self.name = name
        self._path = path
        self._label = label
        self._key = key
        self.rounds: list[list[float]] = []
        self.processors: list[dict[str, float]] = []

    def manifest(self, number: int) -> Raw:
        """A job; a PyTorchJob has one master, as a job's first stage has one pod."""
        return vtj(f"wan-{number}") if self._path == VTJ else gang(f"gang-{number}")

    def measure(self, plane: ControlPlane, *, operator: int, count: int, namespace: str) -> None:
        """Create all at once, take the seconds to the first pod of each, leave nothing behind."""
        plane.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        target, pods_path = self._path.format(f"namespaces/{namespace}/"), f"/api/v1/namespaces/{namespace}/pods"
        jobs, pods = Watch(plane, target), Watch(plane, pods_path)
        manifests = [(target, self.manifest(number)) for number in range(count)]
        used = processor_seconds(plane, operator=operator)
        each(plane, "POST", manifests, clients=count)
        found: list[float] = []

        def complete() -> bool:
            nonlocal found
            first: dict[str, float] = {}
            for at, metadata in list(pods.seen):
                first.setdefault((metadata.get("labels") or {}).get(self._label, ""), at)
            created = {metadata[self._key]: at for at, metadata in list(jobs.seen)}
            found = sorted(first[name] - at for name, at in created.items() if name in first)
            return len(found) == count

        until(f"{count} {self.name}s have pods", complete, poll=0.05)
        self.rounds.append(found)
        after = processor_seconds(plane, operator=operator)
        self.processors.append({name: round(seconds - used[name], 2) for name, seconds in after.items()})
        client = Client(plane)
        client.request("DELETE", target)
        rest = (target, pods_path, f"/apis/batch/v1/namespaces/{namespace}/jobs")
        until("the jobs are gone", lambda: not any(client.request("GET", path)["items"] for path in rest))

    def forget(self) -> None:
        """Drop the rounds so far."""
        self.rounds.clear()
        self.processors.clear()

    def side(self) -> Side:
        """All rounds together."""
        raw = {
            "p99Seconds": [round(p99(times), 4) for times in self.rounds],
            "processorSeconds": self.processors,
            "medianProcessorSeconds": statistics.median(sum(used.values()) for used in self.processors),
            "seconds": [[round(value, 4) for value in times] for times in self.rounds],
        }
        figure = p99(sorted(value for times in self.rounds for value in times))
        return Side(f"{self.name} to its first pod, p99", figure, "s", raw)


def p99(times: list[float]) -> float:
    """Of a sorted list, by the nearest rank."""
    return times[max(0, -(-99 * len(times) // 100) - 1)]


def main() -> int:
    """Measure both and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50, help="how many at once (50)")
    parser.add_argument("--rounds", type=int, default=5, help="of each side, in turns (5)")
    options = parser.parse_args()
    ours = Kind("VideoTrainingJob", path=VTJ, label=LABEL_JOB_UID, key="uid")
    theirs = Kind("PyTorchJob", path=PYTORCH, label=GANG_LABEL, key="name")
    with limited() as plane, operator(plane) as pid:
        for number in range(options.rounds + 1):
            count = options.jobs if number else WARM
            for kind in (ours, theirs) if number % 2 else (theirs, ours):
                kind.measure(plane, operator=pid, count=count, namespace=f"{kind.name.lower()}-{number}")
                if not number:
                    kind.forget()
    holds = report(
        "reconcile_latency",
        ours=ours.side(),
        reference=theirs.side(),
        goal=GOAL,
        settings={
            "jobs": options.jobs,
            "rounds": options.rounds,
            "trainingOperatorAndControllerManager": list(RATE),
            "deadlineSeconds": DEADLINE,
        },
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
