# SPDX-License-Identifier: Apache-2.0
"""The operator as a process: wait to lead, fill the store, work, and leave in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection
from typing import Any

from kinema_kube import Kube, Resource, connect
from kinema_kube.errors import KubeError
from kinema_operator.certificate import Keeper
from kinema_operator.controller import Controller
from kinema_operator.definitions import ForeignDefinitionError, confirm
from kinema_operator.election import Lease, LeaseLostError
from kinema_operator.informer import inform
from kinema_operator.metrics import Metrics
from kinema_operator.probe import Health, serve
from kinema_operator.queue import Queue, backoff
from kinema_operator.resync import RETRY, Resync
from kinema_operator.settings import Settings
from kinema_operator.store import Store
from kinema_operator.watches import Watches

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
STOP_SECONDS = 10.0
"""Seconds that the informer is given to close its watches."""


async def run(settings: Settings) -> bool:
    """Run until told to stop; False when the process must be started anew."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    health, metrics = Health(), Metrics()
    async with (
        serve(
            health=health,
            registry=metrics.registry,
            probe_port=settings.probe_port,
            metrics_port=settings.metrics_port,
        ),
        connect(request_timeout=REQUEST_SECONDS) as kube,
    ):
        kube.api.configuration.trace_configs = [metrics.trace()]
        lease = Lease(
            kube=kube, namespace=settings.lease_namespace, identity=settings.identity, settings=settings.election
        )
        if not await _first(lease.acquire(standing_by=health.stand_by), stop):
            return True
        health.ready = False
        metrics.leader.set(1)
        try:
            return await _Leader(settings, kube.fenced(lease.fence), health, metrics, lease, stop).lead()
        finally:
            metrics.leader.set(0)
            await lease.release()


async def _first(work: Any, stop: asyncio.Event) -> bool:
    """Whether `work` ended before the order to stop came."""
    task, order = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, order}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        await _cancel([task, order])


async def _cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Leader:
    """The parts of a leading operator, wired together."""

    def __init__(
        self, settings: Settings, kube: Kube, health: Health, metrics: Metrics, lease: Lease, stop: asyncio.Event
    ) -> None:
        self.settings = settings
        self.kube = kube
        self.health = health
        self.metrics = metrics
        self.lease = lease
        self.stop = stop
        self.store, self.queue, self.watches = Store(), Queue(), Watches()
        self.controller = Controller(settings=settings, kube=kube, store=self.store, queue=self.queue, metrics=metrics)
        self.keeper = Keeper(kube=kube, server=settings.server, controller=self.controller)
        self.resync = Resync(
            kube=kube,
            store=self.store,
            queue=self.queue,
            metrics=metrics,
            watches=self.watches,
            namespaces=settings.watch_namespaces,
            seconds=settings.resync_seconds,
        )
        metrics.watch(store=self.store, queue=self.queue, watches=self.watches)

    async def lead(self) -> bool:
        """Work until told to stop or something breaks; False in the second case."""
        renew = asyncio.create_task(self.lease.renew(), name="lease")
        tasks: list[asyncio.Task[Any]] = [renew]
        try:
            served = await self._begin(renew)
            if served is None:
                return _well(tasks)
            # Everything that must outlive the informer exists before it starts: when it ends, kopf cancels every
            # task that is younger than itself.
            tasks += self.controller.start()
            tasks.append(asyncio.create_task(self.resync.forever(served=served), name="resync"))
            if self.settings.server.url:
                tasks.append(asyncio.create_task(self.keeper.forever(), name="certificate"))
            tasks.append(asyncio.create_task(self.stop.wait(), name="order to stop"))
            informer = asyncio.create_task(self._inform(served), name="informer")
            self.health.watch(self.watches.dead, self.resync.troubles, self.controller.troubles)
            self.health.ready = True
            await asyncio.wait({*tasks, informer}, return_when=asyncio.FIRST_COMPLETED)
            well = _well([*tasks, informer])
            self.health.ready = False
            self.stop.set()
            # A replica that has lost the Lease must not finish what it is at.
            await self.controller.drain(**({"limit": 0.0} if _lost([*tasks, informer]) else {}))
            await asyncio.wait({informer}, timeout=STOP_SECONDS)
            await _cancel([informer])
            return well
        except ForeignDefinitionError as error:
            # Ending gives the Lease to a replica of the release that the definitions belong to.
            log.error("%s", error)
            return False
        finally:
            self.queue.close()
            await _cancel(tasks)

    async def _begin(self, renew: asyncio.Task[None]) -> tuple[Resource, ...] | None:
        """Fill the store; None when the order to stop came first, or the Lease was lost."""
        served: tuple[Resource, ...] = ()

        async def fill() -> None:
            nonlocal served
            await confirm(self.kube)
            self.metrics.definitions.set(1)
            if self.settings.server.url:
                await self.keeper.begin()
            failures = 0
            while not served:
                try:
                    served = await self.resync.once()
                except KubeError as error:
                    log.warning("the first list: %s: %s", type(error).__name__, error)
                    # Every job waits for it.
                    await asyncio.sleep(min(RETRY, backoff(failures)))
                    failures += 1

        filling = asyncio.create_task(fill(), name="first list")
        order = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({filling, order, renew}, return_when=asyncio.FIRST_COMPLETED)
            if filling.done() and not order.done() and not renew.done():
                await filling
                return served
            return None
        finally:
            await _cancel([filling, order])

    async def _inform(self, served: tuple[Resource, ...]) -> None:
        await inform(
            settings=self.settings,
            resources=served,
            store=self.store,
            queue=self.queue,
            watches=self.watches,
            kube=self.kube,
            traces=lambda: [self.metrics.trace(), self.watches.trace()],
            stop=self.stop,
        )


def _well(tasks: Collection[asyncio.Task[Any]]) -> bool:
    """Whether no task has broken; says which one has."""
    broken = _broken(tasks)
    for task, error in broken.items():
        known = isinstance(error, LeaseLostError)
        log.error("%s: %s", task.get_name(), error, exc_info=None if known else error)
    return not broken


def _lost(tasks: Collection[asyncio.Task[Any]]) -> bool:
    """Whether one of them has seen that the Lease is lost."""
    return any(isinstance(error, LeaseLostError) for error in _broken(tasks).values())


def _broken(tasks: Collection[asyncio.Task[Any]]) -> dict[asyncio.Task[Any], BaseException]:
    ended = {task: task.exception() for task in tasks if task.done() and not task.cancelled()}
    return {task: error for task, error in ended.items() if error is not None}
