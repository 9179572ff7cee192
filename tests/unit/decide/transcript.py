# SPDX-License-Identifier: Apache-2.0
"""A story that is written down: every effect of every decision, one a line, to be compared and to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from kinema_api.exits import Termination
from kinema_api.names import Stage
from kinema_operator.observed import Decision, PodEnd, Raw

from tests.unit.decide.story import START, Story, born, job, pod

LEFT_OUT = ("resolved.model", "resolved.pools", "resolved.images", "resolved.stages", "progress")
"""Parts of the status that the plan's tests compare, or that the server writes."""
NAMED_BY = {"conditions": "type", "stages": "name", "attempts": "number"}
EMPTY: tuple[object, ...] = ("", {}, [])


def flat(value: Raw, path: str = "") -> Iterator[tuple[str, str]]:
    """The parts of a status with their paths: one a condition, a stage and an attempt, else one a leaf."""
    for name, part in value.items():
        where = f"{path}{name}"
        if where in LEFT_OUT:
            continue
        if name in NAMED_BY:
            for each in part:
                row = f"{where}.{each[NAMED_BY[name]]}"
                yield row, json.dumps({k: v for k, v in each.items() if v not in EMPTY and k not in NAMED_BY})
                yield from flat({k: v for k, v in each.items() if k in NAMED_BY}, f"{row}.")
        elif isinstance(part, dict):
            yield from flat(part, f"{where}.")
        else:
            yield where, json.dumps(part)


def changes(before: Raw, after: Raw) -> Iterator[str]:
    """What a status says that it did not say before, and what it says no more."""
    old, new = dict(flat(before)), dict(flat(after))
    yield from (f"{path}: {value}" for path, value in new.items() if old.get(path) != value)
    yield from (f"{path} is gone" for path in old if path not in new)


@dataclass
class Told(Story):
    """A story whose decisions are written down."""

    lines: list[str] = field(default_factory=list)

    def step(self) -> Decision:
        before = self.job.get("status") or {}
        decision = super().step()
        said = [f"  create {manifest['metadata']['name']}" for manifest in decision.create]
        if decision.status is not None:
            said += [f"  {line}" for line in changes(before, self.job["status"])]
        if decision.progress is not None:
            said.append(f"  progress {json.dumps(decision.progress)}")
        said += [f"  delete {gone.kind.value} {gone.name} {gone.uid}" for gone in decision.delete]
        said += ["  delete the job"] * decision.delete_job
        said += [f"  event {event.type.value} {event.reason}: {event.message}" for event in decision.events]
        again = "" if decision.requeue_after is None else f", again in {decision.requeue_after:g} s"
        self.lines += [f"{self.now - START}{again}", *said]
        return decision

    def say(self, happens: str) -> None:
        """Write down what happens to the job from outside."""
        self.lines.append(f"-- {happens}")

    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        self.say(f"{timedelta(seconds=seconds)} later")

    def end(self, name: str, *pods: PodEnd, succeeded: bool = True) -> None:
        super().end(name, *pods, succeeded=succeeded)
        self.say(f"{name} {'succeeds' if succeeded else 'fails'}")

    def change(self, name: str, **seen: Any) -> None:
        """A child is seen otherwise than before; then decide until there is nothing to do."""
        self.say(f"{name}: " + ", ".join(f"{key} {self._brief(value)}" for key, value in seen.items()))
        self.children[name] = replace(self.children[name], **seen)
        self.settle()

    def add(self, name: str, stage: Stage, attempt: int, **seen: Any) -> None:
        """Another child of the job, like the one it has."""
        self.say(f"{name} appears" + "".join(f", {key} {self._brief(value)}" for key, value in seen.items()))
        like = born(self.created[-1], uid=f"of-{name}", now=self.now)
        self.children[name] = replace(like, name=name, stage=stage, attempt=attempt, **seen)

    def lose(self, name: str) -> None:
        """A child is deleted from outside."""
        self.say(f"{name} is deleted")
        del self.children[name]

    def edit(self, **policy: Any) -> None:
        """The user changes the policy; then decide until there is nothing to do."""
        self.say(f"spec.policy {json.dumps(policy)}")
        self.job["spec"].setdefault("policy", {}).update(policy)
        self.job["metadata"]["generation"] += 1
        self.settle()

    def push(self, **progress: Any) -> None:
        """The server writes what a stage says."""
        self.say(f"progress {json.dumps(progress)}")
        self.job["status"]["progress"] = progress

    @staticmethod
    def _brief(value: object) -> str:
        return f"{len(value)} pods" if isinstance(value, tuple) else str(value)

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def at(stage: Stage, **spec: Any) -> Told:
    """A story whose lines begin when a stage has started."""
    told = Told(job=job(**spec))
    told.start(stage)
    told.lines.clear()
    told.say(f"{stage} has started")
    return told


def done(**left: Any) -> PodEnd:
    return pod(termination=Termination(code=0, **left))


def began(end: PodEnd, seconds: float) -> PodEnd:
    return replace(end, started_at=START + timedelta(seconds=seconds))
