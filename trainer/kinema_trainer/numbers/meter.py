# SPDX-License-Identifier: Apache-2.0
"""Turns the results of steps into the numbers that people watch."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from kinema_api.settings import Precision, TrainSettings
from kinema_trainer.data.costs import Measured
from kinema_trainer.data.course import Step as Plan
from kinema_trainer.device import Device
from kinema_trainer.loop import Result
from kinema_trainer.numbers.counting import Count
from kinema_trainer.numbers.ranks import RollCall, Straggler
from kinema_trainer.numbers.reports import Reporter, Step
from kinema_trainer.numbers.runlog import RunLog
from kinema_trainer.timing import Phase

logger = logging.getLogger(__name__)

SMOOTHING = 0.9
"""Share of the old value in the running mean of a step's time."""
EXACT = frozenset({"loss", "grad_norm", "learning_rate"})
"""Numbers that are told to the last bit, so that two runs can be compared; the others have six digits."""
WARM_UP = 2
"""First steps of a process that say nothing about its pace."""
RANKS = 1024
"""Processes whose memory is told: a report is one datagram."""
NOBODY = -1.0
"""The straggler's rank when nobody holds up the others."""


@dataclass(slots=True)
class Meter:
    """Listens to the loop of one process; only the leader, who has a log, speaks.

    Args of note:
        count: of an optimizer step, on one device.
        ranks: gathers what processes do alone; every process has one.
        planned: bytes that a process should hold at the peak of a step; None when nobody knows.
    """

    settings: TrainSettings
    log: RunLog | None
    reporter: Reporter
    count: Callable[[Plan], Count]
    device: Device
    ranks: RollCall
    planned: int | None = None
    _seen: int = field(default=0, init=False)
    _pace: float = field(default=0.0, init=False)
    _straggler: Straggler | None = field(default=None, init=False)
    _costs: Measured = field(default_factory=Measured, init=False)

    def step(self, result: Result) -> None:
        """Take in a step."""
        self._seen += 1
        early = self._seen <= WARM_UP
        self._pace = result.seconds if early else SMOOTHING * self._pace + (1 - SMOOTHING) * result.seconds
        due = self.ranks.due(result.position.step)
        straggler = self.ranks.step(
            result.position.step, result.phases, seconds=result.seconds, memory=self.device.memory_peak
        )
        if self.log is None:
            return
        if due:
            self._tell(straggler, step=result.position.step)
        step, total = result.position.step, self.settings.steps
        if self._seen == 1:
            self._explain(result)
        if not early:
            self._measure(result, last=step == total)
        metrics = self.metrics(result)
        self.log.step(step, metrics)
        self.reporter.step(
            Step(
                step=step,
                total=total,
                eta_seconds=self._pace * (total - step),
                metrics={**metrics, **self._said_apart()},
                # A validation is said where it was, whatever is left out between two lines.
                log=step % self.settings.log_every == 0 or step == total or bool(result.validation),
                memory=tuple(self.ranks.memory[:RANKS]),
            )
        )

    def metrics(self, result: Result) -> dict[str, float]:
        """The numbers of a step by name."""
        count = self.count(result.plan)
        rate = count.operations.model / result.seconds
        numbers = {
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.gradient_norm,
            "step_seconds": result.seconds,
            **{f"{phase}_seconds": seconds for phase, seconds in result.phases.items()},
            "samples_per_second": result.plan.samples / result.seconds,
            "samples": float(result.position.consumed),
            "tokens": float(result.plan.tokens),
            "tokens_per_second": result.plan.tokens / result.seconds,
            "padding": count.padding,
            "imbalance": result.plan.imbalance,
            "tflops_per_second": rate / 1e12,
        }
        numbers |= result.validation
        peak = self.peak_flops
        if peak is not None:
            numbers["mfu"] = rate / peak
            numbers["hfu"] = count.operations.hardware / result.seconds / peak
        for name, values in self.ranks.table.items():
            numbers[f"ranks_{name}_seconds_max"] = max(values)
            numbers[f"ranks_{name}_seconds_median"] = statistics.median(values)
        if self.ranks.table:
            numbers["straggler_rank"] = NOBODY if self._straggler is None else float(self._straggler.rank)
        numbers["memory_peak_bytes"] = float(self.device.memory_peak())
        return {name: value if name in EXACT else float(f"{value:.6g}") for name, value in numbers.items()}

    def _said_apart(self) -> dict[str, float | str]:
        """What stays the same for many steps, and is in no line of the log of the run."""
        planned = {} if self.planned is None else {"memory_planned_bytes": float(self.planned)}
        return planned | ({} if self._straggler is None else {"straggler": self._straggler.place})

    @property
    def peak_flops(self) -> float | None:
        """What a device can do at most in the number format of the computation; None when unknown."""
        return self.device.peak_flops if self.settings.precision is Precision.BF16 else None

    def _measure(self, result: Result, *, last: bool) -> None:
        """Learn what a clip costs, and record it with each checkpoint: another run may pack by it, this one does not.

        The leader is the first data coordinate.
        """
        assert self.log is not None
        seconds = result.phases.get(Phase.FORWARD, 0.0) + result.phases.get(Phase.BACKWARD, 0.0)
        if seconds > 0:
            clips = [length for packs in result.plan.passes for length in packs[0].lengths]
            self._costs.add(clips, seconds=seconds)
        if last or result.position.step % self.settings.checkpoint.every_steps == 0:
            cost = self._costs.fit()
            if cost is not None:
                self.log.event("cost", steps=self._costs.count, **cost.wire())

    def _explain(self, result: Result) -> None:
        """Say once what utilisation is the ratio of."""
        assert self.log is not None
        count = self.count(result.plan).operations
        peak = self.peak_flops
        logger.info(
            "a step of %d samples and %d tokens takes %.4g TFLOP of the model on each device (%.4g with what is"
            " computed again); %s",
            result.plan.samples,
            result.plan.tokens,
            count.model / 1e12,
            count.hardware / 1e12,
            f"no MFU: the peak of {self.device.name} in {self.settings.precision} is not known"
            if peak is None
            else f"MFU is that, over the step's time, of {peak / 1e12:.5g} TFLOP/s of dense bf16 ({self.device.name})",
        )
        self.log.event(
            "operations",
            model_tflop=count.model / 1e12,
            hardware_tflop=count.hardware / 1e12,
            device=self.device.name,
            peak_tflops_per_second=None if peak is None else peak / 1e12,
        )

    def _tell(self, found: Straggler | None, *, step: int) -> None:
        """Say who holds up the others, when it begins and when it ends."""
        assert self.log is not None
        before, self._straggler = self._straggler, found
        if found is not None and (before is None or before.rank != found.rank):
            logger.warning("held up by %s", found)
            self.log.event("straggler", step=step, rank=found.rank, node=found.node, column=found.column,
                           seconds=found.seconds, median=found.median)  # fmt: skip
        elif found is None and before is not None:
            logger.info("no longer held up by rank %d on %s", before.rank, before.node)
            self.log.event("no_straggler", step=step)
