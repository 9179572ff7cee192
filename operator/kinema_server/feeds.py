# SPDX-License-Identifier: Apache-2.0
"""Changes of jobs for any number of readers: one watch of the API server a selection, however many read along.

A feed keeps the last changes, each under its resource version. A reader has a place among them and nothing else, so
that a slow one costs no memory and holds up nobody: when it falls behind what is kept it is told to begin anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

from kinema_api.status import Phase
from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.errors import BadRequestError, ForbiddenError, GoneError, KubeError
from kinema_kube.resources import VIDEO_TRAINING_JOBS
from kinema_kube.streams import Change, watch
from kinema_server.refusal import Refusal, forbidden, too_many, unavailable
from kinema_server.rows import row_of, whole

logger = logging.getLogger(__name__)

KEPT_CHANGES = 4096
KEPT_BYTES = 4 << 20
SELECTIONS = 32
"""Selections by label or phase that are followed at once: each is a watch of its own."""
LINGER_SECONDS = 60.0
"""For how long a feed without readers goes on, so that one who comes back finds what it missed."""
_LEAST_SECONDS = 0.5
"""Between the beginnings of two watches."""
_BACKOFF_SECONDS = (0.5, 30.0)


class Kind(str, Enum):  # noqa: UP042 - the value is what goes over the wire
    """What a reader is told."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"
    SYNCED = "synced"
    """Everything there is was told; what follows are changes."""
    RESET = "reset"
    """What was told before no longer counts: everything there is follows."""


@dataclass(frozen=True, slots=True)
class News:
    """What a reader is told."""

    kind: Kind
    version: int | None = None
    """The resource version from which a reader may go on; None while it may not."""
    name: str = ""
    """Of the job, after its namespace: `team/wan`."""
    row: str = "{}"
    """The job as a list shows it, as JSON."""
    packed: bytes = b""
    """The job whole, as JSON, compressed: a feed keeps many, and most are never read. One job is followed by the feed
    of its namespace, others have none."""

    @property
    def job(self) -> str:
        """The job whole, as JSON."""
        return zlib.decompress(self.packed).decode() if self.packed else "{}"

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.row) + len(self.packed) + 200


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs are followed."""

    namespace: str | None
    """None: all of them."""
    labels: str = ""
    """A selector, as kubectl's `-l`."""
    phase: Phase | None = None

    @property
    def narrow(self) -> bool:
        """Whether jobs of the namespace are left out."""
        return bool(self.labels or self.phase)

    @property
    def where(self) -> str:
        """The end of a sentence about what the server may not do: Kinema may be installed for some namespaces only."""
        return f"of namespace {self.namespace!r}" if self.namespace else "of all namespaces: ask for one"

    @property
    def query(self) -> dict[str, Any]:
        """What a list or a watch of the API server is asked for."""
        fields = {"status.phase": self.phase.value} if self.phase is not None else ""
        return {"namespace": self.namespace, "labels": self.labels, "fields": fields}


class Feed:
    """The changes of the jobs of a selection; a job that no longer belongs to it counts as deleted."""

    def __init__(self, kube: Kube, selection: Selection) -> None:
        self._kube = kube
        self._selection = selection
        self._known: dict[str, tuple[int, str]] = {}
        """Resource version and row of each job."""
        self._kept: deque[News] = deque()
        self._bytes = 0
        self._first = 0
        """The place of the first change that is kept; places count from the feed's beginning."""
        self._floor = 0
        """The resource version after which every change is kept."""
        self._version = 0
        self._listed = asyncio.Event()
        self._changed = asyncio.Event()
        self._failure: KubeError | None = None
        self.readers = 0
        self._task = asyncio.create_task(self._run(), name=f"feed {selection}")
        self._task.add_done_callback(self._ended)

    async def ready(self) -> None:
        """Wait until the feed knows every job.

        Raises:
            Refusal: it cannot.
        """
        try:
            async with asyncio.timeout(15):
                await self._listed.wait()
        except TimeoutError:
            raise unavailable("the Kubernetes API does not list the jobs; try again") from None
        if isinstance(self._failure, ForbiddenError):
            raise forbidden(f"the server itself may not watch the jobs {self._selection.where}")
        if isinstance(self._failure, BadRequestError):
            raise Refusal(HTTPStatus.BAD_REQUEST, self._failure.message)
        if self._failure is not None:
            raise unavailable("the Kubernetes API does not list the jobs; try again")

    @property
    def alive(self) -> bool:
        """Whether changes still come."""
        return not self._task.done()

    async def close(self) -> None:
        """End, and tell the readers."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._wake()

    async def follow(self, *, since: int | None, rows: bool = True) -> AsyncIterator[News]:
        """Everything there is, then changes; or only the changes after a version, where they are kept.

        Args:
            since: the version up to which a reader has seen everything; None for a new one.
            rows: whether to tell of every job there is, and not only that changes follow.
        """
        place = self._place_after(since)
        if place is None and since is not None:
            yield News(Kind.RESET)
        while self.alive:
            if place is None or place < self._first:
                if place is not None:
                    yield News(Kind.RESET)
                # The place, the version and what is known belong together: no await between them.
                place, version = self._end, self._version
                everything = [*self._known.items()] if rows else []
                for name, (_, row) in everything:
                    yield News(Kind.ADDED, name=name, row=row)
                yield News(Kind.SYNCED, version=version)
                continue
            if place < self._end:
                news = self._kept[place - self._first]
                place += 1
                yield news
                continue
            await self._changed.wait()

    @property
    def _end(self) -> int:
        return self._first + len(self._kept)

    def _place_after(self, since: int | None) -> int | None:
        if since is None or not self._floor <= since <= self._version:
            return None
        newer = sum((news.version or 0) > since for news in self._kept)
        return self._end - newer

    async def _run(self) -> None:
        listed, pause = False, _BACKOFF_SECONDS[0]
        while True:
            try:
                if not listed:
                    await self._list()
                    listed, pause = True, _BACKOFF_SECONDS[0]
                    self._listed.set()
                begun = time.monotonic()
                version = str(self._version)
                async for change in watch(self._kube, VIDEO_TRAINING_JOBS, version=version, **self._selection.query):
                    self._take(change)
                # A watch that ends at once must not be begun a thousand times a second.
                await asyncio.sleep(max(0.0, begun + _LEAST_SECONDS - time.monotonic()))
            except GoneError:
                listed = False
            except KubeError as error:
                if not self._listed.is_set():
                    self._failure = error
                    self._listed.set()
                    return
                logger.warning("watch broken", extra={"selection": str(self._selection), "error": str(error)})
                await asyncio.sleep(pause)
                pause = min(2 * pause, _BACKOFF_SECONDS[1])

    async def _list(self) -> None:
        token, known = "", dict[str, tuple[int, str]]()
        while True:
            page = await self._kube.page(VIDEO_TRAINING_JOBS, token=token, **self._selection.query)
            known |= {_name_of(job): (_version_of(job), _row(job)) for job in page.items}
            token = page.token
            if not token:
                break
        # What happened between the last change and this list is not known: everybody's place is gone.
        self._first, self._bytes = self._end + 1, 0
        self._kept.clear()
        self._known = known
        self._floor = self._version = int(page.resource_version or 0)
        self._wake()

    def _take(self, change: Change) -> None:
        if change.kind == "BOOKMARK":
            self._version = max(self._version, change.version)
            return
        self._append(
            News(
                Kind(change.kind.lower()),
                version=change.version,
                name=_name_of(change.obj),
                row=_row(change.obj),
                packed=b"" if self._selection.narrow else zlib.compress(json.dumps(whole(change.obj)).encode(), 1),
            )
        )

    def _append(self, news: News) -> None:
        assert news.version is not None
        if news.kind is Kind.DELETED:
            self._known.pop(news.name, None)
        else:
            self._known[news.name] = (news.version, news.row)
        self._kept.append(news)
        self._bytes += news.size
        self._version = max(self._version, news.version)
        while len(self._kept) > KEPT_CHANGES or self._bytes > KEPT_BYTES:
            gone = self._kept.popleft()
            self._bytes -= gone.size
            self._first += 1
            self._floor = gone.version or self._floor
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("feed broken", exc_info=task.exception(), extra={"selection": str(self._selection)})
        self._wake()


class Feeds:
    """The feeds that somebody reads, or read a moment ago."""

    def __init__(self, kube: Kube, *, linger: float = LINGER_SECONDS) -> None:
        self._kube = kube
        self._linger = linger
        self._feeds: dict[Selection, Feed] = {}
        self._closing: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._feeds)

    async def of(self, selection: Selection) -> Feed:
        """The feed of a selection, which knows every job of it.

        Raises:
            Refusal: 400, 403 or 503, it cannot know them; 429, too many selections are followed.
        """
        feed = self._feeds.get(selection)
        if feed is None or not feed.alive:
            if selection.narrow:
                self._make_room()
            feed = self._feeds[selection] = Feed(self._kube, selection)
            self._end_later(selection, feed)
        await feed.ready()
        return feed

    @asynccontextmanager
    async def reading(self, selection: Selection, feed: Feed) -> AsyncIterator[None]:
        """Keep a feed alive."""
        feed.readers += 1
        try:
            yield
        finally:
            feed.readers -= 1
            self._end_later(selection, feed)

    async def close(self) -> None:
        """End every feed, and with them their readers."""
        feeds, self._feeds = [*self._feeds.values()], {}
        await asyncio.gather(*(feed.close() for feed in feeds))

    def _make_room(self) -> None:
        narrow = [selection for selection in self._feeds if selection.narrow]
        if len(narrow) < SELECTIONS:
            return
        idle = next((selection for selection in narrow if not self._feeds[selection].readers), None)
        if idle is None:
            message = "too many different selections are watched: watch all jobs of the namespace, or try again later"
            raise too_many(message, seconds=self._linger)
        self._end(idle)

    def _end_later(self, selection: Selection, feed: Feed) -> None:
        if not feed.readers:
            asyncio.get_running_loop().call_later(self._linger, self._end_idle, selection, feed)

    def _end_idle(self, selection: Selection, feed: Feed) -> None:
        if not feed.readers and self._feeds.get(selection) is feed:
            self._end(selection)

    def _end(self, selection: Selection) -> None:
        closing = asyncio.ensure_future(self._feeds.pop(selection).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _name_of(job: Mapping[str, Any]) -> str:
    metadata = job["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"


def _row(job: Object) -> str:
    return row_of(job).model_dump_json(by_alias=True)


def _version_of(job: Mapping[str, Any]) -> int:
    return int(job["metadata"]["resourceVersion"])
