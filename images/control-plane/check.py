# SPDX-License-Identifier: Apache-2.0
"""What the control plane's image must be."""

from checks import check

check(
    imports=[
        "fastapi",
        "kinema_api",
        "kinema_cli",
        "kinema_operator",
        "kinema_server",
        "kopf",
        "kubernetes",
        "kubernetes.aio",
    ],
    absent=["boto3", "kinema-trainer", "numpy", "torch"],
    commands=["kinema", "kinema-operator", "kinema-server"],
)
