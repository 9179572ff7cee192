# SPDX-License-Identifier: Apache-2.0
"""`kinema plan`: reads the job and the pools, and says what the job will take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kinema_api.forecast import Pace, forecast
from kinema_api.names import POOL_KIND
from kinema_api.pool import PoolSpec
from kinema_api.refusal import PlanError
from kinema_cli import jobfile
from kinema_cli.cluster import Where, run
from kinema_cli.commands.options import Output
from kinema_cli.errors import CommandError
from kinema_cli.printing import console, say, show, structured, width
from kinema_cli.view import plan as view
from kinema_kube.resources import TRAINING_POOLS


def plan(where: Where, file: Path, *, pool_files: tuple[Path, ...], pace: Pace, output: Output) -> int:
    """Say what a job will take; 64 when it cannot run."""
    job = jobfile.read(file)
    pools = {name: spec for path in pool_files for name, spec in pools_of(path).items()} or _cluster_pools(where)
    try:
        found = forecast(job.spec, pools, pace)
    except PlanError as error:
        raise CommandError(f"{error} ({error.reason})") from None
    if output in (Output.JSON, Output.YAML):
        say(structured(found.wire(), output))
        return 0
    screen = console()
    show(view.plan(found, name=job.name, width=width(screen)), screen=screen)
    return 0


def _cluster_pools(where: Where) -> Mapping[str, PoolSpec]:
    found = run(where, lambda kube: kube.list(TRAINING_POOLS))
    return {pool["metadata"]["name"]: PoolSpec.stored(pool["spec"]) for pool in found}


def pools_of(path: Path) -> dict[str, PoolSpec]:
    """The TrainingPools of a file.

    Raises:
        CommandError: the file cannot be read, or holds no pool or one that is not valid.
    """
    try:
        documents: list[Any] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{path} is not YAML: {error}") from None
    pools = [item for item in documents if isinstance(item, dict) and item.get("kind") == POOL_KIND]
    if not pools:
        raise CommandError(f"{path} holds no object of kind {POOL_KIND}")
    try:
        return {pool["metadata"]["name"]: PoolSpec.model_validate(pool.get("spec")) for pool in pools}
    except ValidationError as error:
        faults = "; ".join(f"spec.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CommandError(f"{path}: {faults}") from None
    except (KeyError, TypeError):
        raise CommandError(f"{path}: a pool has no metadata.name") from None
