# SPDX-License-Identifier: Apache-2.0
"""Turns the results of steps into the numbers that people watch."""

from __future__ import annotations

from dataclasses import dataclass, field

from kinema_api.settings import TrainSettings
from kinema_trainer.device import Device
from kinema_trainer.loop import Result
from kinema_trainer.reports import Reporter, Step
from kinema_trainer.runlog import RunLog

SMOOTHING = 0.9
"""Share of the old value in the running mean of a step's time."""
WARM_UP = 2
"""First steps of a process that say nothing about its pace."""


@dataclass(slots=True)
class Meter:
    """Listens to the loop of one process; only the leader, who has a log, speaks.

    Args of note:
        samples: of one optimizer step, over all processes.
        flops: of one optimizer step, on one device.
    """

    settings: TrainSettings
    log: RunLog | None
    reporter: Reporter
    samples: int
    flops: float
    device: Device
    _seen: int = field(default=0, init=False)
    _pace: float = field(default=0.0, init=False)

    def step(self, result: Result) -> None:
        """Take in a step."""
        self._seen += 1
        early = self._seen <= WARM_UP
        self._pace = result.seconds if early else SMOOTHING * self._pace + (1 - SMOOTHING) * result.seconds
        if self.log is None:
            return
        step, total = result.position.step, self.settings.steps
        metrics = self.metrics(result)
        self.log.step(step, metrics)
        self.reporter.step(
            Step(
                step=step,
                total=total,
                eta_seconds=self._pace * (total - step),
                metrics=metrics,
                log=step % self.settings.log_every == 0 or step == total,
            )
        )

    def metrics(self, result: Result) -> dict[str, float]:
        """The numbers of a step by name."""
        rate = self.flops / result.seconds
        numbers = {
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.gradient_norm,
            "step_seconds": result.seconds,
            "samples_per_second": self.samples / result.seconds,
            "samples": float(result.position.consumed),
            "tflops_per_second": rate / 1e12,
        }
        if self.device.peak_flops is not None:
            numbers["mfu"] = rate / self.device.peak_flops
        peak = self.device.memory_peak()
        if peak is not None:
            numbers["memory_peak_bytes"] = float(peak)
        return {name: float(f"{value:.6g}") for name, value in numbers.items()}
