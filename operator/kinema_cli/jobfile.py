# SPDX-License-Identifier: Apache-2.0
"""The job file: the same one that kubectl applies."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kinema_api.job import JobSpec
from kinema_api.names import API_VERSION, JOB_KIND
from kinema_cli.errors import CommandError

LOCAL_NAMESPACE = "local"
"""The namespace of a job whose file names none."""


@dataclass(frozen=True, slots=True)
class JobFile:
    """A VideoTrainingJob as its author wrote it."""

    namespace: str
    name: str
    spec: JobSpec


def read(path: Path) -> JobFile:
    """The one job of a YAML file; objects of other kinds are left alone.

    Raises:
        CommandError: the file cannot be read, or holds no job, several, or one that is not valid.
    """
    return _job(path, manifest(path)[0])


def manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The one job of a YAML file as it is written, and the kinds of the other objects; `-` reads stdin.

    Raises:
        CommandError: the file cannot be read, or holds no job, several, or one without a name.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{path} is not YAML: {error}") from None
    objects = [item for item in documents if isinstance(item, dict)]
    jobs = [item for item in objects if item.get("kind") == JOB_KIND]
    if len(jobs) != 1:
        raise CommandError(f"{path} holds {len(jobs)} objects of kind {JOB_KIND}; give a file with one")
    found = jobs[0]
    if found.get("apiVersion") != API_VERSION:
        raise CommandError(f"{path}: apiVersion is {found.get('apiVersion')}; this kinema knows {API_VERSION}")
    metadata = found.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise CommandError(f"{path}: metadata.name is missing; a second run finds its work by the name")
    return found, [str(item.get("kind")) for item in objects if item is not found]


def _job(path: Path, found: dict[str, Any]) -> JobFile:
    name, namespace = found["metadata"]["name"], found["metadata"].get("namespace") or LOCAL_NAMESPACE
    if not isinstance(namespace, str):
        raise CommandError(f"{path}: metadata.namespace is no text")
    try:
        spec = JobSpec.model_validate(found.get("spec"))
    except ValidationError as error:
        faults = "; ".join(f"spec.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CommandError(f"{path}: {faults}") from None
    return JobFile(namespace=namespace, name=name, spec=spec)
