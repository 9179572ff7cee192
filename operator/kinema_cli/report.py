# SPDX-License-Identifier: Apache-2.0
"""`kinema report`: all that helps others to help, as a zip; Secrets are never read."""

from __future__ import annotations

import os
import platform
import zipfile
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from kinema_api.names import CONTAINER, LABEL_JOB_UID
from kinema_cli import clock, redact
from kinema_cli.cluster import FAILED, Where, find_job, run
from kinema_cli.doctor import look
from kinema_cli.errors import CommandError
from kinema_cli.printing import clean, note, say
from kinema_cli.view.doctor import doctor as doctor_lines
from kinema_cli.view.tree import tree
from kinema_cli.view.why import why
from kinema_cli.why import events_of
from kinema_kube import Kube
from kinema_kube.client import Object, Objects
from kinema_kube.errors import KubeError
from kinema_kube.resources import JOBS, LEASES, PODS, PYTORCH_JOBS, TRAINING_POOLS, Resource
from kinema_kube.streams import log_lines

LINES = 2000
"""Of each log."""
_PACKAGES = ("kinema-operator", "kinema-api", "kubernetes", "pydantic", "typer")
_KINEMA = "app.kubernetes.io/part-of=kinema"


@dataclass
class Bundle:
    """Files on their way into the zip."""

    files: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def text(self, name: str, said: str) -> None:
        """Add text."""
        self.files[name] = redact.text(said).rstrip("\n") + "\n"

    def objects(self, name: str, found: Sequence[Object]) -> None:
        """Add objects."""
        cleaned = [redact.data(clean(item)) for item in found]
        self.files[name] = yaml.safe_dump_all(cleaned, sort_keys=False, allow_unicode=True, width=120)

    async def read(self, what: str, work: Awaitable[Objects]) -> Objects:
        """What a request finds; nothing, and a note, where it may not be read."""
        try:
            return await work
        except KubeError as error:
            self.missing.append(f"{what}: {redact.text(str(error))}")
            return []


def report(where: Where, name: str | None, *, file: Path | None, system: str) -> int:
    """Write a report about a job, or about the installation alone."""
    now = clock.now()
    chosen = file or Path(f"kinema-report-{name or 'installation'}-{now:%Y%m%dT%H%M%SZ}.zip")
    if chosen.exists():
        raise CommandError(f"{chosen} exists already: name another file by --file")
    namespace = where.namespace

    async def work(kube: Kube) -> Bundle:
        bundle = Bundle()
        if name is not None:
            await _job(kube, bundle, await find_job(kube, name, namespace=namespace), now=now)
        await _installation(kube, bundle, system=system)
        bundle.text("doctor.txt", _plain(doctor_lines(await look(kube, namespace=namespace, system=system))))
        return bundle

    bundle = run(where, work)
    bundle.text("versions.txt", "\n".join(f"{key}: {value}" for key, value in versions().items()))
    if bundle.missing:
        bundle.text("left-out.txt", "\n".join(bundle.missing))
    _write(chosen, bundle.files)
    note(
        f"Secrets were not read, and what looks like one was taken out of {len(bundle.files)} files; look them through"
    )
    say(str(chosen))
    return 0


async def _job(kube: Kube, bundle: Bundle, job: Object, *, now: datetime) -> None:
    metadata = job["metadata"]
    namespace, labels = metadata["namespace"], {LABEL_JOB_UID: metadata["uid"]}
    events = await events_of(kube, job)
    if events is None:
        bundle.missing.append("events: you may not list them")
    bundle.objects("job.yaml", [job])
    bundle.objects("events.yaml", events or [])
    bundle.text("get.txt", _plain(tree(job, now=now)))
    bundle.text("why.txt", _plain(why(job, events or [], now=now)))
    for resource in (JOBS, PYTORCH_JOBS):
        children = kube.list(resource, namespace=namespace, labels=labels)
        bundle.objects(f"{resource.plural}.yaml", await bundle.read(resource.plural, children))
    pods = await bundle.read("pods", kube.list(PODS, namespace=namespace, labels=labels))
    bundle.objects("pods.yaml", pods)
    for pod in pods:
        await _log(kube, bundle, pod, container=CONTAINER, folder="logs")


async def _installation(kube: Kube, bundle: Bundle, *, system: str) -> None:
    pools = await bundle.read("pools", kube.list(TRAINING_POOLS))
    bundle.objects("pools.yaml", pools)
    deployments = Resource("apps", "v1", "deployments", "Deployment")
    for resource in (deployments, PODS, LEASES):
        labels = "" if resource is LEASES else _KINEMA
        found = await bundle.read(
            f"{resource.plural} of {system}", kube.list(resource, namespace=system, labels=labels)
        )
        bundle.objects(f"installation/{resource.plural}.yaml", found)
        for pod in found if resource is PODS else ():
            containers = (pod.get("spec") or {}).get("containers") or []
            for container in containers:
                await _log(kube, bundle, pod, container=container["name"], folder="installation/logs")


async def _log(kube: Kube, bundle: Bundle, pod: Object, *, container: str, folder: str) -> None:
    metadata = pod["metadata"]
    try:
        lines = log_lines(
            kube, metadata["name"], namespace=metadata["namespace"], container=container, follow=False, tail=LINES
        )
        said = "\n".join([line async for line in lines])
    except KubeError as error:
        bundle.missing.append(f"log of {metadata['name']}: {redact.text(str(error))}")
        return
    bundle.text(f"{folder}/{metadata['name']}.log", said)


def versions() -> Mapping[str, str]:
    """What the command itself is made of."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _plain(lines: Sequence[Any]) -> str:
    return "\n".join(str(line) for line in lines)


def _write(path: Path, files: Mapping[str, str]) -> None:
    """Write the zip, readable to nobody else, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                archive.writestr(f"{path.stem}/{name}", files[name])
        temporary.replace(path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}", code=FAILED) from None
    finally:
        temporary.unlink(missing_ok=True)
