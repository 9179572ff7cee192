# SPDX-License-Identifier: Apache-2.0
"""One leader, by a coordination.k8s.io Lease.

A leader that was suspended for longer than its Lease must not go on with what it was at: `fence` is asked before every
request that changes something. A request that is on its way already is beyond that; what keeps the state right all the
same is that every write names the version it was decided from.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from kinema_kube import Kube
from kinema_kube.errors import ConflictError, KubeError, NotFoundError
from kinema_kube.resources import LEASES
from kinema_operator.observed import Raw
from kinema_operator.settings import Election

log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Somebody else leads, or the Lease could not be renewed in time."""


class Lease:
    """This process's side of the Lease."""

    def __init__(
        self,
        *,
        kube: Kube,
        namespace: str,
        identity: str,
        settings: Election,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._settings = settings
        self._clock = clock
        self._held: Raw | None = None
        self._renewed = clock()
        """When the last renewal that succeeded was sent: nobody can see it earlier and count from before."""
        self._seen: tuple[str, float] = ("", clock())
        """The resource version that was seen last, and since when on our clock: clocks of machines are not compared."""

    async def acquire(self, *, standing_by: Callable[[bool], None] = lambda able: None) -> None:
        """Wait until this process leads.

        Args:
            standing_by: is told at each try whether this process could take the Lease if it were free.
        """
        said = ""
        while True:
            able = True
            try:
                holder = await self.attempt()
                problem = f"{holder} leads; this replica stands by" if holder else ""
            except KubeError as error:
                able, problem = False, f"the Lease cannot be taken: {error}"
            if not problem:
                log.info("leading as %s", self._identity)
                return
            standing_by(able)
            if problem != said:
                log.log(logging.INFO if able else logging.ERROR, "%s", problem)
                said = problem
            await asyncio.sleep(self._settings.retry_seconds)

    async def attempt(self) -> str:
        """Try once to take the Lease; returns who holds it, empty when that is us."""
        lease = await self._kube.find(LEASES, self._settings.name, namespace=self._namespace)
        if lease is None:
            return await self._create()
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
        expired = self._clock() - self._seen[1] >= self._settings.lease_seconds
        if holder and holder != self._identity and not expired:
            return holder
        try:
            await self._take(lease, taken=holder != self._identity)
        except ConflictError:
            return "another replica"
        return ""

    def fence(self) -> None:
        """See that nobody else may lead yet.

        Raises:
            LeaseLostError: the Lease may have expired; this process must change nothing.
        """
        silent = self._clock() - self._renewed
        if self._held is None or silent >= self._settings.lease_seconds:
            raise LeaseLostError(f"the Lease was not renewed for {silent:.1f} s: somebody else may lead by now")

    async def renew(self) -> None:
        """Keep the Lease.

        Raises:
            LeaseLostError: it is lost; this process must stop at once.
        """
        while True:
            await asyncio.sleep(self._settings.retry_seconds)
            left = self._settings.renew_seconds - (self._clock() - self._renewed)
            try:
                async with asyncio.timeout(max(0.1, left)):
                    await self._renew_once()
            except (KubeError, TimeoutError) as error:
                if self._clock() - self._renewed >= self._settings.renew_seconds:
                    # Giving it back would ask the API server that does not answer; it expires by itself.
                    self._held = None
                    raise LeaseLostError(f"the Lease could not be renewed in time: {error!r}") from error
                log.warning("the Lease could not be renewed: %r; trying again", error)

    async def release(self) -> None:
        """Let another replica lead at once."""
        if self._held is None:
            return
        lease, self._held = self._held, None
        try:
            await self._write(lease, holder="", taken=False)
            log.info("gave the Lease back")
        except KubeError as error:
            log.warning("the Lease could not be given back, it will expire: %s", error)

    async def _renew_once(self) -> None:
        assert self._held is not None
        try:
            await self._take(self._held, taken=False)
        except (ConflictError, NotFoundError):
            # Touched by somebody, or our last renewal arrived although its answer did not.
            holder = await self.attempt()
            if holder:
                self._held = None
                raise LeaseLostError(f"{holder} leads now") from None

    async def _create(self) -> str:
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._settings.name, "namespace": self._namespace},
            "spec": self._spec(holder=self._identity, taken=True, transitions=0),
        }
        sent = self._clock()
        try:
            self._held = await self._kube.create(LEASES, body)
        except ConflictError:
            return "another replica"
        self._renewed = sent
        return ""

    async def _take(self, lease: Raw, *, taken: bool) -> None:
        sent = self._clock()
        self._held = await self._write(lease, holder=self._identity, taken=taken)
        self._renewed = sent

    async def _write(self, lease: Raw, *, holder: str, taken: bool) -> Raw:
        transitions = int((lease.get("spec") or {}).get("leaseTransitions") or 0)
        return await self._kube.merge_patch(
            LEASES,
            self._settings.name,
            {"spec": self._spec(holder=holder, taken=taken, transitions=transitions + taken)},
            namespace=self._namespace,
            resource_version=lease["metadata"]["resourceVersion"],
        )

    def _spec(self, *, holder: str, taken: bool, transitions: int) -> Raw:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._settings.lease_seconds)),
            "renewTime": now,
            "leaseTransitions": transitions,
            **({"acquireTime": now} if taken else {}),
        }
