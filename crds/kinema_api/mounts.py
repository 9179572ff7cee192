# SPDX-License-Identifier: Apache-2.0
"""What the pods of a job reach outside the cluster's API: pure."""

from __future__ import annotations

from kinema_api.inputs import DatasetFormat, Location
from kinema_api.job import JobSpec
from kinema_api.locations import claim_of


def locations(spec: JobSpec) -> tuple[Location, ...]:
    """Everything outside the cluster's API that a job reads or writes."""
    data = () if spec.dataset.format is DatasetFormat.MOCK else (spec.dataset,)
    return (*data, spec.model.weights, spec.storage)


def claims(spec: JobSpec) -> tuple[str, ...]:
    """The claims that the job's pods mount, sorted."""
    found = (claim_of(location.uri) for location in locations(spec))
    return tuple(sorted({claim.name for claim in found if claim is not None}))


def secrets(spec: JobSpec) -> tuple[str, ...]:
    """The Secrets that the job's pods mount, sorted."""
    return tuple(sorted({location.secret_ref.name for location in locations(spec) if location.secret_ref is not None}))


def staged(spec: JobSpec) -> bool:
    """Whether pods need local space for what does not lie on a volume."""
    return any(claim_of(location.uri) is None for location in locations(spec))
