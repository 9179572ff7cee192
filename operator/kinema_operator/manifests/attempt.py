# SPDX-License-Identifier: Apache-2.0
"""One attempt of a stage, with all that its manifest is made of."""

from __future__ import annotations

from dataclasses import dataclass

from kinema_api.configs import stage_config
from kinema_api.job import JobSpec
from kinema_api.keys import Keys
from kinema_api.names import Stage, child_name
from kinema_api.overrides import merged
from kinema_api.pipeline import DEVICE_STAGES, pool_of, stage_settings
from kinema_api.pool import PoolSpec
from kinema_api.settings import PodTemplate, Stages, StageSettings
from kinema_api.stage import JobRef
from kinema_api.status import Resolved
from kinema_operator.observed import Platform


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """An attempt that is about to start."""

    job: JobRef
    spec: JobSpec
    resolved: Resolved
    keys: Keys | None
    """None only for `check`."""
    stage: Stage
    number: int
    platform: Platform
    avoid: tuple[str, ...] = ()
    """Nodes on which the stage has failed too often."""

    @property
    def name(self) -> str:
        """Name of the child object."""
        return child_name(job=self.job.name, stage=self.stage, attempt=self.number)

    @property
    def stages(self) -> Stages:
        """The settings of every stage, defaults filled in."""
        return Stages.stored(self.resolved.stages)

    @property
    def settings(self) -> StageSettings:
        """The settings of this stage."""
        return stage_settings(self.stages, self.stage)

    @property
    def additions(self) -> PodTemplate:
        """What the user adds to the pods: for every stage, and over that for this one."""
        return merged(self.spec.defaults.pod_template, self.settings.pod_template)

    @property
    def pool(self) -> PoolSpec | None:
        """The pool that the stage runs on; None when any node will do."""
        name = pool_of(self.spec, self.stages, self.stage)
        return None if name is None else PoolSpec.stored(self.resolved.pools[name])

    @property
    def devices(self) -> int:
        """Accelerators of one pod (processes, on a cpu pool)."""
        if self.stage not in DEVICE_STAGES:
            return 0
        return (self.stages.train.devices_per_node or 1) if self.stage is Stage.TRAIN else 1

    @property
    def nodes(self) -> int:
        """Pods of the training gang."""
        return self.stages.train.nodes or 1

    @property
    def config(self) -> str:
        """The stage's config as JSON."""
        config = stage_config(
            stage=self.stage,
            spec=self.spec,
            resolved=self.resolved,
            job=self.job,
            attempt=self.number,
            keys=self.keys,
        )
        return config.model_dump_json(by_alias=True, exclude_none=True)
