# SPDX-License-Identifier: Apache-2.0
"""Writes `status.progress`: at most once in an interval and job, never onto a job that is gone.

Each job that posts has a lane: a task that writes the lane's latest progress when it is due. The first post of an
attempt and the last one (100 %) are due at once, and their posts wait for the write.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from kinema_api.names import ANNOTATION_PROFILE, Stage
from kinema_api.status import Progress
from kinema_kube import Kube
from kinema_kube.errors import ConflictError, KubeError, NotFoundError
from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_server import metrics
from kinema_server.figures import moment_of
from kinema_server.refusal import Refusal, unavailable

logger = logging.getLogger(__name__)

ORDER = tuple(Stage)
"""Of a pipeline."""
FIELD_MANAGER = "kinema-server"
_FAILURES_LIMIT = 20
"""Failed writes in a row after which a lane gives up."""
_CONFLICTS_LIMIT = 5
"""Tries of one write that somebody else's write to the job comes between."""
_CLOSING_SECONDS = 5.0
_WISH = re.compile(r"[!-~]([ -~]{0,126}[!-~])?")


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class _Lane:
    namespace: str
    name: str
    uid: str
    pending: Progress | None = None
    told: Progress | None = None
    wish: str | None = None
    """What the job's annotation says that its training shall profile, when it was last read."""
    due: float = 0.0
    """Loop time before which nothing but a first or a last post is written."""
    failures: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


def is_urgent(progress: Progress, told: Progress | None) -> bool:
    """Whether a post is the first of its attempt, or the last."""
    if told is None or _attempt(progress) != _attempt(told):
        return True
    # Only once: a client that says 100 % again and again waits like any other.
    return progress.percentage >= 100 > told.percentage


def delay(job: Mapping[str, Any], progress: Progress, *, interval: float, now: datetime) -> float:
    """Seconds to wait before `progress` may be written onto `job` as it stands; 0 writes now.

    Other replicas of the server, and this one before a restart, count too: what they wrote is in the job.

    Raises:
        Refusal: 409, a later attempt or stage has begun or spoken.
    """
    status = job.get("status") or {}
    current = status.get("stage")
    if current and ORDER.index(Stage(current)) > ORDER.index(progress.stage):
        raise Refusal(HTTPStatus.CONFLICT, f"{progress.stage} was followed by {current}")
    stages = [stage for stage in status.get("stages") or [] if stage.get("name") == progress.stage]
    latest = max((attempt["number"] for stage in stages for attempt in stage.get("attempts") or []), default=0)
    if latest > progress.attempt:
        raise Refusal(
            HTTPStatus.CONFLICT, f"attempt {progress.attempt} of {progress.stage} was followed by attempt {latest}"
        )
    written = status.get("progress") or {}
    written_at = moment_of(written.get("updatedAt"))
    same = (written.get("stage"), written.get("attempt")) == _attempt(progress)
    finished = same and written.get("percentage", 0) >= 100
    if written_at is None or (progress.percentage >= 100 and not finished):
        return 0.0
    if not same:
        received = moment_of(progress.updated_at)
        if received is not None and written_at > received:
            raise Refusal(HTTPStatus.CONFLICT, f"{written.get('stage')} has spoken since")
        return 0.0
    return max(0.0, min(interval, (written_at + timedelta(seconds=interval) - now).total_seconds()))


class Writer:
    """The lanes of all jobs that post."""

    def __init__(self, kube: Kube, *, interval: float, now: Callable[[], datetime] = _utc_now) -> None:
        self._kube = kube
        self._interval = interval
        self._now = now
        self._lanes: dict[str, _Lane] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._lanes)

    async def submit(self, *, namespace: str, name: str, uid: str, progress: Progress) -> str | None:
        """Take a job's latest progress; it is written now or when it is due.

        Returns:
            The wish to profile that the job had when it was last read.

        Raises:
            Refusal: 404 or 409, the job or the attempt is gone; 503, the API server does not take it now.
        """
        if self._closing:
            raise unavailable("the server is going down")
        lane = self._lanes.get(uid)
        if lane is None:
            lane = self._lanes[uid] = _Lane(namespace=namespace, name=name, uid=uid)
            lane.task = asyncio.create_task(self._run(lane), name=f"progress {namespace}/{name}")
        lane.pending = progress
        if is_urgent(progress, lane.told):
            waiter = asyncio.get_running_loop().create_future()
            lane.waiters.append(waiter)
            lane.wake.set()
            await waiter
        return lane.wish

    async def close(self) -> None:
        """Write what is pending, and stop."""
        self._closing = True
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for lane in self._lanes.values():
            lane.wake.set()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSING_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, lane: _Lane) -> None:
        try:
            while True:
                await self._until_due(lane)
                if lane.pending is not None:
                    await self._flush(lane)
                # No await between this decision and the lane's end, or a post could land in a lane without a task.
                idle = lane.pending is None and asyncio.get_running_loop().time() >= lane.due
                if idle or self._closing or lane.failures >= _FAILURES_LIMIT:
                    return
        finally:
            self._lanes.pop(lane.uid, None)
            _answer(lane, unavailable("the progress could not be written"))

    async def _until_due(self, lane: _Lane) -> None:
        remaining = lane.due - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.0, remaining)):
                await lane.wake.wait()
        except TimeoutError:
            return
        lane.wake.clear()

    async def _flush(self, lane: _Lane) -> None:
        progress, lane.pending = lane.pending, None
        assert progress is not None
        loop = asyncio.get_running_loop()
        try:
            wait = await self._write(lane, progress)
        except Refusal as refusal:
            metrics.WRITES.labels(result="refused").inc()
            logger.info("progress refused", extra={**_where(lane), "reason": refusal.message})
            lane.told, lane.due = None, loop.time()
            _answer(lane, refusal)
        except KubeError as error:
            metrics.WRITES.labels(result="failed").inc()
            logger.warning("progress not written", extra={**_where(lane), "error": str(error)})
            lane.failures += 1
            lane.pending = lane.pending or progress
            lane.due = loop.time() + max(self._interval, error.retry_after or 0.0)
            _answer(lane, unavailable("the Kubernetes API does not take the progress now; it is kept and tried again"))
        else:
            lane.failures = 0
            lane.told = progress
            if wait:
                lane.pending = lane.pending or progress
            else:
                metrics.WRITES.labels(result="written").inc()
            lane.due = loop.time() + (wait or self._interval)
            _answer(lane, None)

    async def _write(self, lane: _Lane, progress: Progress) -> float:
        """Write, or say how many seconds it is too early."""
        for remaining in reversed(range(_CONFLICTS_LIMIT)):
            try:
                job = await self._kube.get(VIDEO_TRAINING_JOBS, lane.name, namespace=lane.namespace)
                if job["metadata"]["uid"] != lane.uid:
                    raise _gone(lane)
                lane.wish = wish_of(job)
                wait = delay(job, progress, interval=self._interval, now=self._now())
                if wait and not self._closing:
                    return wait
                await self._apply(job, progress)
            except NotFoundError as error:
                raise _gone(lane) from error
            except ConflictError:
                if not remaining:
                    raise
            else:
                break
        return 0.0

    async def _apply(self, job: Mapping[str, Any], progress: Progress) -> None:
        # The version binds the write to the job that was read. The uid alone would not: of a body for the status of a
        # custom resource the API server takes the status only, so that a new job of the same name would get it.
        identity = {key: job["metadata"][key] for key in ("namespace", "name", "resourceVersion")}
        shown = with_steps(with_loss(progress, job), job)
        body = {"metadata": identity, "status": {"progress": shown.wire()}}
        await self._kube.apply(VIDEO_TRAINING_JOBS, body, manager=FIELD_MANAGER, force=True, subresource="status")


def wish_of(job: Mapping[str, Any]) -> str | None:
    """The annotation by which somebody asks for a profile; None when it is none that a header can carry."""
    wish = (job["metadata"].get("annotations") or {}).get(ANNOTATION_PROFILE)
    return wish if wish and _WISH.fullmatch(wish) else None


def with_loss(progress: Progress, job: Mapping[str, Any]) -> Progress:
    """`progress` with the loss that the job showed last: later stages have none, and the user still wants to see it."""
    shown = ((job.get("status") or {}).get("progress") or {}).get("loss")
    return progress if progress.loss is not None or not shown else progress.model_copy(update={"loss": shown})


def with_steps(progress: Progress, job: Mapping[str, Any]) -> Progress:
    """`progress` with the steps that its attempt told before: the last post of transformers has none."""
    shown = (job.get("status") or {}).get("progress") or {}
    if progress.total_steps is not None or (shown.get("stage"), shown.get("attempt")) != _attempt(progress):
        return progress
    total, step = shown.get("totalSteps"), shown.get("step")
    last = total if progress.percentage >= 100 else step
    return progress.model_copy(
        update={"total_steps": total, "step": progress.step if progress.step is not None else last}
    )


def _gone(lane: _Lane) -> Refusal:
    return Refusal(HTTPStatus.NOT_FOUND, f"job {lane.name!r} of namespace {lane.namespace!r} is gone")


def _answer(lane: _Lane, refusal: Refusal | None) -> None:
    waiters, lane.waiters = lane.waiters, []
    for waiter in waiters:
        if waiter.done():
            continue  # its client went away
        if refusal is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(refusal)


def _attempt(progress: Progress) -> tuple[str, int]:
    return progress.stage.value, progress.attempt


def _where(lane: _Lane) -> dict[str, str]:
    return {"namespace": lane.namespace, "job": lane.name}
