# SPDX-License-Identifier: Apache-2.0
"""buildah with a storage of its own under the cache, so that nothing else on the machine is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kinema_images.errors import ImageError

# The Dockerfiles' cache mount: `--mount=type=cache,id=kinema-uv`.
CACHE_ID = "kinema-uv"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def ca_bundle(environment: Mapping[str, str]) -> str | None:
    """The machine's CA certificates, which a build's downloads shall trust."""
    named = (environment.get(variable) for variable in CA_VARIABLES)
    return next((path for path in (*named, CA_BUNDLE) if path and os.path.isfile(path)), None)


@dataclass(frozen=True, slots=True)
class Buildah:
    """One image storage."""

    root: Path
    say: Callable[[str], None]

    @property
    def _prefix(self) -> list[str]:
        return ["buildah", "--root", str(self.root / "storage"), "--runroot", str(self.root / "run")]

    @property
    def _scratch(self) -> Path:
        return self.root / "tmp"

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self._scratch)}

    def share_cache(self, uv_cache: Path) -> None:
        """Let builds use this machine's uv cache: what is there is not fetched again."""
        uv_cache.mkdir(parents=True, exist_ok=True)
        # buildah keeps the folder of a cache mount under TMPDIR, in buildah-cache, by the mount's id.
        link = self._scratch / "buildah-cache" / CACHE_ID
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.readlink() == uv_cache:
            return
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(uv_cache)

    def has(self, reference: str) -> bool:
        """Whether the storage has this image."""
        command = [*self._prefix, "inspect", "--type", "image", "--format", "{{.FromImageID}}", reference]
        return subprocess.run(command, env=self._environment, capture_output=True).returncode == 0

    def references(self) -> list[str]:
        """Every named image of the storage."""
        images = json.loads(self._read("images", "--json") or "null") or []
        return sorted(name for image in images for name in image.get("names") or ())

    def build(
        self,
        dockerfile: Path,
        *,
        context: Path,
        tag: str,
        log: Path,
        arguments: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> None:
        """Build one image; what it says goes to `log`. A failed build leaves no container behind."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*self._prefix, "bud", "--isolation", "chroot", "--layers", "--format", "oci", "--force-rm"]
        command += ["--no-cache"] if fresh else []
        if bundle := ca_bundle(os.environ):
            command += ["--secret", f"id=ca,src={bundle}"]
        for name, value in (arguments or {}).items():
            command += ["--build-arg", f"{name}={value}"]
        command += ["--file", str(dockerfile), "--tag", tag, str(context)]
        with self._clean_on_failure():
            self._stream(command, log)

    def export(self, reference: str, layout: Path) -> None:
        """Add an image to an OCI folder, uncompressed; layers that the folder has are not written again."""
        layout.mkdir(parents=True, exist_ok=True)
        storage = f"[overlay@{self.root / 'storage'}+{self.root / 'run'}]"
        # buildah's own push packs every layer it writes to an OCI folder: minutes for what never leaves the machine.
        skopeo(
            "--dest-oci-accept-uncompressed-layers",
            f"containers-storage:{storage}{reference}",
            f"oci:{layout}:{reference}",
            environment=self._environment,
        )

    def drop(self, *references: str) -> None:
        """Remove images; a layer that another image has stays, and so does the build cache of what is left."""
        if references:
            self._read("rmi", "--force", *references)

    def prune(self) -> None:
        """Remove build steps that no named image came from."""
        self._read("rmi", "--prune")

    def _read(self, *arguments: str) -> str:
        done = subprocess.run([*self._prefix, *arguments], env=self._environment, capture_output=True, text=True)
        if done.returncode:
            raise ImageError(f"buildah {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
        return done.stdout

    def _stream(self, command: list[str], log: Path) -> None:
        """Run, keep all output in `log` and say each step as it begins."""
        tail: deque[str] = deque(maxlen=25)
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout
        try:
            with log.open("w") as record:
                for line in process.stdout:
                    record.write(line)
                    tail.append(line.rstrip())
                    if step := step_of(line):
                        self.say(f"  {time.monotonic() - began:5.0f} s  {step}")
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
        if process.returncode:
            raise ImageError("\n".join([f"the build failed; {log} ends with:", *tail]))

    @contextlib.contextmanager
    def _clean_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # Only builds use this storage, one at a time: every container in it is the failed build's.
            subprocess.run([*self._prefix, "rm", "--all"], env=self._environment, capture_output=True)
            for left in self._scratch.iterdir():
                if left.name != "buildah-cache":
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
            raise


def skopeo(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Copy one image from place to place."""
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ImageError(f"skopeo could not copy {arguments[-2]} to {arguments[-1]}: {done.stderr.strip()}")


def step_of(line: str, *, width: int = 110) -> str | None:
    """`STEP 3/9: RUN ...` or `[1/2] STEP 3/9: ...` as one short line; None for any other output."""
    if "STEP " not in line[:20]:
        return None
    text = " ".join(line.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
