# SPDX-License-Identifier: Apache-2.0
"""Full comparison with the API server: heals what a watch can lose, such as a deletion during a 410 Gone."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping

from kinema_api.names import LABEL_JOB_UID
from kinema_api.status import Phase
from kinema_kube import Kube, Resource
from kinema_kube.errors import ForbiddenError, GoneError, KubeError, NotFoundError
from kinema_operator.metrics import Metrics
from kinema_operator.observe import finished
from kinema_operator.observed import Raw
from kinema_operator.queue import Queue
from kinema_operator.store import CHILDREN, WATCHED, Store, slim
from kinema_operator.watches import Watches

log = logging.getLogger(__name__)

RETRY = 10.0
"""Seconds after which a failed comparison is tried again."""


class NewKindError(Exception):
    """A kind has been installed since the start; watches begin at the start only."""


class Resync:
    """Compares now and then, and knows when it last did."""

    def __init__(
        self,
        *,
        kube: Kube,
        store: Store,
        queue: Queue,
        metrics: Metrics,
        watches: Watches,
        namespaces: Collection[str],
        seconds: float,
    ) -> None:
        self._kube = kube
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._watches = watches
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._seconds = seconds
        self._last = time.monotonic()

    def troubles(self) -> list[str]:
        """What is wrong: no comparison has succeeded for too long."""
        age = time.monotonic() - self._last
        return [f"no full comparison for {age:.0f} s"] if age > 4 * self._seconds + 120 else []

    async def once(self) -> tuple[Resource, ...]:
        """Compare, look at every job that has not ended, and say which kinds are served.

        Raises:
            KubeError: the API server did not answer; the store is as good as before.
        """
        served = []
        refused: dict[str, KubeError] = {}
        self._store.begin()
        try:
            for resource in WATCHED:
                try:
                    items, at = await self._list(resource, refused)
                except NotFoundError:
                    if resource not in CHILDREN:
                        raise
                    log.warning(
                        "%s.%s is not installed: stages that need it cannot run", resource.plural, resource.group
                    )
                    continue
                self._store.replace(resource, items, at=at)
                served.append(resource)
        finally:
            self._store.end()
        self._last = time.monotonic()
        self._tell(refused)
        for job in self._store.jobs():
            if not at_rest(job, self._store.children(job["metadata"]["uid"])):
                self._queue.add(job["metadata"]["uid"])
            # Nobody has to wait until all are looked through.
            await asyncio.sleep(0)
        return tuple(served)

    async def forever(self, *, served: Collection[Resource]) -> None:
        """Compare again and again.

        Raises:
            NewKindError: a kind is served that is not watched.
        """
        while True:
            await asyncio.sleep(self._seconds * random.uniform(0.8, 1.2))
            try:
                found = await self.once()
                self._metrics.resyncs.labels(result="ok").inc()
            except KubeError as error:
                log.warning("full comparison: %s: %s", type(error).__name__, error)
                self._metrics.resyncs.labels(result="error").inc()
                continue
            new = [resource for resource in found if resource not in served]
            if new:
                raise NewKindError(f"{new[0].plural}.{new[0].group} has been installed: starting anew to watch it")

    def _tell(self, refused: Mapping[str, KubeError]) -> None:
        for namespace, error in refused.items():
            log.warning("namespace %s cannot be read, its jobs are not served: %s", namespace, error)
        self._metrics.refused.set(len(refused))
        self._watches.excuse(refused)

    async def _list(self, resource: Resource, refused: dict[str, KubeError]) -> tuple[list[Raw], int]:
        """All objects of a kind, and the resource version up to which nothing is missing.

        A namespace that is gone has taken its RoleBinding along. It is empty, and noted in `refused`, as long as
        another one answers.
        """
        items: list[Raw] = []
        at: list[int] = []
        errors: dict[str, KubeError] = {}
        for namespace in self._namespaces if resource.namespaced else (None,):
            try:
                found, version = await self._chunks(resource, namespace)
            except GoneError:
                # etcd was compacted between two chunks; a list in one piece is always of one moment.
                found, version = await self._chunks(resource, namespace, limit=0)
            except (ForbiddenError, NotFoundError) as error:
                if namespace is None:
                    raise
                errors[namespace] = error
                continue
            items += found
            at.append(version)
        if not at:
            # Whoever may ask learns that the kind is not installed; the others are refused before.
            raise min(errors.values(), key=lambda error: not isinstance(error, NotFoundError))
        refused.update(errors)
        return items, min(at)

    async def _chunks(self, resource: Resource, namespace: str | None, *, limit: int = 500) -> tuple[list[Raw], int]:
        labels = LABEL_JOB_UID if resource in CHILDREN else ""
        items: list[Raw] = []
        token = ""
        while True:
            page = await self._kube.page(resource, namespace=namespace, labels=labels, limit=limit, token=token)
            items += (slim(resource, item) for item in page.items)
            token = page.token
            if not token:
                return items, int(page.resource_version or 0)


def at_rest(job: Raw, children: Iterable[tuple[Resource, Raw]]) -> bool:
    """Whether a job has ended and nothing is left to do about it: nothing runs, no time, cleanup or edit waits."""
    status: Raw = job.get("status") or {}
    policy: Raw = (job.get("spec") or {}).get("policy") or {}
    return (
        status.get("phase") in {state.value for state in Phase if state.terminal}
        and status.get("observedGeneration") == job["metadata"].get("generation")
        and policy.get("ttlSecondsAfterFinished") is None
        and policy.get("cleanup") in (None, "none")
        and all(finished(resource, child) for resource, child in children)
    )
