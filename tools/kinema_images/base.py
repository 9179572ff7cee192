# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for public base images, made from Debian's archive where no image registry is at hand."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kinema_images import apt
from kinema_images.buildah import Buildah
from kinema_images.errors import ImageError
from kinema_images.paths import cache

PREFIX = "localhost/kinema-base"


@dataclass(frozen=True, slots=True)
class Debian:
    """A minimal Debian root file system."""

    suite: str
    packages: tuple[str, ...]
    excluded: tuple[str, ...] = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

    @property
    def options(self) -> tuple[str, ...]:
        excluded = [f"--dpkgopt=path-exclude={path}" for path in self.excluded]
        kept = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
        return ("--variant=minbase", f"--include={','.join(self.packages)}", *excluded, kept)

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self.suite, self.options)).encode()).hexdigest()[:16]


STAND_INS = {
    "python:3.13-slim-trixie": Debian(
        suite="trixie",
        packages=("ca-certificates", "netbase", "python3", "python3-venv", "tzdata"),
    ),
}


def reference(image: str) -> str:
    """What the stand-in for `image` is called here."""
    return f"{PREFIX}/{image.replace(':', '-')}:{STAND_INS[image].key}"


def ensure(image: str, buildah: Buildah, *, fresh: bool = False) -> str:
    """Make the stand-in for `image` unless it is there; returns its reference."""
    name = reference(image)
    if buildah.has(name) and not fresh:
        return name
    with tempfile.TemporaryDirectory(dir=cache(), prefix="base-") as folder:
        archive = Path(folder) / "base.tar"
        _bootstrap(STAND_INS[image], archive)
        dockerfile = Path(folder) / "Dockerfile"
        dockerfile.write_text('FROM scratch\nADD base.tar /\nCMD ["python3"]\n')
        buildah.build(dockerfile, context=Path(folder), tag=name, log=cache() / "log" / "image-base-commit.log")
    return name


def _bootstrap(debian: Debian, archive: Path) -> None:
    log = cache() / "log" / "image-base.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", *debian.options, debian.suite, str(archive), *apt.sources_for(debian.suite)]
    with log.open("w") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise ImageError(f"mmdebstrap could not make the base image ({debian.suite}); {log} ends with:\n{tail}")
