# SPDX-License-Identifier: Apache-2.0
"""What a Dockerfile is made of, and the key that changes when any of it does."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from kinema_images.errors import ImageError

KEY_LENGTH = 16
# As in .dockerignore: what tools leave beside the sources.
IGNORED = ("__pycache__", ".*_cache", "*.egg-info", "*.pyc")
BASE_ARG = re.compile(r"^ARG\s+BASE_IMAGE=(\S+)$", re.MULTILINE)
CONTINUATION = re.compile(r"\\\n")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image as its Dockerfile tells it."""

    name: str
    dockerfile: Path
    base: str
    sources: tuple[str, ...]


def read(folder: Path) -> Recipe:
    """The recipe in `folder`, which is named after its image."""
    dockerfile = folder / "Dockerfile"
    text = dockerfile.read_text()
    found = BASE_ARG.search(text)
    if not found:
        raise ImageError(f"{dockerfile} has no line `ARG BASE_IMAGE=...`: every image must let its base be chosen")
    return Recipe(name=folder.name, dockerfile=dockerfile, base=found[1], sources=copied(text))


def read_all(repository: Path) -> dict[str, Recipe]:
    found = sorted((repository / "images").glob("*/Dockerfile"))
    return {dockerfile.parent.name: read(dockerfile.parent) for dockerfile in found}


def copied(dockerfile: str) -> tuple[str, ...]:
    """The paths of the repository that a Dockerfile copies; what it copies from its other stages is none."""
    sources: set[str] = set()
    for line in CONTINUATION.sub(" ", dockerfile).splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0].upper() != "COPY" or any(word.startswith("--from=") for word in words):
            continue
        sources.update(word for word in words[1:-1] if not word.startswith("--"))
    return tuple(sorted(sources))


def key(recipe: Recipe, *, repository: Path, base: str) -> str:
    """Changes whenever the Dockerfile, a file it copies, or the base does."""
    digest = hashlib.sha256()
    _add(digest, "base", base.encode())
    _add(digest, "Dockerfile", recipe.dockerfile.read_bytes())
    for file in _files(recipe.sources, repository):
        mode = b"x" if file.stat().st_mode & 0o100 else b"-"
        _add(digest, str(file.relative_to(repository)), mode + file.read_bytes())
    return digest.hexdigest()[:KEY_LENGTH]


def snapshot(recipe: Recipe, *, repository: Path, target: Path) -> Recipe:
    """Copy all that the image is made of, so that an edit during the build is wholly in or wholly out."""
    for file in (recipe.dockerfile, *_files(recipe.sources, repository)):
        copy = target / file.relative_to(repository)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    return replace(recipe, dockerfile=target / recipe.dockerfile.relative_to(repository))


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    """Lengths are part of it, so that no two sets of files read the same."""
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)


def _files(sources: Iterable[str], repository: Path) -> Iterator[Path]:
    for source in sources:
        path = repository / source
        if path.is_file():
            yield path
        elif path.is_dir():
            for inner in sorted(path.rglob("*")):
                if inner.is_file() and not _ignored(inner.relative_to(repository)):
                    yield inner
        else:
            raise ImageError(f"a Dockerfile copies {source}, which is not there")


def _ignored(path: Path) -> bool:
    return any(fnmatch(part, pattern) for part in path.parts for pattern in IGNORED)
