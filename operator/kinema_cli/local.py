# SPDX-License-Identifier: Apache-2.0
"""Runs a course on this machine: stage after stage, attempt after attempt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kinema_api.exits import Exit, Termination
from kinema_api.keys import Keys
from kinema_api.names import Stage
from kinema_api.plan import SHARED_STAGES
from kinema_cli.course import Course
from kinema_cli.process import StageProcess, command, environment, retryable
from kinema_cli.records import Folder
from kinema_cli.screen import Screen, duration

POLL_SECONDS = 0.1
_BACKOFF_LIMIT = 300.0


class Stops:
    """Counts Ctrl-C and SIGTERM."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def listening(self) -> Iterator[Stops]:
        """Take the signals until the end."""
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended."""

    code: int
    stage: Stage
    end: Termination
    log: Path | None = None


@dataclass
class Runner:
    """One run of a course."""

    course: Course
    folder: Folder
    screen: Screen
    stops: Stops
    python: str
    secrets: Mapping[str, Path]
    scratch: Path | None
    lock: int
    keys: Keys | None = None
    existing: frozenset[str] = frozenset()

    def run(self, stages: Sequence[Stage]) -> Outcome:
        """Run stages in order, to the first that does not succeed."""
        outcome: Outcome | None = None
        for stage in stages:
            if stage in SHARED_STAGES and stage.value in self.existing:
                said = "published already"
                self.screen.ended(stage, said, well=True)
                outcome = Outcome(Exit.OK, stage, Termination(code=Exit.OK, message=said))
                continue
            outcome = self._stage(stage)
            if outcome.code != Exit.OK:
                return outcome
            if stage is Stage.CHECK:
                self.keys = Keys.stored(outcome.end.keys)
                self.existing = frozenset(outcome.end.existing)
                self.folder.write(outcome.end.keys)
        assert outcome is not None
        return outcome

    def _stage(self, stage: Stage) -> Outcome:
        """Run attempts until one succeeds, the user stops, or no other can help."""
        failures = 0
        while True:
            outcome = self._attempt(stage, again=failures)
            if outcome.code == Exit.OK or self.stops.count:
                return outcome
            failures += 1
            if failures > self.course.retries(stage) or not retryable(outcome.code):
                return outcome
            pause = min(_BACKOFF_LIMIT, self.course.spec.policy.restarts.backoff_seconds * 2.0 ** (failures - 1))
            self.screen.note(
                f"{stage}: {outcome.end.message} (exit code {outcome.code}); tries again in {duration(pause)},"
                f" {failures} of {self.course.retries(stage)}"
            )
            if not self._pause(pause):
                return outcome

    def _attempt(self, stage: Stage, *, again: int) -> Outcome:
        number = self.folder.attempt(stage)
        config, log, termination = (self.folder.file(stage, number, kind) for kind in ("json", "log", "termination"))
        made = self.course.config(stage, attempt=number, keys=self.keys)
        config.write_text(made.model_dump_json(by_alias=True, exclude_none=True, indent=1), encoding="utf-8")
        env = environment(
            self.course,
            stage,
            base=os.environ,
            termination=termination,
            secrets=self.folder.secrets(self.secrets),
            scratch=self.scratch,
        )
        self.screen.started(stage, "runs" if not again else f"runs again, after {again} failures")
        process = StageProcess.start(
            command(self.python, stage, config), env=env, log=log, termination=termination, lock=self.lock
        )
        try:
            timed_out = self._follow(stage, process)
        finally:
            if process.popen.poll() is None:
                process.kill()
        end = process.end()
        if timed_out:
            limit = self.course.of(stage).timeout_seconds
            end = Termination(code=Exit.STALLED, reason="Timeout", message=f"took longer than {limit} s")
        well = end.code == Exit.OK
        self.screen.ended(stage, end.message if well else f"{end.message} (exit code {end.code})", well=well)
        return Outcome(end.code, stage, end, log)

    def _follow(self, stage: Stage, process: StageProcess) -> bool:
        """Show the progress until the process ends, and stop it when asked; whether its time ran out."""
        limit = self.course.of(stage).timeout_seconds
        due = time.monotonic() + limit if limit is not None else None
        kill_at: float | None = None
        timed_out = False
        while process.popen.poll() is None:
            self._show(stage, process)
            now = time.monotonic()
            timed_out = timed_out or (due is not None and now > due and not self.stops.count)
            if kill_at is None and (self.stops.count or timed_out):
                grace = self.course.grace(stage)
                process.terminate()
                kill_at = now + grace
                self.screen.note(f"{stage}: told to save and stop, at most {duration(grace)}; Ctrl-C again kills it")
            if self.stops.count > 1 or (kill_at is not None and now > kill_at):
                process.kill()
                break
            time.sleep(POLL_SECONDS)
        self._show(stage, process)
        return timed_out

    def _show(self, stage: Stage, process: StageProcess) -> None:
        for reading in process.readings():
            self.screen.moved(stage, reading)

    def _pause(self, seconds: float) -> bool:
        """Wait; False when the user stopped it."""
        due = time.monotonic() + seconds
        while not self.stops.count and time.monotonic() < due:
            time.sleep(POLL_SECONDS)
        return not self.stops.count
