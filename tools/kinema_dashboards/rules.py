# SPDX-License-Identifier: Apache-2.0
"""Recording rules: numbers by job, whoever measured them.

DCGM's exporter (NVIDIA) and npu-exporter (Ascend) know pods, not jobs, and name and count the same things differently.
After these rules a panel asks for `vtj:accelerator_util:ratio` and need not know what the job runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kinema_api.names import Stage

MIB = 1024 * 1024
_STAGES = "|".join(stage.value for stage in Stage)
POD = f"(.+)-({_STAGES})-[0-9]+-.+"
"""Pods of a job: its name, the stage, the attempt, and what tells them apart."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus makes of others."""

    name: str
    text: str
    expr: str
    labels: tuple[str, ...]

    def wire(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {"record": self.name, "expr": self.expr}


def _replaced(expr: str, label: str, value: str, source: str, pattern: str) -> str:
    return f'label_replace({expr}, "{label}", "{value}", "{source}", "{pattern}")'


def _owned(expr: str, *, vendor: str, device: str) -> str:
    """Series of devices with the labels of the pod that holds them, of its job and of its stage."""
    for label in ("namespace", "pod"):
        expr = _replaced(expr, label, "$1", f"exported_{label}", "(.+)")
    expr = _replaced(expr, "vtj", "$1", "pod", POD)
    expr = _replaced(expr, "stage", "$2", "pod", POD)
    expr = _replaced(expr, "device", "$1", device, "(.+)")
    return _replaced(expr, "vendor", vendor, "", "")


def nvidia(metric: str) -> str:
    """A metric of DCGM's exporter; its scrape may or may not honour the exporter's own labels."""
    of_jobs = f'({metric}{{pod=~"{POD}"}} or {metric}{{exported_pod=~"{POD}"}})'
    return _owned(of_jobs, vendor="nvidia", device="gpu")


def ascend(metric: str) -> str:
    """A metric of npu-exporter."""
    of_jobs = _replaced(f'{metric}{{pod_name=~"{POD}"}}', "pod", "$1", "pod_name", "(.+)")
    of_jobs = _replaced(of_jobs, "exported_pod", "", "", "")
    return _owned(of_jobs, vendor="ascend", device="id")


DEVICE = ("namespace", "vtj", "stage", "pod", "device", "vendor")
JOB = ("namespace", "vtj")


def _device(name: str, text: str, first: str, second: str) -> Recording:
    by = ", ".join(DEVICE)
    return Recording(name, text, f"max by ({by}) ({first}\nor\n{second})", DEVICE)


ACCELERATORS = (
    _device(
        "vtj:accelerator_util:ratio",
        "How busy an accelerator of a job is; 1 may be a single kernel, so look at MFU too",
        f"{nvidia('DCGM_FI_DEV_GPU_UTIL')} / 100",
        f"{ascend('npu_chip_info_utilization')} / 100",
    ),
    _device(
        "vtj:accelerator_memory_used:bytes",
        "Memory in use on an accelerator of a job",
        f"{nvidia('DCGM_FI_DEV_FB_USED')} * {MIB}",
        f"{ascend('npu_chip_info_hbm_used_memory')} * {MIB}",
    ),
    _device(
        "vtj:accelerator_power:watts",
        "Power that an accelerator of a job draws",
        nvidia("DCGM_FI_DEV_POWER_USAGE"),
        ascend("npu_chip_info_power"),
    ),
    _device(
        "vtj:accelerator_temperature:celsius",
        "Temperature of an accelerator of a job",
        nvidia("DCGM_FI_DEV_GPU_TEMP"),
        ascend("npu_chip_info_temperature"),
    ),
)

_HELD = "clamp_min(max by (namespace, vtj) (kinema_job_accelerators), 1)"
_WEIGHTED = (
    "sum by (namespace, vtj, activity) (rate(kinema_stage_seconds_total[2m]))\n"
    f"* on (namespace, vtj) group_left () {_HELD}"
)

JOBS = (
    Recording(
        "vtj:seconds:total",
        "Wall time of a job's attempts, the running one's included, by what it went to",
        "sum by (namespace, vtj, activity) (kinema_job_seconds_total or kinema_stage_seconds_total)",
        (*JOB, "activity"),
    ),
    Recording(
        "vtj:goodput:ratio",
        "Share of a job's time on its nodes that went into training, or the stage's own work",
        'sum by (namespace, vtj) (vtj:seconds:total{activity="productive"})\n'
        '/ sum by (namespace, vtj) (vtj:seconds:total{activity!="queued"})',
        JOB,
    ),
    Recording(
        "vtj:accelerators:by_activity",
        "Accelerators by what they do, over the last two minutes; a job on a cpu pool counts as one",
        _WEIGHTED,
        (*JOB, "activity"),
    ),
    Recording(
        "kinema:goodput:ratio",
        "Share of all accelerators in use that are at productive work",
        'sum(vtj:accelerators:by_activity{activity="productive"}) / sum(vtj:accelerators:by_activity)',
        (),
    ),
    Recording(
        "vtj:queue_wait:seconds",
        "How long an attempt has waited for its pods to run",
        "time() - kinema_job_queued_timestamp_seconds",
        (*JOB, "stage"),
    ),
    Recording(
        "vtj:progress_age:seconds",
        "How long ago the running stage said how far it is",
        "time() - kinema_job_progress_timestamp_seconds",
        JOB,
    ),
    Recording(
        "vtj:unsaved:seconds",
        "Work that would be lost now: productive seconds of the training that no checkpoint holds",
        'max by (namespace, vtj) (kinema_stage_seconds_total{stage="train", activity="productive"}\n'
        '- ignoring (activity) kinema_stage_saved_seconds{stage="train"})',
        JOB,
    ),
    Recording(
        "vtj:cost_rate:per_hour",
        "Price of an hour of the accelerators that a job holds",
        "kinema_job_accelerators * on (pool) group_left (currency) max by (pool, currency) (kinema_pool_price)",
        (*JOB, "pool", "currency"),
    ),
)

GROUPS = {"kinema-accelerators": ACCELERATORS, "kinema-jobs": JOBS}
RECORDINGS = (*ACCELERATORS, *JOBS)
