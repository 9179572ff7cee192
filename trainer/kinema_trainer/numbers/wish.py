# SPDX-License-Identifier: Apache-2.0
"""A wish to profile some steps of a running training: how it is written, and how it reaches the processes.

It is the annotation `kinema.dev/profile` of the job, which the server's answers to progress posts carry, or the text of
a file named `profile` in the run's folder of a workspace on a volume. The train stage lays it into the folder that it
shares with the training processes of its machine, and they look there after each step.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from kinema_api.exits import StageError
from kinema_api.keys import digest
from kinema_stage.workspace import FolderWorkspace, Workspace

logger = logging.getLogger(__name__)

FILE = "profile"
"""In the run's folder, what somebody wrote; in the shared one, what the processes read."""
FOLDER = "profiles"
"""In the run's folder: what was found."""
DEFAULT_STEPS, MAX_STEPS = 3, 100


class WishError(ValueError):
    """The text is no wish."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to profile."""

    steps: int = DEFAULT_STEPS
    """Whole steps, from the next one on."""
    ranks: tuple[int, ...] = (0,)
    """Which processes of the first node."""
    memory: bool = True
    """Record every allocation, and leave a snapshot of the device's memory."""
    stacks: bool = False
    """Record the Python stack of every operation: slow."""
    name: str = ""
    """A key of the text, by which it is known that a wish was fulfilled."""

    @classmethod
    def parse(cls, text: str) -> Wish:
        """The wish of a text such as `steps=3,ranks=0+1,memory=off`; empty is all defaults.

        Raises:
            WishError: with what may be written.
        """
        fields: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = part.partition("=")
            fields[key.strip()] = value.strip()
        # `id` only makes a text another one, so that the same may be wished for again.
        unknown = set(fields) - {"steps", "ranks", "memory", "stacks", "id"}
        try:
            if unknown:
                raise ValueError(f"unknown {', '.join(sorted(unknown))}")
            wish = cls(
                steps=int(fields.get("steps", DEFAULT_STEPS)),
                ranks=tuple(sorted({int(rank) for rank in fields.get("ranks", "0").split("+")})),
                memory=_flag(fields.get("memory", "on")),
                stacks=_flag(fields.get("stacks", "off")),
                name=digest(text.strip())[:8],
            )
        except ValueError as error:
            raise WishError(f"{text!r}: {error}; write for instance steps=3,ranks=0+1,memory=on,stacks=off") from None
        if not 1 <= wish.steps <= MAX_STEPS or min(wish.ranks) < 0:
            raise WishError(f"{text!r}: steps are 1 to {MAX_STEPS}, ranks are not negative")
        return wish

    def folder(self, step: int) -> str:
        """Where the result lies, relative to the run's folder: of the wish whose first profiled step is `step`."""
        return f"{FOLDER}/step-{step:08}-{self.name}"


def _flag(value: str) -> bool:
    if value not in ("on", "off"):
        raise ValueError(f"{value!r} is neither on nor off")
    return value == "on"


def lay(folder: Path, wish: Wish) -> None:
    """Leave a wish for the processes that share a folder with the stage."""
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(json.dumps(asdict(wish)), encoding="utf-8")
    temporary.rename(folder / FILE)


def laid(path: Path) -> Wish:
    """The wish in a file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Wish(**{**fields, "ranks": tuple(fields["ranks"])})


class Wishes:
    """The stage's side: takes wishes from the server's answers and from the run's folder, each once.

    Args:
        workspace: where the run's folder is.
        run: that folder.
    """

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._workspace = workspace
        self._run = run
        self._heard = ""
        self._new: str | None = None
        self._failed = False
        self._lock = threading.Lock()
        self._file = workspace.local(f"{run}/{FILE}") if isinstance(workspace, FolderWorkspace) else None

    def hear(self, text: str) -> None:
        """The server passes a wish on, again with each answer. Called by any thread."""
        with self._lock:
            if text != self._heard:
                self._heard = self._new = text

    def take(self) -> Wish | None:
        """The wish that has not been taken yet, if there is one. A workspace that cannot be read just now has none."""
        with self._lock:
            text, self._new = self._new, None
        try:
            found = self._from_file() if text is None else self._parsed(text, done=self._fulfilled())
        except (OSError, StageError) as error:
            # Nobody's training ends for the sake of a profile.
            if not self._failed:
                logger.warning("whether somebody wants a profile cannot be seen now: %s", error)
            self._failed = True
            with self._lock:
                self._new = self._new or text
            return None
        self._failed = False
        return found

    def _from_file(self) -> Wish | None:
        if self._file is None:
            return None
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, IsADirectoryError):
            return None
        self._file.unlink(missing_ok=True)
        return self._parsed(text, done=())

    def _parsed(self, text: str, *, done: Collection[str]) -> Wish | None:
        try:
            wish = Wish.parse(text)
        except WishError as error:
            logger.warning("nothing is profiled: %s", error)
            return None
        # An annotation stays: an attempt that follows must not fulfil it again.
        return None if wish.name in done else wish

    def _fulfilled(self) -> set[str]:
        """The names of wishes that have a result."""
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            for path in self._workspace.sizes(f"{self._run}/{FOLDER}"):
                place = path.removeprefix(f"{self._run}/{FOLDER}/").partition("/")[0]
                found.add(place.rpartition("-")[2])
        return found
