# SPDX-License-Identifier: Apache-2.0
"""What promtool is told of each alert and of each recording rule: the series, the time, and what must come of them.

The series of DCGM's exporter and of npu-exporter have the labels that these exporters give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_JOB = 'namespace="team", vtj="wan"'
TEAM = {"namespace": "team", "vtj": "wan"}


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires."""

    alert: str
    series: Mapping[str, str]
    """Values of each series, a minute apart, in promtool's notation."""
    at: str
    """When it fires."""
    quiet: str
    """When it does not, with the same series."""
    labels: Mapping[str, str]
    summary: str
    description: str = ""
    """Where it is not the same for all."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded series, or what a panel asks for."""

    name: str
    series: Mapping[str, str]
    at: str
    samples: Mapping[str, float] = field(default_factory=dict)
    """Labels, as written in a selector, and the value."""


FIRING = (
    Firing(
        "KinemaJobStalled",
        {f"kinema_job_progressing{{{_JOB}}}": "1x5 0x10"},
        at="8m", quiet="5m", labels=TEAM, summary="team/wan stalls",
    ),
    Firing(
        "KinemaJobRestarting",
        {f"kinema_job_restarts_total{{{_JOB}}}": "0x10 1x10 2x10 3x60 3x60"},
        at="45m", quiet="25m", labels=TEAM, summary="team/wan restarts again and again",
        description="3 attempts failed within an hour.",
    ),
    Firing(
        "KinemaSlowRank",
        {f'kinema_train_straggler_rank{{{_JOB}, pod="wan-train-1-master-0", stage="train"}}': "-1x5 13x30"},
        at="20m", quiet="10m", labels=TEAM, summary="team/wan: rank 13 holds up the others",
    ),
    Firing(
        "KinemaLossNotFinite",
        {f'kinema_train_loss{{{_JOB}, stage="train"}}': "0.1x5 NaN NaN NaN"},
        at="7m", quiet="5m", labels={**TEAM, "stage": "train"}, summary="team/wan: the loss is not finite",
    ),
    Firing(
        "KinemaLossNotFinite",
        {f'kinema_train_loss{{{_JOB}, stage="train"}}': "0.1x5 -Inf -Inf -Inf"},
        at="7m", quiet="5m", labels={**TEAM, "stage": "train"}, summary="team/wan: the loss is not finite",
    ),
    Firing(
        "KinemaLossNotFinite",
        {f'kinema_job_last_failure{{{_JOB}, stage="train", failure="Numerics"}}': "_x5 1x5"},
        at="7m", quiet="4m", labels={**TEAM, "stage": "train", "failure": "Numerics"},
        summary="team/wan: the loss is not finite",
    ),
    Firing(
        "KinemaCheckpointTooOld",
        {f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="productive"}}': "0+60x120",
         f'kinema_stage_saved_seconds{{{_JOB}, pod="p", stage="train"}}': "0x120"},
        at="80m", quiet="55m", labels=TEAM, summary="team/wan: 1h 20m 0s of training are in no checkpoint",
    ),
    Firing(
        "KinemaQueueTooLong",
        {f'kinema_job_queued_timestamp_seconds{{{_JOB}, stage="train"}}': "0x120"},
        at="90m", quiet="59m", labels={**TEAM, "stage": "train"}, summary="team/wan has waited 1h 30m 0s for its pods",
        description="The attempt of stage train was created, but its pods do not run.",
    ),
    Firing(
        "KinemaOperatorDown",
        {'kinema_leader{job="kinema-operator", instance="a"}': "1x5 0x30",
         'kinema_leader{job="kinema-operator", instance="b"}': "0x5 _x30"},
        at="20m", quiet="5m", labels={}, summary="No Kinema operator leads",
    ),
    Firing(
        "KinemaOperatorErrors",
        {'kinema_reconciles_total{result="ok"}': "0+3x60", 'kinema_reconciles_total{result="bug"}': "0x10 0+1x50"},
        at="50m", quiet="10m", labels={}, summary="25% of the operator's looks at jobs fail",
    ),
    Firing(
        "KinemaWatchSilent",
        {'kinema_watch_age_seconds{resource="jobs"}': "0+60x60"},
        at="30m", quiet="10m", labels={"resource": "jobs"},
        summary="The operator's watch of jobs shows no life",
        description="For 30m 0s neither an event nor a reconnection came.",
    ),
    Firing(
        "KinemaServerErrors",
        {'kinema_server_requests_total{code="200"}': "0+9x60",
         'kinema_server_requests_total{code="503"}': "0x10 0+1x50"},
        at="50m", quiet="10m", labels={}, summary="10% of the API server's answers are errors",
    ),
    Firing(
        "KinemaServerCertificateEnds",
        {'kinema_server_certificate_not_after_seconds{instance="s"}': "259200x200"},
        at="2h", quiet="30m", labels={"instance": "s"},
        summary="The API server's certificate ends in 2d 22h 0m 0s",
    ),
)  # fmt: skip

_GPU = 'gpu="3", UUID="GPU-1", device="nvidia3", modelName="NVIDIA H100", Hostname="n1"'
_HONOURED = f'{_GPU}, namespace="team", pod="wan-train-1-master-0", container="pytorch"'
_RENAMED = (
    f'{_GPU}, namespace="gpu-operator", pod="dcgm-exporter-x2", exported_namespace="team",'
    ' exported_pod="wan-train-2-worker-1", exported_container="pytorch"'
)
_OTHERS = f'{_GPU}, namespace="team", pod="notebook-0"'
_NPU = (
    'id="5", vdie_id="D-1", model_name="910B", namespace="team", pod_name="ink-features-1-2-abcde",'
    ' container_name="pytorch", instance="n2:8082"'
)
_NPU_RENAMED = _NPU.replace('namespace="team"', 'namespace="mindx", exported_namespace="team"').replace(
    'id="5"', 'id="6"'
)
MASTER = 'device="3", namespace="team", pod="wan-train-1-master-0", stage="train", vendor="nvidia", vtj="wan"'
WORKER = 'device="3", namespace="team", pod="wan-train-2-worker-1", stage="train", vendor="nvidia", vtj="wan"'
CLIPS = 'device="{}", namespace="team", pod="ink-features-1-2-abcde", stage="features", vendor="ascend", vtj="ink"'


def _devices(name: str, nvidia: str, ascend: str, *, scale: float) -> Recorded:
    series = {
        f"{nvidia}{{{labels}}}": value for labels, value in ((_HONOURED, "50x5"), (_RENAMED, "75x5"), (_OTHERS, "9x5"))
    }
    series |= {f"{ascend}{{{labels}}}": value for labels, value in ((_NPU, "20x5"), (_NPU_RENAMED, "40x5"))}
    values = {MASTER: 50.0, WORKER: 75.0, CLIPS.format(5): 20.0, CLIPS.format(6): 40.0}
    return Recorded(name, series, "3m", {labels: value * scale for labels, value in values.items()})


_MIB = 2.0**20
RECORDED = (
    _devices("vtj:accelerator_util:ratio", "DCGM_FI_DEV_GPU_UTIL", "npu_chip_info_utilization", scale=0.01),
    _devices("vtj:accelerator_memory_used:bytes", "DCGM_FI_DEV_FB_USED", "npu_chip_info_hbm_used_memory", scale=_MIB),
    _devices("vtj:accelerator_power:watts", "DCGM_FI_DEV_POWER_USAGE", "npu_chip_info_power", scale=1.0),
    _devices("vtj:accelerator_temperature:celsius", "DCGM_FI_DEV_GPU_TEMP", "npu_chip_info_temperature", scale=1.0),
    Recorded(
        "vtj:seconds:total",
        {f'kinema_job_seconds_total{{{_JOB}, activity="productive"}}': "100x5",
         f'kinema_job_seconds_total{{{_JOB}, activity="queued"}}': "30x5",
         f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="productive"}}': "20x5"},
        "3m",
        {f'activity="productive", {_JOB}': 120, f'activity="queued", {_JOB}': 30},
    ),
    Recorded(
        "vtj:goodput:ratio",
        {f'kinema_job_seconds_total{{{_JOB}, activity="productive"}}': "60x5",
         f'kinema_job_seconds_total{{{_JOB}, activity="lost"}}': "20x5",
         f'kinema_job_seconds_total{{{_JOB}, activity="queued"}}': "900x5"},
        "3m",
        {'namespace="team", vtj="wan"': 0.75},
    ),
    Recorded(
        "vtj:accelerators:by_activity",
        {f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="productive"}}': "0+45x20",
         f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="data"}}': "0+15x20",
         f'kinema_job_accelerators{{{_JOB}, pool="gpu"}}': "8x20"},
        "15m",
        {'activity="productive", namespace="team", vtj="wan"': 6, 'activity="data", namespace="team", vtj="wan"': 2},
    ),
    Recorded(
        "kinema:goodput:ratio",
        {f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="productive"}}': "0+45x20",
         f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="data"}}': "0+15x20",
         f'kinema_job_accelerators{{{_JOB}, pool="cpu"}}': "0x20"},
        "15m",
        {"": 0.75},
    ),
    Recorded(
        "vtj:queue_wait:seconds",
        {f'kinema_job_queued_timestamp_seconds{{{_JOB}, stage="train"}}': "60x20"},
        "10m",
        {f'{_JOB}, stage="train"': 540},
    ),
    Recorded(
        "vtj:progress_age:seconds",
        {f"kinema_job_progress_timestamp_seconds{{{_JOB}}}": "60x20"},
        "10m",
        {_JOB: 540},
    ),
    Recorded(
        "vtj:unsaved:seconds",
        {f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="productive"}}': "100x9",
         f'kinema_stage_seconds_total{{{_JOB}, pod="p", stage="train", activity="data"}}': "7x9",
         f'kinema_stage_saved_seconds{{{_JOB}, pod="p", stage="train"}}': "40x9",
         f'kinema_stage_seconds_total{{{_JOB}, pod="q", stage="features", activity="productive"}}': "900x9",
         f'kinema_stage_saved_seconds{{{_JOB}, pod="q", stage="features"}}': "0x9"},
        "5m",
        {_JOB: 60},
    ),
    Recorded(
        "vtj:cost_rate:per_hour",
        {f'kinema_job_accelerators{{{_JOB}, pool="gpu"}}': "16x9",
         f'kinema_job_accelerators{{{_JOB}, pool="free"}}': "4x9",
         'kinema_pool_price{pool="gpu", currency="EUR"}': "2.5x9"},
        "5m",
        {f'currency="EUR", {_JOB}, pool="gpu"': 40},
    ),
)  # fmt: skip

UNKNOWN_ON_A_CPU: Mapping[str, str] = {
    "kinema_train_mfu_ratio": "what a CPU can do at most is not known",
    "kinema_train_hfu_ratio": "what a CPU can do at most is not known",
}
"""Metrics that no training without an accelerator has, and why: `SHOWN` has what panels make of them."""
_POD = f'{_JOB}, pod="wan-train-1-master-0", stage="train"'
SHOWN = (
    Recorded(
        'max by (namespace, vtj) (kinema_train_mfu_ratio{namespace="team", vtj="wan"})',
        {f"kinema_train_mfu_ratio{{{_POD}}}": "0.43x9"},
        "5m",
        {_JOB: 0.43},
    ),
    Recorded(
        'max by (namespace, vtj) (kinema_train_hfu_ratio{namespace="team", vtj="wan"})',
        {f"kinema_train_hfu_ratio{{{_POD}}}": "0.52x9"},
        "5m",
        {_JOB: 0.52},
    ),
    Recorded(
        'avg by (vendor) (vtj:accelerator_util:ratio{namespace=~".+"})',
        {f"DCGM_FI_DEV_GPU_UTIL{{{_HONOURED}}}": "50x5", f"DCGM_FI_DEV_GPU_UTIL{{{_RENAMED}}}": "70x5",
         f"npu_chip_info_utilization{{{_NPU}}}": "20x5"},
        "3m",
        {'vendor="nvidia"': 0.6, 'vendor="ascend"': 0.2},
    ),
    Recorded(
        'max by (pod, device) (vtj:accelerator_util:ratio{namespace="team", vtj="wan"})',
        {f"DCGM_FI_DEV_GPU_UTIL{{{_HONOURED}}}": "50x5"},
        "3m",
        {'device="3", pod="wan-train-1-master-0"': 0.5},
    ),
    Recorded(
        'max by (pod, device) (vtj:accelerator_memory_used:bytes{namespace="team", vtj="wan"})',
        {f"DCGM_FI_DEV_FB_USED{{{_HONOURED}}}": "3x5"},
        "3m",
        {'device="3", pod="wan-train-1-master-0"': 3 * _MIB},
    ),
    Recorded(
        'sum(vtj:accelerator_power:watts{namespace="team", vtj="wan"})',
        {f"DCGM_FI_DEV_POWER_USAGE{{{_HONOURED}}}": "500x5", f"DCGM_FI_DEV_POWER_USAGE{{{_RENAMED}}}": "400x5"},
        "3m",
        {"": 900},
    ),
    Recorded(
        'max(vtj:accelerator_temperature:celsius{namespace="team", vtj="wan"})',
        {f"DCGM_FI_DEV_GPU_TEMP{{{_HONOURED}}}": "50x5", f"DCGM_FI_DEV_GPU_TEMP{{{_RENAMED}}}": "61x5"},
        "3m",
        {"": 61},
    ),
)  # fmt: skip
"""What panels show of series that no node without accelerators has."""
