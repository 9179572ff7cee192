# SPDX-License-Identifier: Apache-2.0
"""The container's memory, by the kernel's control group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Memory:
    """What a container uses; None where the kernel does not say."""

    current: int | None
    peak: int | None
    limit: int | None
    """None: as much as the node has."""
    kills: int
    """Processes that the kernel's OOM killer has ended here."""

    @classmethod
    def read(cls, root: Path = CGROUP) -> Memory:
        """The figures of this container."""
        events = dict(line.split() for line in _read(root / "memory.events").splitlines())
        return cls(
            current=_number(root / "memory.current"),
            peak=_number(root / "memory.peak"),
            limit=_number(root / "memory.max"),
            kills=int(events.get("oom_kill", 0)),
        )

    def __str__(self) -> str:
        """For people."""
        known = {"in use": self.current, "peak": self.peak, "limit": self.limit}
        return ", ".join(f"{name} {value / GIB:.2f} GiB" for name, value in known.items() if value is not None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None
