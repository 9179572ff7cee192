# SPDX-License-Identifier: Apache-2.0
"""Pure builders of child objects: an attempt in, a manifest out."""

from kinema_operator.manifests.attempt import AttemptPlan
from kinema_operator.manifests.children import child

__all__ = ["AttemptPlan", "child"]
