# SPDX-License-Identifier: Apache-2.0
"""Whether the installed CRDs are this operator's own.

With older ones the API server drops the fields of the status that it does not know, and a stage is run again for want
of them; newer ones let in what this operator would not heed. So it does not work before they are its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from functools import cache

from kinema_api.crd import ANNOTATION_DIGEST, ANNOTATION_VERSION, job_definition, pool_definition
from kinema_kube import Kube
from kinema_kube.errors import ForbiddenError, KubeError
from kinema_kube.resources import CUSTOM_RESOURCE_DEFINITIONS
from kinema_operator.observed import Raw

log = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds between two looks for a CRD that is not there yet."""
APPLY = (
    "run `kubectl apply --server-side --force-conflicts -f crds/` of release {version}, or `helm upgrade` of its chart"
)


class ForeignDefinitionError(Exception):
    """A CRD is installed that belongs to another operator than this one."""


@cache
def own() -> Mapping[str, Mapping[str, str]]:
    """The annotations of the CRDs that this operator is built with, by name."""
    metadata = [definition()["metadata"] for definition in (job_definition, pool_definition)]
    return {entry["name"]: entry["annotations"] for entry in metadata}


async def confirm(kube: Kube) -> None:
    """Wait until every CRD is there, and compare it with this operator's own.

    Raises:
        ForeignDefinitionError: one is older, newer, or of another build.
    """
    said = ""
    while True:
        try:
            problem = await _missing(kube)
        except ForbiddenError as error:
            log.warning(
                "whether the CRDs are this operator's own was not checked, since it may not read them: %s; "
                "grant get on customresourcedefinitions as the chart does",
                error,
            )
            return
        except KubeError as error:
            problem = f"the CRDs cannot be read: {type(error).__name__}: {error}; trying again"
        if not problem:
            return
        if problem != said:
            log.error("%s", problem)
            said = problem
        await asyncio.sleep(RETRY)


async def _missing(kube: Kube) -> str:
    """What to say of a CRD that is not installed; empty when all are, and are this operator's."""
    for name, wanted in own().items():
        found = await kube.find(CUSTOM_RESOURCE_DEFINITIONS, name)
        if found is None:
            return f"CRD {name} is not installed; {APPLY.format(version=wanted[ANNOTATION_VERSION])}; waiting for it"
        problem = compare(found, wanted)
        if problem:
            raise ForeignDefinitionError(problem)
    return ""


def compare(found: Raw, wanted: Mapping[str, str]) -> str:
    """How an installed CRD differs from this operator's own and what to do about it; empty when it does not."""
    name, annotations = found["metadata"]["name"], found["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_DIGEST) == wanted[ANNOTATION_DIGEST]:
        return ""
    there, here = annotations.get(ANNOTATION_VERSION, ""), wanted[ANNOTATION_VERSION]
    apply = APPLY.format(version=here)
    if not there:
        return f"CRD {name} is older than this operator {here}, it carries no {ANNOTATION_VERSION}; {apply}"
    if _order(there) < _order(here):
        return f"CRD {name} of {there} is older than this operator {here}; {apply}"
    if _order(there) > _order(here):
        return (
            f"CRD {name} of {there} is newer than this operator {here}; run `helm upgrade` of chart {there}, "
            f"so that the operator's image is of {there} too"
        )
    return f"CRD {name} is of another build of {here} than this operator; {apply}"


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
