# SPDX-License-Identifier: Apache-2.0
"""What users may add to the pods of a stage, and what they may not touch."""

from __future__ import annotations

import re

from kinema_api.names import GROUP, MANAGED_BY
from kinema_api.settings import PodTemplate

RESERVED_ENV = re.compile(
    r"(KINEMA|KUBEFLOW|PET|MASTER|TORCHELASTIC)_.*"
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|JOB_COMPLETION_INDEX|HOME|ASCEND_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES"
)
"""Variables by which a stage, torchrun and the device plugins find their places."""
_RESERVED_DOMAINS = (GROUP, "training.kubeflow.org", "batch.kubernetes.io")
_RESERVED_LABELS = frozenset({MANAGED_BY, "job-name", "controller-uid"})


def refusals(template: PodTemplate, where: str) -> list[str]:
    """Why a template cannot be used, a sentence each; nothing when it can."""
    found = [
        f"{where}.env: {variable.name} is set by Kinema or by what it runs under; choose another name"
        for variable in template.env
        if RESERVED_ENV.fullmatch(variable.name)
    ]
    for field, keys in (("labels", template.labels), ("annotations", template.annotations)):
        found += [f"{where}.{field}: {key} belongs to a controller; choose another key" for key in keys if _owned(key)]
    return found


def merged(base: PodTemplate, over: PodTemplate) -> PodTemplate:
    """`over` laid on `base`: maps key by key, variables by name, tolerations added up, anything else replaced."""
    env = {variable.name: variable for variable in (*base.env, *over.env)}
    written = {name: getattr(over, name) for name in over.model_fields_set if getattr(over, name) is not None}
    return base.model_copy(
        update={
            **written,
            "labels": {**base.labels, **over.labels},
            "annotations": {**base.annotations, **over.annotations},
            "node_selector": {**base.node_selector, **over.node_selector},
            "tolerations": [*base.tolerations, *(item for item in over.tolerations if item not in base.tolerations)],
            "env": list(env.values()),
        }
    )


def _owned(key: str) -> bool:
    domain = key.partition("/")[0] if "/" in key else ""
    return key in _RESERVED_LABELS or any(
        domain == owned or domain.endswith(f".{owned}") for owned in _RESERVED_DOMAINS
    )
