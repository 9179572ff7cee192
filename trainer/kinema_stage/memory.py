# SPDX-License-Identifier: Apache-2.0
"""The container's memory, by the kernel's control group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
GIB = 1 << 30
UNLIMITED = 1 << 60
"""The first version of control groups writes a number above this one for no limit."""


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
        first = root / "memory"
        if first.is_dir():
            return cls(
                current=_number(first / "memory.usage_in_bytes"),
                peak=_number(first / "memory.max_usage_in_bytes"),
                limit=_number(first / "memory.limit_in_bytes", below=UNLIMITED),
                kills=_events(first / "memory.oom_control").get("oom_kill", 0),
            )
        return cls(
            current=_number(root / "memory.current"),
            peak=_number(root / "memory.peak"),
            limit=_number(root / "memory.max"),
            kills=_events(root / "memory.events").get("oom_kill", 0),
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


def _events(path: Path) -> dict[str, int]:
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def _number(path: Path, *, below: int | None = None) -> int | None:
    text = _read(path).strip()
    number = int(text) if text.isdigit() else None
    return None if number is None or (below is not None and number >= below) else number
