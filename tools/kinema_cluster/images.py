# SPDX-License-Identifier: Apache-2.0
"""Bringing images into the cluster's containerd, layer by layer, only those it does not have."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from kinema_cluster.errors import ClusterError
from kinema_cluster.oci import IMAGE_NAME
from kinema_cluster.paths import cache

REF_NAME = "org.opencontainers.image.ref.name"
CTR = ("ctr", "--namespace", "k8s.io")
CONTENT = Path("io.containerd.content.v1.content/blobs/sha256")
LINKED_FROM = 1 << 20
COPY_AT_ONCE = 1 << 20
PARENTS = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}


@dataclass(frozen=True, slots=True)
class Blob:
    """One content-addressed file of an image."""

    digest: str
    size: int
    open: Callable[[], IO[bytes]]
    path: Path | None = None
    """Where it lies as a file of its own."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An OCI layout: a folder, or a tar of it."""

    index: Mapping[str, Any]
    blobs: Mapping[str, Blob]

    def blob(self, digest: str) -> Blob:
        if digest not in self.blobs:
            raise ClusterError(f"the archive is incomplete: {digest} is missing")
        return self.blobs[digest]


def normalized(name: str) -> str:
    """The name as the kubelet writes it: `a/b` is docker.io/a/b:latest."""
    domain, slash, _ = name.partition("/")
    if not slash or not ("." in domain or ":" in domain or domain == "localhost"):
        name = f"docker.io/{name}" if slash else f"docker.io/library/{name}"
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"


def named_images(index: Mapping[str, Any], name: str | None) -> dict[str, dict[str, Any]]:
    """The images of an index by their full names, which are also written where containerd reads them.

    `name` is what to call the image, where there is just one.
    """
    found = {}
    for entry in index["manifests"]:
        annotations = dict(entry.get("annotations") or {})
        own = name if len(index["manifests"]) == 1 else None
        called = own or annotations.get(IMAGE_NAME) or annotations.get(REF_NAME)
        if called:
            full = normalized(called)
            found[full] = {**entry, "annotations": annotations | {IMAGE_NAME: full}}
    if not found:
        raise ClusterError("the archive does not say what its image is called: give the name with --name")
    return found


def reachable(archive: Archive, entries: Iterable[Mapping[str, Any]]) -> set[str]:
    """The digests of all that these images consist of; a folder may hold layers of other images as well."""
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        entry = waiting.pop()
        digest = entry["digest"]
        if digest in found:
            continue
        found.add(digest)
        if entry["mediaType"] in PARENTS:
            with archive.blob(digest).open() as file:
                content = json.load(file)
            waiting += content.get("manifests", [])
            waiting += [content["config"], *content["layers"]] if "layers" in content else []
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The OCI layout at `path`."""
    if path.is_dir():
        yield Archive(index=json.loads((path / "index.json").read_text()), blobs=_folder_blobs(path))
        return
    try:
        with tarfile.open(path, "r:") as archive:
            members = {member.name.removeprefix("./"): member for member in archive}
            if "index.json" not in members:
                raise ClusterError(f"{path} is no OCI archive (no index.json): write it with oci-archive:{path}")
            text = _member(archive, members["index.json"]).read()
            yield Archive(index=json.loads(text), blobs=_tar_blobs(archive, members))
    except tarfile.ReadError as error:
        raise ClusterError(f"{path} is no uncompressed tar: {error}") from error


def load(source: str | Path, *, socket: Path, store: Path, name: str | None = None) -> list[str]:
    """Bring the images of an OCI archive, an OCI folder or buildah's storage into containerd; returns their names.

    `store` is containerd's root folder.
    """
    path = Path(source)
    if path.exists():
        with opened(path) as archive:
            return _load(archive, socket=socket, store=store, name=name)
    with _pushed(str(source)) as folder, opened(folder) as archive:
        return _load(archive, socket=socket, store=store, name=name or str(source))


def ctr(socket: Path, *arguments: str) -> str:
    """Run ctr on the cluster's containerd and return what it prints."""
    command = [*CTR, "--address", str(socket), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"ctr {' '.join(arguments[:3])} failed: {done.stderr.strip()}")
    return done.stdout


def loaded(socket: Path) -> dict[str, str]:
    """Names and digests of the images that containerd has."""
    lines = ctr(socket, "images", "list").splitlines()[1:]
    return {fields[0]: fields[2] for line in lines if len(fields := line.split()) > 2}


def _load(archive: Archive, *, socket: Path, store: Path, name: str | None) -> list[str]:
    wanted = named_images(archive.index, name)
    have = loaded(socket)
    new = [entry for image, entry in wanted.items() if have.get(image) != entry["digest"]]
    if new:
        needed = [archive.blob(digest) for digest in sorted(reachable(archive, new))]
        for blob in needed:
            _link(blob, socket=socket, store=store)
        try:
            _import(new, needed, socket=socket, omit=_present(socket))
        except ClusterError:
            # Content that no image refers to yet may be collected under our hands: send all of it.
            _import(new, needed, socket=socket, omit=set())
    return list(wanted)


def _present(socket: Path) -> set[str]:
    return set(ctr(socket, "content", "list", "--quiet").split())


def _link(blob: Blob, *, socket: Path, store: Path) -> None:
    """Hand a large file over as a hard link: containerd takes content that is in its store already without a copy.

    Where links cannot be made nothing happens, and the file is sent.
    """
    if blob.path is None or blob.size < LINKED_FROM:
        return
    inside = store / CONTENT / blob.digest.removeprefix("sha256:")
    try:
        os.link(blob.path, inside)
    except OSError:
        return
    command = [*CTR, "--address", str(socket), "content", "ingest"]
    command += ["--expected-digest", blob.digest, "--expected-size", str(blob.size), f"kinema-{blob.digest}"]
    with blob.open() as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"ctr content ingest failed: {done.stderr.strip()}")


def _import(entries: list[dict[str, Any]], blobs: list[Blob], *, socket: Path, omit: set[str]) -> None:
    command = [*CTR, "--address", str(socket), "images", "import", "-"]
    index = {"schemaVersion": 2, "manifests": entries}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        assert process.stdin
        # A broken pipe means that ctr gave up: its own words say why.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            _stream(pipe, index, [blob for blob in blobs if blob.digest not in omit])
        if process.wait():
            output.seek(0)
            raise ClusterError(f"ctr images import failed: {output.read().decode().strip()}")


def _stream(pipe: IO[bytes], index: Mapping[str, Any], blobs: list[Blob]) -> None:
    """Write an OCI archive; by hand, for tarfile copies 16 KiB at a time."""
    for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
        data = json.dumps(value).encode()
        _send(pipe, name, len(data), io.BytesIO(data))
    for blob in blobs:
        with blob.open() as file:
            _send(pipe, "blobs/" + blob.digest.replace(":", "/"), blob.size, file)
    pipe.write(bytes(2 * tarfile.BLOCKSIZE))


def _send(pipe: IO[bytes], name: str, size: int, content: IO[bytes]) -> None:
    header = tarfile.TarInfo(name)
    header.size = size
    pipe.write(header.tobuf())
    shutil.copyfileobj(content, pipe, COPY_AT_ONCE)
    pipe.write(bytes(-size % tarfile.BLOCKSIZE))


def _folder_blobs(path: Path) -> dict[str, Blob]:
    found = {}
    for file in (path / "blobs" / "sha256").iterdir():
        digest = f"sha256:{file.name}"
        found[digest] = Blob(digest=digest, size=file.stat().st_size, open=partial(_opened, file), path=file)
    return found


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _tar_blobs(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> dict[str, Blob]:
    found = {}
    for name, member in members.items():
        if name.startswith("blobs/sha256/") and member.isfile():
            digest = "sha256:" + name.rpartition("/")[2]
            found[digest] = Blob(digest=digest, size=member.size, open=partial(_member, archive, member))
    return found


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(member)
    if found is None:
        raise ClusterError(f"{member.name} in the archive is no file")
    return found


@contextlib.contextmanager
def _pushed(image: str) -> Iterator[Path]:
    """An image of buildah's storage as an OCI folder, uncompressed: gzip would cost more than all the rest."""
    if not shutil.which("buildah"):
        raise ClusterError(f"{image} is no file, and without buildah it cannot be an image either")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="push-") as folder:
        command = ["buildah", "push", "--quiet", "--disable-compression", image, f"oci:{folder}:{image}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"{image} is neither a file nor an image of buildah's storage: {done.stderr.strip()}")
        yield Path(folder)
