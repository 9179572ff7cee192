# SPDX-License-Identifier: Apache-2.0
"""The progress message: the protocol of Kubeflow's trainer, so that its callbacks work with Kinema as they are.

Source: kubeflow/trainer, KEP-2779; checked against v2.2. All fields are optional and unknown ones are ignored.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

ENV_URL = "KUBEFLOW_TRAINER_SERVER_URL"
"""The full address to POST to."""
ENV_CA = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""Path of the PEM file that signs the server."""
ENV_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"
"""Path of the projected token; read again before each post, since kubelet renews it."""

BODY_LIMIT = 64 * 1024


class _Lenient(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Metric(_Lenient):
    """One named number, as a string."""

    name: str = Field(min_length=1, max_length=64)
    value: str = Field(min_length=1, max_length=64)


class TrainerStatus(_Lenient):
    """Where a run stands."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    metrics: list[Metric] = Field(default_factory=list, max_length=256)
    last_updated_time: datetime | None = None

    def metric(self, name: str) -> str | None:
        """The value of a metric; None when it was not sent."""
        return next((metric.value for metric in self.metrics if metric.name == name), None)


class ProgressPost(_Lenient):
    """The body of a POST."""

    trainer_status: TrainerStatus = Field(default_factory=TrainerStatus)
