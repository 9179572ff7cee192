# SPDX-License-Identifier: Apache-2.0
"""Names of jobs for the shell's completion."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from kinema_cli.cluster import Where, cluster
from kinema_cli.errors import CommandError
from kinema_kube.connect import NoClusterError
from kinema_kube.errors import KubeError
from kinema_kube.resources import VIDEO_TRAINING_JOBS

_SECONDS = 3.0


def job_names(options: Mapping[str, Any], incomplete: str) -> list[str]:
    """The jobs whose names begin so; none where the cluster does not answer in time."""
    where = Where(options.get("kubeconfig"), options.get("context"), options.get("namespace"))

    async def listed() -> list[str]:
        async with asyncio.timeout(_SECONDS), cluster(where) as kube:
            found = await kube.list(VIDEO_TRAINING_JOBS, namespace=where.namespace)
            return [name for job in found if (name := job["metadata"]["name"]).startswith(incomplete)]

    try:
        return asyncio.run(listed())
    except (CommandError, KubeError, NoClusterError, TimeoutError):
        return []
