# SPDX-License-Identifier: Apache-2.0
"""The loop: take a key, observe, decide, execute; and again when there is a reason to."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from kinema_kube import Kube, logs
from kinema_kube.errors import ForbiddenError, KubeError
from kinema_operator.decide import decide
from kinema_operator.denied import hindered
from kinema_operator.election import LeaseLostError
from kinema_operator.execute import (
    JobGoneError,
    NameTakenError,
    RefusedError,
    StaleError,
    execute,
)
from kinema_operator.metrics import Metrics
from kinema_operator.observe import RESOURCE_OF, observe
from kinema_operator.observed import ChildKind, Event, EventType, Raw
from kinema_operator.queue import Queue
from kinema_operator.settings import Settings
from kinema_operator.sighting import Sighting
from kinema_operator.store import Store, owner_uid

log = logging.getLogger(__name__)

SETTLE = 0.1
"""Seconds from a change of ours to the look that finds nothing more to do; bounds the rate of a decision that
contradicts itself."""
STARTED = 1.0
"""The same after a child was created, whose own events come sooner: other jobs may wait for their first."""
MANY = 4
"""Other jobs at a time from which on children go before words: a status costs the API server more than a child, and the
pods of the last jobs would wait for what is written about the first ones."""
DEFER = 2.0
"""Seconds that the words wait then; no worker waits with them."""
LIMIT = 120.0
"""Seconds that one look may take; each request has a shorter limit of its own."""
STUCK = 2 * LIMIT
"""A worker that has been at one job for so long is stuck."""
DRAIN = 10.0
"""Seconds that a look under way is given to end when the operator stops."""


@dataclass
class Memory:
    """What is remembered of a job between two looks, and may be forgotten: it is found out again."""

    taken: dict[str, ChildKind] = field(default_factory=dict)
    """Names of children that objects of other owners held when they were looked at last."""
    refused: dict[str, str] = field(default_factory=dict)
    """Names of children that the API server refused when they were tried last, and why."""
    denied: str = ""
    """The right that the last look lacked, in the words of the API server."""
    pushed: Sighting = field(default_factory=Sighting)
    """The progress that was pushed last."""
    silent_until: float = 0.0
    """When the next look is due, by the queue's clock, after one that only created a child."""
    doubt: bool = False
    """A child may have been created that the status does not know of: by a predecessor, or by a look that failed."""


class Controller:
    """Workers over one queue."""

    def __init__(self, *, settings: Settings, kube: Kube, store: Store, queue: Queue, metrics: Metrics) -> None:
        self._settings = settings
        self._kube = kube
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._memory: dict[str, Memory] = {}
        self._inherited: frozenset[str] = frozenset()
        """Jobs that are older than this process's lead."""
        self._busy: dict[int, float] = {}
        """Since when each busy worker is at its job."""
        self._stopping = False
        self._workers: list[asyncio.Task[None]] = []
        self.server_ca = ""
        """PEM certificates that sign the server."""

    def start(self) -> list[asyncio.Task[None]]:
        """Start the workers; one that ends by itself has crashed, and the process must not go on without it."""
        self._inherited = frozenset(str(job["metadata"]["uid"]) for job in self._store.jobs())
        self._workers = [
            asyncio.create_task(self._work(number), name=f"worker {number}") for number in range(self._settings.workers)
        ]
        return self._workers

    async def drain(self, *, limit: float = DRAIN) -> None:
        """Stop the workers: idle ones at once, busy ones when their look is over or the time is up."""
        self._stopping = True
        for number, worker in enumerate(self._workers):
            if number not in self._busy:
                worker.cancel()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=limit)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)

    def troubles(self) -> list[str]:
        """What is wrong with the workers."""
        now = time.monotonic()
        stuck = [f"worker {number} is stuck" for number, since in self._busy.items() if now - since > STUCK]
        dead = [f"{worker.get_name()} is dead" for worker in self._workers if worker.done()]
        return stuck + dead

    async def _work(self, number: int) -> None:
        while not self._stopping:
            uid, waited = await self._queue.get()
            self._metrics.latency.observe(waited)
            self._busy[number] = time.monotonic()
            try:
                await self._look(uid)
            finally:
                self._metrics.seconds.observe(time.monotonic() - self._busy.pop(number))
                self._queue.done(uid)

    async def _look(self, uid: str) -> None:
        """One look at a job; whatever goes wrong is counted, said, and tried again."""
        job = self._store.job(uid)
        if job is None:
            self._forget(uid)
            return
        name = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
        mark = logs.job.set(name)
        try:
            async with asyncio.timeout(LIMIT):
                await self.reconcile(job)
            self._queue.forget(uid)
            result = "ok"
        except JobGoneError as gone:
            log.info("%s", gone)
            self._forget(uid)
            result = "gone"
        except (StaleError, NameTakenError) as stale:
            log.debug("%s", stale)
            self._queue.add(uid)
            result = "stale"
        except RefusedError as refused:
            log.warning("%s; next try in %.0f s", refused, self._queue.retry(uid))
            result = "refused"
        except (KubeError, TimeoutError) as error:
            wait = self._queue.retry(uid, at_least=getattr(error, "retry_after", None) or 0.0)
            log.warning("%s: %s; next try in %.0f s", type(error).__name__, error, wait)
            result = "error"
        except LeaseLostError:
            # Ends this worker, and with it the process.
            raise
        except Exception:
            log.exception("a bug in the operator; next try in %.0f s", self._queue.retry(uid))
            result = "bug"
        finally:
            logs.job.reset(mark)
        self._metrics.reconciles.labels(result=result).inc()

    async def reconcile(self, job: Raw) -> None:
        """Bring one job a step further."""
        uid = job["metadata"]["uid"]
        if job["metadata"].get("deletionTimestamp"):
            return
        memory = self._memory.setdefault(uid, Memory(doubt=uid in self._inherited))
        silent = memory.silent_until - self._queue.clock()
        if silent > 0:
            # News of the child that was just created.
            self._queue.add_after(uid, silent)
            return
        try:
            await self._step(job, memory)
        except ForbiddenError as error:
            await self._tell_denied(job, memory, str(error))
            raise
        if memory.denied:
            memory.denied = ""
            # Its status still says so.
            self._queue.add(uid)

    async def _tell_denied(self, job: Raw, memory: Memory, why: str) -> None:
        """Say in the status and by an Event which right is missing, once."""
        if memory.denied == why:
            return
        present = self._store.job(job["metadata"]["uid"]) or job
        said = hindered(present, why, datetime.now(UTC))
        await execute(job=present, decision=said, kube=self._kube, store=self._store)
        memory.denied = why

    async def _step(self, job: Raw, memory: Memory) -> None:
        """Observe, decide, execute."""
        uid = job["metadata"]["uid"]
        await self._recheck(job, memory)
        now = datetime.now(UTC)
        view = await observe(
            job=job,
            store=self._store,
            kube=self._kube,
            foreign=memory.taken,
            now=now,
            pushed=memory.pushed,
            doubt=memory.doubt,
        )
        platform = self._settings.platform(server_ca=self.server_ca)
        observed = replace(view.observed, refused=memory.refused, denied=memory.denied)
        decision = decide(job, observed, platform, now)
        memory.doubt = True
        try:
            done = await execute(
                job=job, decision=decision, kube=self._kube, store=self._store, defer=self._others() >= MANY
            )
        except NameTakenError as taken:
            memory.taken[taken.name] = taken.kind
            raise
        except RefusedError as refused:
            if memory.refused != {refused.name: str(refused)}:
                memory.refused = {refused.name: str(refused)}
                said = decide(job, replace(observed, refused=memory.refused), platform, now)
                event = Event(EventType.WARNING, "CreateRefused", str(refused))
                said = replace(said, create=(), events=(*said.events, event))
                await execute(job=job, decision=said, kube=self._kube, store=self._store)
            raise
        memory.refused = {}
        if done.deferred:
            memory.silent_until = self._queue.clock() + DEFER
            self._queue.add_after(uid, DEFER)
            return
        # Whatever was created is in the status now, unless it must wait for pods of which only doubt knows.
        memory.doubt = observed.stray_pods
        if done.written is not None:
            self._metrics.ended(job=job, after=done.written.get("status") or {})
        if done.changed:
            self._queue.add_after(uid, STARTED if done.created else SETTLE)
        for seconds in (decision.requeue_after, view.look_again):
            if seconds is not None:
                self._queue.add_after(uid, seconds)

    def _others(self) -> int:
        """Jobs that are looked at beside the present one, or wait for it."""
        return len(self._busy) + len(self._queue) - 1

    async def _recheck(self, job: Raw, memory: Memory) -> None:
        """Drop the names that have become free."""
        for name, kind in list(memory.taken.items()):
            found = await self._kube.find(RESOURCE_OF[kind], name, namespace=job["metadata"]["namespace"])
            if found is None or owner_uid(found) == job["metadata"]["uid"]:
                del memory.taken[name]

    def _forget(self, uid: str) -> None:
        self._memory.pop(uid, None)
        self._queue.forget(uid)
