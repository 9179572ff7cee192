# SPDX-License-Identifier: Apache-2.0
"""Memory of the operator with 1,000 idle jobs, against training-operator with 1,000 idle PyTorchJobs.

Idle is suspended: nothing has a pod, which favours training-operator, whose cache keeps pods too. Both processes run
on one control plane from the start; the jobs of both are made while they look on, and some time after the last change
both are read at the same moments, with default settings on our side. The figure is the resident memory (RSS) of the
process; raw figures also give what is its own (Anonymous, Private) and what it was before the first job.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

from bench.common import Goal, Side, report
from bench.plane import PYTORCH, RATE, VTJ, Client, Raw, each, gang, limited, operator, training_operator, until, vtj
from kinema_cluster.control_plane import ControlPlane

NAMESPACE = "idle"
GOAL = Goal(at_most=1.0)
FIELDS = ("Rss", "Pss", "Anonymous", "Private_Clean", "Private_Dirty")
PAGE = 250
PATIENCE = 600.0
"""Seconds until all jobs are idle."""


def memory(pid: int) -> dict[str, float]:
    """MiB of a process, by what the kernel calls it."""
    found: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[name] = round(int(value.split()[0]) / 1024, 1)
    return found


def idle(job: Raw) -> bool:
    """Whether a job is known to be suspended."""
    status: Raw = job.get("status") or {}
    told = any(item["type"] == "Suspended" and item["status"] == "True" for item in status.get("conditions") or ())
    return told


def settled(client: Client, path: str, *, count: int) -> bool:
    """Whether so many jobs of a collection are idle."""
    found, token = 0, ""
    while True:
        page = client.request("GET", f"{path}?limit={PAGE}&continue={token}")
        found += sum(idle(job) for job in page["items"])
        token = page["metadata"].get("continue") or ""
        if not token:
            return found == count


def measure(
    plane: ControlPlane, *, count: int, wait: float, samples: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The memory of both sides, before the jobs and after."""
    plane.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    paths = {name: path.format(f"namespaces/{NAMESPACE}/") for name, path in {"ours": VTJ, "theirs": PYTORCH}.items()}
    with operator(plane) as ours:
        processes = {"ours": ours, "theirs": training_operator(plane)}
        found = {name: {"empty": [memory(pid)], "idle": list[dict[str, float]]()} for name, pid in processes.items()}
        for number in range(0, count, PAGE):
            numbers = range(number, min(count, number + PAGE))
            each(plane, "POST", [(paths["ours"], vtj(f"wan-{n}", suspend=True)) for n in numbers])
            each(plane, "POST", [(paths["theirs"], gang(f"gang-{n}", workers=1, suspend=True)) for n in numbers])
        client = Client(plane)

        def done(path: str) -> bool:
            memory(ours)  # Ends the wait when the operator has ended.
            return settled(client, path, count=count)

        for path in paths.values():
            until(f"{count} jobs of {path} are suspended", functools.partial(done, path), seconds=PATIENCE, poll=4)
        for _ in range(samples):
            time.sleep(wait / samples)
            for name, pid in processes.items():
                found[name]["idle"].append(memory(pid))
    return found


def side(what: str, raw: dict[str, list[dict[str, float]]]) -> Side:
    """A side's resident memory once it has come to rest: the median of the last samples."""
    last = raw["idle"][-3:]
    return Side(what=what, value=statistics.median(item["Rss"] for item in last), unit="MiB", raw=raw)


def main() -> int:
    """Measure both and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1000, help="of each side (1000)")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds from the last change to the last sample (60)")
    parser.add_argument("--samples", type=int, default=6, help="over these seconds (6)")
    options = parser.parse_args()
    with limited() as plane:
        found = measure(plane, count=options.jobs, wait=options.wait, samples=options.samples)
    holds = report(
        "operator_memory",
        ours=side("the operator, resident", found["ours"]),
        reference=side("training-operator, resident", found["theirs"]),
        goal=GOAL,
        settings={
            "jobs": options.jobs,
            "state": "suspended",
            "waitSeconds": options.wait,
            "trainingOperator": list(RATE),
        },
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
