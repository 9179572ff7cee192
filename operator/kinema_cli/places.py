# SPDX-License-Identifier: Apache-2.0
"""Where claims and Secrets of a job lie on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from kinema_api.inputs import Location
from kinema_api.job import JobSpec
from kinema_api.locations import check_address, claim_of
from kinema_api.mounts import claims, locations
from kinema_cli.errors import CommandError

AnyLocation = TypeVar("AnyLocation", bound=Location)


def folders(pairs: Iterable[str], *, option: str) -> dict[str, Path]:
    """The folders that `NAME=/folder` options name.

    Raises:
        CommandError: one is written otherwise, comes twice, or names no folder.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise CommandError(f"{option} {pair}: write {option} NAME=/folder")
        if name in found:
            raise CommandError(f"{option} {name} is given twice")
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise CommandError(f"{option} {pair}: {folder} is no folder")
        found[name] = folder
    return found


def localized(spec: JobSpec, *, volumes: Mapping[str, Path], secrets: Iterable[str], own: Iterable[str]) -> JobSpec:
    """The job with local addresses.

    Args:
        spec: the job.
        volumes: the folder of each claim.
        secrets: names of the Secrets that have a folder.
        own: schemes for which the user's own credentials serve where a Secret has no folder.

    Raises:
        CommandError: a claim or a Secret has no folder here.
    """
    try:
        for location in locations(spec):
            check_address(location.uri)
        missing = [name for name in claims(spec) if name not in volumes]
    except ValueError as error:
        raise CommandError(str(error)) from None
    if missing:
        options = " ".join(f"--volume {name}=/folder" for name in missing)
        raise CommandError(f"the job's claims {', '.join(missing)} have no folder on this machine: add {options}")
    here, without = set(secrets), set(own)
    lacking = sorted(
        {
            location.secret_ref.name
            for location in locations(spec)
            if location.secret_ref is not None
            and location.secret_ref.name not in here
            and (scheme(location.uri) in ("s3", "hf") and scheme(location.uri) not in without)
        }
    )
    if lacking:
        options = " ".join(f"--secret {name}=/folder" for name in lacking)
        raise CommandError(
            f"the job's Secrets {', '.join(lacking)} are not on this machine: add {options} (a file a key, for instance"
            " AWS_ACCESS_KEY_ID), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or HF_TOKEN"
        )
    return spec.model_copy(
        update={
            "dataset": place(spec.dataset, volumes, here),
            "storage": place(spec.storage, volumes, here),
            "model": spec.model.model_copy(update={"weights": place(spec.model.weights, volumes, here)}),
        }
    )


def place(location: AnyLocation, volumes: Mapping[str, Path], secrets: Iterable[str]) -> AnyLocation:
    """A location with its local address; a Secret without a folder is left out."""
    claim = claim_of(location.uri)
    update: dict[str, object] = {}
    if claim is not None:
        update["uri"] = f"file://{volumes[claim.name]}/{claim.path}".rstrip("/")
    if location.secret_ref is not None and location.secret_ref.name not in set(secrets):
        update["secret_ref"] = None
    return location.model_copy(update=update)


def scheme(uri: str) -> str:
    """What stands before `://`."""
    return uri.partition("://")[0]


def own_credentials(environment: Mapping[str, str], *, home: Path) -> set[str]:
    """Schemes for which the user is logged in already."""
    aws = any(environment.get(name) for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"))
    hub = bool(environment.get("HF_TOKEN")) or (home / ".cache/huggingface/token").is_file()
    found = {"s3": aws or (home / ".aws/credentials").is_file() or (home / ".aws/config").is_file(), "hf": hub}
    return {name for name, there in found.items() if there}
