# SPDX-License-Identifier: Apache-2.0
"""Names that users may not take, and the syntax of those they may: patterns that Python and the API server share.

They are written for both Python's `re` and Go's RE2, without backslashes, which CEL would read as its own.
"""

from __future__ import annotations

from kinema_api.names import GROUP, MANAGED_BY

ENV = (
    "(KINEMA|KUBEFLOW|PET|MASTER|TORCHELASTIC)_.*"
    "|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|JOB_COMPLETION_INDEX|HOME|ASCEND_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES"
)
"""Variables by which a stage, torchrun and the device plugins find their places."""
DOMAINS = (GROUP, "training.kubeflow.org", "batch.kubernetes.io")
"""Domains of controllers: keys of theirs, and of domains below them, are not the user's."""
KEYS = (MANAGED_BY, "job-name", "controller-uid")


def _literal(text: str) -> str:
    return text.replace(".", "[.]")


_DOMAINS, _KEYS = ("|".join(_literal(name) for name in names) for names in (DOMAINS, KEYS))
OWNED = f"([-a-z0-9.]+[.])?({_DOMAINS})/.*|{_KEYS}"
"""Keys of labels and annotations that belong to a controller."""
LABEL = "([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
KEY = "([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""Kubernetes' syntax of a label's value, and of the key of a label or an annotation."""
