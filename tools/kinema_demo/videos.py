# SPDX-License-Identifier: Apache-2.0
"""The folder of captioned videos that the demo learns from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kinema_cluster.paths import cache
from kinema_demo.errors import DemoError
from kinema_demo.steps import Say

TOOL = Path(__file__).resolve().parent.parent / "demo-videos"
SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi"})


def bundled(say: Say) -> Path:
    """The real videos of the demo, fetched once."""
    folder = cache() / "videos"
    say("fetching the demo's videos")
    done = subprocess.run([str(TOOL)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    if done.returncode:
        raise DemoError(f"the demo's videos could not be fetched: {done.stdout.strip()}")
    return folder


def check(folder: Path) -> list[Path]:
    """The videos of a folder, each with its caption.

    Raises:
        DemoError: there is none, or one has no caption.
    """
    if not folder.is_dir():
        raise DemoError(f"{folder} is no folder: VIDEOS names a folder with NAME.mp4 and NAME.txt")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DemoError(f"{folder} holds no video ({', '.join(sorted(SUFFIXES))})")
    bare = [path for path in found if not any(path.with_suffix(end).is_file() for end in (".txt", ".json"))]
    if bare:
        names = ", ".join(path.name for path in bare[:5])
        raise DemoError(f"no caption for {names}: write it into NAME.txt beside the video")
    return found
