# SPDX-License-Identifier: Apache-2.0
"""Reads the logs of a job's pods."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from kinema_api.names import CONTAINER, LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE
from kinema_cli.cluster import FAILED, Where, find_job, run
from kinema_cli.ends import DETACHED
from kinema_cli.errors import CommandError
from kinema_cli.printing import console, note, show
from kinema_cli.view.logs import readable
from kinema_kube import Kube
from kinema_kube.client import Object, Objects
from kinema_kube.errors import BadRequestError, NotFoundError
from kinema_kube.resources import PODS
from kinema_kube.streams import log_lines

_SINCE = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_REPLICA = "training.kubeflow.org/replica-type"
_PLACE = "training.kubeflow.org/replica-index"
_INDEX = "batch.kubernetes.io/job-completion-index"
_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines of which pods."""

    stage: str | None
    """The one that runs, or ran last, when None."""
    attempt: int | None
    """The newest when None."""
    rank: int
    everyone: bool
    """All pods of the attempt, each line after its pod's name."""
    follow: bool
    tail: int | None
    since: str
    grep: str
    raw: bool


def logs(where: Where, name: str, wanted: Wanted) -> int:
    """Print the log of an attempt; the exit code."""
    namespace = where.namespace
    pattern = _pattern(wanted.grep)
    seconds, moment = since_of(wanted.since)

    async def work(kube: Kube) -> int:
        job = await find_job(kube, name, namespace=namespace)
        stage, attempt = attempt_of(job, stage=wanted.stage, attempt=wanted.attempt)
        pods = await pods_of(kube, job, stage=stage, attempt=attempt["number"], follow=wanted.follow)
        if not pods:
            return _kept(stage, attempt)
        chosen = pods if wanted.everyone else [_of_rank(pods, wanted.rank, stage)]
        screen = console()

        async def one(pod: Object) -> None:
            prefix = f"{pod['metadata']['name']}: " if wanted.everyone else ""
            lines = _lines(kube, pod, follow=wanted.follow, tail=wanted.tail, seconds=seconds, moment=moment)
            async for line in lines:
                text = line.partition(" ")[2]
                if pattern is None or pattern.search(text):
                    show([Text.assemble(prefix, Text(text) if wanted.raw else readable(text))], screen=screen)

        await asyncio.gather(*(one(pod) for pod in chosen))
        return 0

    try:
        return run(where, work)
    except KeyboardInterrupt:
        return DETACHED


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise CommandError(f"--grep {text}: no regular expression: {error}") from None


def since_of(text: str) -> tuple[int | None, str]:
    """Seconds of `10m`, or a moment of RFC 3339.

    Raises:
        CommandError: it is neither.
    """
    if not text:
        return None, ""
    if found := _SINCE.fullmatch(text):
        return max(1, int(found[1]) * _SECONDS[found[2]]), ""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text):
        return None, text
    raise CommandError(f"--since {text}: write for instance 10m, 2h, or 2026-11-22T08:00:00Z")


def attempt_of(job: Object, *, stage: str | None, attempt: int | None) -> tuple[str, Mapping[str, Any]]:
    """The stage and the attempt that are meant: the named ones, or what runs or ran last.

    Raises:
        CommandError: nothing of it has run.
    """
    status, name = job.get("status") or {}, job["metadata"]["name"]
    stages: dict[str, Any] = {item["name"]: item for item in status.get("stages") or []}
    begun = [item for item in stages.values() if item.get("attempts")]
    if stage is None:
        current = stages.get(status.get("stage") or "")
        found = current if current and current.get("attempts") else begun[-1] if begun else None
        if found is None:
            raise CommandError(
                f"nothing of job {name} has run yet: `kinema why {name}` says what it waits for", code=FAILED
            )
    else:
        found = stages.get(stage)
        if found is None or not found.get("attempts"):
            have = ", ".join(item["name"] for item in begun) or "none"
            raise CommandError(f"stage {stage} of job {name} has not run; those that have: {have}", code=FAILED)
    attempts: list[Mapping[str, Any]] = found["attempts"]
    if attempt is None:
        return found["name"], attempts[-1]
    chosen = next((item for item in attempts if item["number"] == attempt), None)
    if chosen is None:
        numbers = ", ".join(str(item["number"]) for item in attempts)
        raise CommandError(
            f"stage {found['name']} of job {name} has no attempt {attempt}; it has {numbers}", code=FAILED
        )
    return found["name"], chosen


async def pods_of(kube: Kube, job: Object, *, stage: str, attempt: int, follow: bool = False) -> Objects:
    """The pods of an attempt, rank by rank; while one follows they are waited for."""
    metadata = job["metadata"]
    labels = {LABEL_JOB_UID: metadata["uid"], LABEL_STAGE: stage, LABEL_ATTEMPT: str(attempt)}
    for _ in range(30 if follow else 1):
        pods = await kube.list(PODS, namespace=metadata["namespace"], labels=labels)
        if pods or not follow:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return sorted(pods, key=rank_of)


def rank_of(pod: Object) -> int:
    """A pod's place among those of its attempt: the master of a gang is 0, its workers follow."""
    metadata = pod["metadata"]
    marks = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    if marks.get(_REPLICA) == "worker":
        return int(marks.get(_PLACE) or 0) + 1
    return int(marks.get(_INDEX) or 0)


def _of_rank(pods: Objects, rank: int, stage: str) -> Object:
    found = next((pod for pod in pods if rank_of(pod) == rank), None)
    if found is None:
        have = ", ".join(str(rank_of(pod)) for pod in pods)
        raise CommandError(f"--rank {rank}: stage {stage} has the pods {have}", code=FAILED)
    return found


async def _lines(
    kube: Kube, pod: Object, *, follow: bool, tail: int | None, seconds: int | None, moment: str
) -> AsyncIterator[str]:
    metadata, told = pod["metadata"], False
    while True:
        try:
            lines = log_lines(
                kube,
                metadata["name"],
                namespace=metadata["namespace"],
                container=CONTAINER,
                follow=follow,
                tail=tail,
                since=moment,
                since_seconds=seconds,
            )
            async for line in lines:
                yield line
            return
        except BadRequestError as error:
            # The container has not started.
            if not follow:
                raise CommandError(f"{error.message}; --follow waits for it", code=FAILED) from None
            if not told:
                note(f"{metadata['name']} has not started yet; waiting")
                told = True
            await asyncio.sleep(_POLL_SECONDS)
        except NotFoundError:
            raise CommandError(f"pod {metadata['name']} is gone, and its log with it", code=FAILED) from None


def _kept(stage: str, attempt: Mapping[str, Any]) -> int:
    """What the job itself keeps of a log whose pods are gone."""
    tail = str(attempt.get("logTail") or "")
    if not tail:
        raise CommandError(
            f"the pods of {stage}, attempt {attempt['number']}, are gone, and their logs with them", code=FAILED
        )
    note(f"the pods of {stage}, attempt {attempt['number']}, are gone; the job keeps the end of the log:")
    show(tail.splitlines())
    return 0
