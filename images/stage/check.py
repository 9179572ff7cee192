# SPDX-License-Identifier: Apache-2.0
"""What the image for light stages must be."""

from checks import check

check(
    imports=["av", "boto3", "kinema_api", "kinema_stage", "prometheus_client", "pydantic", "yaml"],
    absent=["diffusers", "kubernetes", "torch"],
    commands=["kinema-stage"],
)
