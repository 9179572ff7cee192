# SPDX-License-Identifier: Apache-2.0
"""The stage's numbers for Prometheus, on a port of their own.

A number that is known by name has a series with a unit of its own, every other one is a `kinema_stage_metric`. Nothing
outlives the stage: the series are made from its newest report at each scrape, by the process that speaks for it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING

from kinema_api.names import Stage

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

logger = logging.getLogger(__name__)

Value = float | int | str
OTHERS = 64
"""Numbers and words without a series of their own that are shown at most."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name after `kinema_`, what it says, its labels after `stage`, and whether it only rises."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    counter: bool = False


DONE = Family("stage_done", "Finished units of the stage: optimizer steps, clips, shards")
TOTAL = Family("stage_total", "All units of the stage")
ETA = Family("stage_eta_seconds", "Estimated time left")
REPORT = Family("stage_report_timestamp_seconds", "When the stage last said how far it is (Unix time)")
SECONDS = Family(
    "stage_seconds",
    "What the attempt's time went to: starting, productive, data (waiting for it), checkpoint (waiting for it)",
    ("activity",),
    counter=True,
)
SAVED = Family("stage_saved_seconds", "Productive seconds whose work a checkpoint or a published result holds")
STALL_LIMIT = Family("stage_stall_limit_seconds", "Time without a move that the watchdog takes for a hang")
LOSS = Family("train_loss", "Training loss of the last step")
VALIDATION = Family("train_validation_loss", "Mean loss of the last validation")
LEVEL = Family("train_validation_level_loss", "Mean loss of the last validation at one noise level", ("sigma",))
RATE = Family("train_learning_rate", "Learning rate of the last step")
GRADIENT = Family("train_gradient_norm", "Norm of the last step's gradient, before it is clipped")
STEP = Family("train_step_seconds", "Time of the last step")
PHASE = Family("train_phase_seconds", "Time of the last step by what it went to, of the first process", ("phase",))
SAMPLES_RATE = Family("train_samples_per_second", "Clips that the last step trained on, a second, over all processes")
TOKENS_RATE = Family("train_tokens_per_second", "Tokens that the last step trained on, a second, over all processes")
SAMPLES = Family("train_samples", "Clips that the run has trained on")
TOKENS = Family("train_step_tokens", "Tokens of the last step")
PADDING = Family("train_padding_ratio", "Share of the last step's tokens that are padding")
IMBALANCE = Family(
    "train_imbalance_ratio", "Share of the last step that processes wait for dearer packs, by the packs' predicted cost"
)
FLOPS = Family("train_model_flops_per_second", "Operations of the model a second, of one device")
MFU = Family("train_mfu_ratio", "Operations of the model a second, of what the device can do at most")
HFU = Family("train_hfu_ratio", "The same with what is computed again in the backward pass")
RANK_SECONDS = Family(
    "train_rank_seconds",
    "What processes do alone, a step: time of the slowest (max) and of the middle one (median)",
    ("phase", "statistic"),
)
STRAGGLER = Family("train_straggler_rank", "The process that holds up the others; -1 when none does")
MEMORY = Family("train_memory_peak_bytes", "The most memory that a process has had on its device", ("rank",))
PLANNED = Family(
    "train_memory_planned_bytes", "What a process should hold on its device at the peak of a step: the plan's tensors"
)
OTHER = Family("stage_metric", "Further numbers that the stage reports, by name", ("name",))
WORDS = Family("stage_text", "Words that the stage reports, for instance who holds up the others", ("name", "text"))

FAMILIES = (
    DONE, TOTAL, ETA, REPORT, SECONDS, SAVED, STALL_LIMIT, LOSS, VALIDATION, LEVEL, RATE, GRADIENT, STEP, PHASE,
    SAMPLES_RATE, TOKENS_RATE, SAMPLES, TOKENS, PADDING, IMBALANCE, FLOPS, MFU, HFU, RANK_SECONDS, STRAGGLER, MEMORY,
    PLANNED, OTHER, WORDS,
)  # fmt: skip
"""Every metric of a stage."""

Place = tuple[Family, tuple[str, ...], float]
"""A metric, its labels after `stage`, and by what the reported number is multiplied."""

ACTIVITIES = ("starting", "productive", "data", "checkpoint")
PHASES = ("data", "wait", "forward", "backward", "optimizer", "checkpoint")
ALONE = ("data", "forward", "probe")
PLACES: Mapping[str, Place] = MappingProxyType(
    {
        "stall_limit_seconds": (STALL_LIMIT, (), 1.0),
        "seconds_saved": (SAVED, (), 1.0),
        **{f"seconds_{name}": (SECONDS, (name,), 1.0) for name in ACTIVITIES},
        "loss": (LOSS, (), 1.0),
        "validation_loss": (VALIDATION, (), 1.0),
        "learning_rate": (RATE, (), 1.0),
        "grad_norm": (GRADIENT, (), 1.0),
        "step_seconds": (STEP, (), 1.0),
        **{f"{name}_seconds": (PHASE, (name,), 1.0) for name in PHASES},
        "samples_per_second": (SAMPLES_RATE, (), 1.0),
        "tokens_per_second": (TOKENS_RATE, (), 1.0),
        "samples": (SAMPLES, (), 1.0),
        "tokens": (TOKENS, (), 1.0),
        "padding": (PADDING, (), 1.0),
        "imbalance": (IMBALANCE, (), 1.0),
        "tflops_per_second": (FLOPS, (), 1e12),
        "mfu": (MFU, (), 1.0),
        "hfu": (HFU, (), 1.0),
        **{f"ranks_{name}_seconds_{kind}": (RANK_SECONDS, (name, kind), 1.0)
           for name in ALONE for kind in ("max", "median")},
        "straggler_rank": (STRAGGLER, (), 1.0),
        "memory_peak_bytes": (MEMORY, ("0",), 1.0),
        "memory_planned_bytes": (PLANNED, (), 1.0),
    }
)  # fmt: skip
"""Where a reported number is shown. `step` and `total_steps` are `done` and `total`."""
PER_RANK: Mapping[str, Family] = MappingProxyType({"memory_peak_bytes": MEMORY})
"""Where numbers by process are shown."""
AT_LEVEL = re.compile(r"validation_loss_at_(\d+)")
"""The validation's loss at a noise level, which is told by its decimals."""
_SHOWN_ELSEWHERE = frozenset({"step", "total_steps"})


def place_of(name: str) -> Place | None:
    """Where a reported number is shown, if it has a series of its own."""
    level = AT_LEVEL.fullmatch(name)
    return PLACES.get(name) if level is None else (LEVEL, (f"0.{level[1]}",), 1.0)


class Gauges:
    """Serves the newest numbers of a stage."""

    def __init__(self, stage: Stage, port: int) -> None:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._stage = stage.value
        self._lock = Lock()
        self._values: dict[tuple[Family, tuple[str, ...]], float] = {}
        self._others: dict[str, float] = {}
        self._words: dict[str, str] = {}
        registry.register(self)
        self._server, self._thread = start_http_server(port, registry=registry)

    @classmethod
    def serve(cls, stage: Stage, port: int, *, otherwise: str) -> Gauges | None:
        """Open the port; None when it is 0 or taken, since metrics are worth less than the stage.

        Args:
            stage: the stage.
            port: where to listen.
            otherwise: the variable that names another port.
        """
        if port == 0:
            return None
        try:
            return cls(stage, port)
        except OSError as error:
            logger.warning("no metrics: port %d: %s; set %s to another port or 0", port, error, otherwise)
            return None

    def set(
        self,
        *,
        done: int,
        total: int,
        eta: float | None,
        metrics: Mapping[str, Value],
        ranks: Mapping[str, Sequence[float]],
    ) -> None:
        """Show the newest numbers; those that are left out stay."""
        with self._lock:
            values = self._values
            values.update({(DONE, ()): float(done), (TOTAL, ()): float(total), (REPORT, ()): time.time()})
            if eta is not None:
                values[ETA, ()] = eta
            self._words = {}
            for name, value in metrics.items():
                self._take(name, value)
            for name, by_rank in ranks.items():
                family = PER_RANK[name]
                values.update({(family, (str(rank),)): value for rank, value in enumerate(by_rank)})

    def _take(self, name: str, value: Value) -> None:
        if isinstance(value, str):
            if len(self._words) < OTHERS:
                self._words[name] = value
        elif (place := place_of(name)) is not None:
            family, labels, scale = place
            self._values[family, labels] = value * scale
        elif name not in _SHOWN_ELSEWHERE and (name in self._others or len(self._others) < OTHERS):
            self._others[name] = value

    def collect(self) -> Iterator[Metric]:
        """The series, for a scrape."""
        with self._lock:
            values, others, words = dict(self._values), dict(self._others), dict(self._words)
        values.update({(OTHER, (name,)): value for name, value in others.items()})
        values.update({(WORDS, item): 1.0 for item in words.items()})
        for family in FAMILIES:
            shown = empty(family)
            for (of, labels), value in values.items():
                if of is family:
                    shown.add_metric([self._stage, *labels], value)
            if shown.samples:
                yield shown

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def empty(family: Family) -> GaugeMetricFamily | CounterMetricFamily:
    """A metric without series."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if family.counter else GaugeMetricFamily
    return kind(f"kinema_{family.name}", family.text, labels=["stage", *family.labels])
