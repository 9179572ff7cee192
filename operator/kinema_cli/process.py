# SPDX-License-Identifier: Apache-2.0
"""One attempt of a stage as a local process, and what its log says of its progress.

Progress is read from the log and not posted over HTTP: every report is a JSON line of the log anyway, so that the file
serves for following, for looking things up later, and needs neither a port nor a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from kinema_api.exits import Exit, Termination
from kinema_api.names import ENV_ACCELERATOR, ENV_SCRATCH, ENV_SECRETS, Stage
from kinema_api.overrides import RESERVED_ENV
from kinema_cli.course import Course

ENV_TERMINATION = "KINEMA_TERMINATION_LOG"
"""Where a stage writes its termination message outside a container."""
ENV_METRICS_PORT = "KINEMA_METRICS_PORT"
_KEPT = frozenset({"HOME", ENV_SCRATCH, "NVIDIA_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES"})
_TAIL = 15


@dataclass(frozen=True, slots=True)
class Reading:
    """What one line of the log says."""

    done: int | None = None
    total: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None
    warning: str = ""


def parse(line: str) -> Reading | None:
    """A line's progress or warning; None when it has neither."""
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    done, total = found.get("step"), found.get("totalSteps")
    if isinstance(done, int) and isinstance(total, int):
        return Reading(
            done=done, total=total, loss=_number(found.get("loss")), eta_seconds=_number(found.get("etaSeconds"))
        )
    if found.get("level") == "warning" and found.get("message"):
        return Reading(warning=str(found["message"]))
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def command(python: str, stage: Stage, config: Path | str) -> list[str]:
    """What runs a stage; the train stage starts torchrun by itself."""
    return [python, "-m", "kinema_stage.main", stage.value, "--config", str(config)]


def environment(
    course: Course, stage: Stage, *, base: Mapping[str, str], termination: Path, secrets: Path, scratch: Path | None
) -> dict[str, str]:
    """The environment of a stage: the user's own without what would place it in a gang, and what a pod has."""
    own = {name: value for name, value in base.items() if name in _KEPT or not RESERVED_ENV.fullmatch(name)}
    return {
        **own,
        **{variable.name: variable.value for variable in course.template(stage).env},
        "PYTHONUNBUFFERED": "1",
        ENV_ACCELERATOR: course.accelerator(stage).value,
        ENV_METRICS_PORT: "0",
        ENV_TERMINATION: str(termination),
        ENV_SECRETS: str(secrets),
        **({ENV_SCRATCH: str(scratch)} if scratch is not None else {}),
    }


@dataclass
class StageProcess:
    """A running attempt. It has a session of its own: the terminal's Ctrl-C reaches only who started it."""

    popen: subprocess.Popen[bytes]
    log: Path
    termination: Path
    _reader: IO[bytes]
    _rest: bytes = field(default=b"")

    @classmethod
    def start(
        cls, arguments: Sequence[str], *, env: Mapping[str, str], log: Path, termination: Path, lock: int
    ) -> StageProcess:
        """Start it; `lock` stays locked while it lives, even when its parent is killed."""
        termination.unlink(missing_ok=True)
        with log.open("wb") as out:
            popen = subprocess.Popen(
                list(arguments),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
            )
        return cls(popen, log, termination, log.open("rb"))

    def readings(self) -> list[Reading]:
        """What the log says since the last call."""
        *lines, self._rest = (self._rest + self._reader.read()).split(b"\n")
        found = (parse(line.decode(errors="replace")) for line in lines)
        return [reading for reading in found if reading is not None]

    def terminate(self) -> None:
        """Ask it to stop as kubelet does: SIGTERM to the stage, which passes it on to the processes that can save."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.terminate()

    def kill(self) -> None:
        """End it, and what it started in its own process group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def end(self) -> Termination:
        """How it ended; the exit code counts, the message says why."""
        self._reader.close()
        code = self.popen.returncode
        try:
            said = Termination.stored(json.loads(self.termination.read_bytes()))
        except (OSError, ValueError, ValidationError):
            said = None
        if said is not None and said.code == code:
            return said
        if code < 0:
            return Termination(code=128 - code, reason="Killed", message=f"killed by {signal.Signals(-code).name}")
        return Termination(code=code or Exit.INTERNAL, reason="NoResult", message="it left no termination message")

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])


def retryable(code: int) -> bool:
    """Whether another attempt can help; a process that was killed may be luckier."""
    return code >= 128 or (code in set(Exit) and Exit(code).retryable)
