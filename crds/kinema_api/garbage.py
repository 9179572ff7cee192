# SPDX-License-Identifier: Apache-2.0
"""Which folders of a workspace nobody needs: pure, over a listing."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from kinema_api.base import Model
from kinema_api.inputs import Storage
from kinema_api.names import Stage, artifact_folder

CLAIM_SECONDS = 600
"""A claim beats every few seconds; one that beat within this time protects its folder whatever the minimum age."""
MIN_AGE_SECONDS = 86_400


class GarbageConfig(Model):
    """What to free, and what to spare."""

    storage: Storage
    """The workspace, as the process sees it."""
    keep: list[str] = Field(default_factory=list)
    """Folders that jobs refer to, relative to the workspace."""
    runs: bool = False
    """Free private folders too, but for those in `keep`."""
    min_age_seconds: int = Field(default=MIN_AGE_SECONDS, ge=0)
    """Folders in which something was written later than so long ago stay."""
    dry_run: bool = True
    """Only say what would go."""


class Found(Model):
    """One folder of the workspace."""

    folder: str
    """Relative to the workspace."""
    size: int
    """Bytes of its files."""
    newest: float
    """When something was last written to it, Unix time."""
    published: bool
    """Whether its manifest is there."""
    prepare: str | None = None
    """The prepare key that its manifest names (features only)."""
    claimed: float | None = None
    """When its claim last beat, Unix time."""


class Removal(Model):
    """A folder that goes."""

    folder: str
    size: int
    why: str


class GarbageResult(Model):
    """What was done."""

    removed: list[Removal]
    """What went, or would go."""
    kept: int
    """Folders that stay."""
    dry_run: bool

    @property
    def size(self) -> int:
        """Bytes that are freed."""
        return sum(removal.size for removal in self.removed)


def choose(
    found: Iterable[Found], *, keep: Iterable[str], runs: bool, min_age_seconds: float, now: float
) -> list[Removal]:
    """The folders that go.

    Args:
        found: artifacts and private folders of the workspace.
        keep: folders that jobs refer to.
        runs: whether private folders may go.
        min_age_seconds: age of the newest file under which a folder stays.
        now: Unix time, by the clock that gave `found` its times.
    """
    everything, spared = list(found), set(keep)
    going = [
        item
        for item in everything
        if item.folder not in spared
        and (runs or not is_run(item.folder))
        and now - item.newest >= min_age_seconds
        and (item.claimed is None or now - item.claimed >= max(CLAIM_SECONDS, min_age_seconds))
    ]
    gone = {item.folder for item in going}
    # What stays needs the clips it was made of.
    needed = {
        artifact_folder(Stage.PREPARE, item.prepare) for item in everything if item.prepare and item.folder not in gone
    }
    return [Removal(folder=item.folder, size=item.size, why=_why(item)) for item in going if item.folder not in needed]


def is_run(folder: str) -> bool:
    """Whether it is the private folder of a job."""
    return folder.startswith("jobs/")


def _why(item: Found) -> str:
    if is_run(item.folder):
        return "its job is gone"
    return "no job refers to it" if item.published else "never finished"
