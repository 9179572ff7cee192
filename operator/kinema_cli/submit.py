# SPDX-License-Identifier: Apache-2.0
"""Creates a job from its file."""

from __future__ import annotations

from pathlib import Path

from kinema_api.names import API_VERSION
from kinema_cli import jobfile
from kinema_cli.cluster import FAILED, MANAGER, Where, run
from kinema_cli.commands.options import Output
from kinema_cli.errors import CommandError
from kinema_cli.printing import clean, names, note, say, structured
from kinema_cli.show import stay
from kinema_kube import Kube
from kinema_kube.client import Object
from kinema_kube.errors import AlreadyExistsError, NotFoundError
from kinema_kube.resources import VIDEO_TRAINING_JOBS


def submit(where: Where, file: Path, *, name: str | None, follow_it: bool, dry_run: bool, output: Output) -> int:
    """Create a job, and follow it if asked to; the exit code."""
    body, others = jobfile.manifest(file)
    metadata = {**body["metadata"], **({"name": name} if name else {})}
    asked, written = where.named, metadata.get("namespace")
    if asked and written and asked != written:
        raise CommandError(f"{file} is for namespace {written}: leave out --namespace {asked}, or change the file")
    metadata["namespace"] = asked or written or where.namespace
    for kind in others:
        note(f"{file}: its {kind} was left alone; kubectl apply -f {file} applies all of it")
    job = {"apiVersion": API_VERSION, **body, "metadata": metadata}
    created = run(where, lambda kube: _create(kube, job, dry_run=dry_run))
    there = Where(where.kubeconfig, where.context, asked or written)
    if output in (Output.JSON, Output.YAML):
        say(structured(clean(created), output))
    elif output is Output.NAME:
        say(names(VIDEO_TRAINING_JOBS, [created])[0])
    else:
        _tell(created["metadata"], there, dry_run=dry_run, follow_it=follow_it)
    if follow_it and not dry_run:
        return stay(there, created["metadata"]["name"], namespace=metadata["namespace"])
    return 0


def _tell(metadata: Object, where: Where, *, dry_run: bool, follow_it: bool) -> None:
    about = f"job {metadata['namespace']}/{metadata['name']}"
    if dry_run:
        say(f"{about} would be accepted; nothing was created")
        return
    say(f"{about} created")
    if not follow_it:
        say(f"see it run: kinema get {metadata['name']} --watch{where.options}")


async def _create(kube: Kube, job: Object, *, dry_run: bool) -> Object:
    metadata = job["metadata"]
    try:
        return await kube.create(VIDEO_TRAINING_JOBS, job, manager=MANAGER, dry_run=dry_run)
    except AlreadyExistsError:
        raise CommandError(
            f"there is a job {metadata['name']} in namespace {metadata['namespace']} already, and a job's spec is"
            f" fixed: choose another name by --name (it reuses every artifact that still fits), or kubectl delete vtj"
            f" {metadata['name']}",
            code=FAILED,
        ) from None
    except NotFoundError as error:
        if error.details.get("kind") == "namespaces":
            raise CommandError(
                f"there is no namespace {metadata['namespace']}: -n names another", code=FAILED
            ) from None
        raise
