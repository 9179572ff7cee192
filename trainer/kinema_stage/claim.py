# SPDX-License-Identifier: Apache-2.0
"""Claims: two jobs, or a pod and the one that replaces it, that want the same unit of work meet here.

A claim is a folder of numbered files, one a generation; the highest one counts and is never deleted. Taking a claim
is creating the next number, which the workspace grants to one caller only: no comparison of clocks, no swap of file
contents, so it holds on any store with put-if-absent. The holder rewrites its file with a rising beat. An observer
that sees the same beat for `ttl` seconds of its own monotonic clock takes the next generation. A holder that could
not beat for so long counts itself as having lost the claim.

A frozen process may wake up after it lost its claim; results are therefore published by put-if-absent as well. The
claim saves work, the manifest decides.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import PurePosixPath
from types import TracebackType

from kinema_api.base import Model
from kinema_api.exits import Exit, StageError
from kinema_stage.workspace import Workspace

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
TTL = 30.0
_BEATS_PER_TTL = 6


class State(Model):
    """The content of a claim's file."""

    holder: str
    """Who works: `<job uid>/<stage>/<worker>`."""
    token: str
    """One process of that holder."""
    beat: int = 0
    """Rises while the holder lives."""
    released: bool = False
    """The holder is done with it."""


class Claim:
    """A held claim. Use it as a context manager: leaving releases it."""

    def __init__(
        self,
        *,
        workspace: Workspace,
        path: str,
        generation: int,
        state: State,
        beaten_at: float,
        ttl: float,
        clock: Clock,
    ) -> None:
        self._workspace = workspace
        self._path = path
        self._generation = generation
        self._state = state
        self._ttl = ttl
        self._clock = clock
        self._beaten_at = beaten_at
        self._lost = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether the work is still ours to do; once False it stays so."""
        if self._clock() - self._beaten_at >= self._ttl:
            self._lost = True
        return not self._lost and not self._state.released

    def beat(self) -> bool:
        """Show that the holder lives; False when another has taken over."""
        with self._lock:
            if not self.held:
                return False
            if _top(self._workspace, self._path) != self._generation:
                self._lost = True
                return False
            started = self._clock()
            self._state = self._state.model_copy(update={"beat": self._state.beat + 1})
            self._workspace.write(_file(self._path, self._generation), _encode(self._state))
            if not self.held:
                # The write took so long that an observer may have given up on the beat before it.
                return False
            self._beaten_at = started
            return True

    def start(self) -> None:
        """Beat from a background thread until release."""
        self._thread = threading.Thread(target=self._run, name=f"claim {self._path}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the claim back at once; the next one need not wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self.held and _top(self._workspace, self._path) == self._generation:
                self._state = self._state.model_copy(update={"released": True})
                self._workspace.write(_file(self._path, self._generation), _encode(self._state))

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except OSError as failure:
            logger.warning("claim %s: cannot release, it runs out by itself: %s", self._path, failure)

    def _run(self) -> None:
        while not self._stop.wait(self._ttl / _BEATS_PER_TTL):
            try:
                alive = self.beat()
            except OSError as error:
                # The volume may come back; `held` turns False by itself if it does not.
                logger.warning("claim %s: cannot beat: %s", self._path, error)
                continue
            if not alive:
                if not self._stop.is_set():
                    logger.warning(
                        "claim %s: lost to another worker, or not renewed within %g s", self._path, self._ttl
                    )
                return


class Observer:
    """Remembers when a beat was first seen, which is how a dead holder is told from a living one.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[State, float]] = {}
        self._lock = threading.Lock()

    def _stale(self, uri: str, state: State, *, asked_at: float, ttl: float) -> bool:
        """Whether this very beat, read at or after `asked_at`, was known `ttl` seconds before."""
        with self._lock:
            known, since = self._seen.get(uri, (None, 0.0))
            if known == state:
                return asked_at - since >= ttl
            self._seen[uri] = (state, self._clock())
            return False

    def try_claim(
        self, workspace: Workspace, path: str, *, holder: str, ttl: float = TTL, background: bool = True
    ) -> Claim | None:
        """See `try_claim` of the module; without `background` the caller beats."""
        top = _top(workspace, path)
        if top and not self._free(workspace, path, top, holder=holder, ttl=ttl):
            return None
        state = State(holder=holder, token=uuid.uuid4().hex)
        started = self._clock()
        if not workspace.create(_file(path, top + 1), _encode(state)):
            return None
        generations = _generations(workspace, path)
        if generations[-1] != top + 1:
            # Ours had been used and cleared away before; a later generation lives.
            workspace.delete(_file(path, top + 1))
            return None
        for old in generations[:-1]:
            workspace.delete(_file(path, old))
        claim = Claim(
            workspace=workspace,
            path=path,
            generation=top + 1,
            state=state,
            beaten_at=started,
            ttl=ttl,
            clock=self._clock,
        )
        if background:
            claim.start()
        return claim

    def _free(self, workspace: Workspace, path: str, top: int, *, holder: str, ttl: float) -> bool:
        asked_at = self._clock()
        try:
            state = State.model_validate_json(workspace.read(_file(path, top)))
        except FileNotFoundError:
            return False
        if state.released or state.holder == holder:
            return True
        return self._stale(workspace.uri(path), state, asked_at=asked_at, ttl=ttl)


_OBSERVER = Observer()


def try_claim(workspace: Workspace, path: str, *, holder: str, ttl: float = TTL) -> Claim | None:
    """Take a unit of work; None while another one lives that holds it.

    Call it again later: a holder that does not beat for `ttl` seconds between two calls of this process is taken for
    dead. The same holder (a restarted pod) takes over at once.
    """
    return _OBSERVER.try_claim(workspace, path, holder=holder, ttl=ttl)


def wait_or_claim(
    workspace: Workspace,
    path: str,
    *,
    holder: str,
    done: Callable[[], bool],
    interrupted: threading.Event,
    ttl: float = TTL,
    moved: Callable[[], None] = lambda: None,
) -> Claim | None:
    """Take a unit of work, or wait until another one has done it; `moved` is called as long as it waits.

    Returns:
        The claim; None when `done()` became true.

    Raises:
        StageError: `interrupted` was set while waiting.
    """
    told = False
    while not done():
        claim = try_claim(workspace, path, holder=holder, ttl=ttl)
        if claim is not None:
            if not done():
                return claim
            claim.release()
            return None
        if not told:
            logger.info("another worker is at %s: waiting for its result", path)
            told = True
        moved()
        if interrupted.wait(min(2.0, ttl / _BEATS_PER_TTL)):
            raise StageError(Exit.INTERRUPTED, f"interrupted while waiting for another worker's {path}")
    return None


def _encode(state: State) -> bytes:
    return state.model_dump_json(by_alias=True).encode()


def _file(path: str, generation: int) -> str:
    return f"{path}/{generation:08d}.json"


def _generations(workspace: Workspace, path: str) -> list[int]:
    names = (PurePosixPath(name) for name in workspace.list(path))
    return sorted(int(name.stem) for name in names if name.parent == PurePosixPath(path) and name.stem.isdigit())


def _top(workspace: Workspace, path: str) -> int:
    return max(_generations(workspace, path), default=0)
