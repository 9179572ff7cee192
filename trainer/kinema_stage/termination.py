# SPDX-License-Identifier: Apache-2.0
"""From whatever ended a stage to its exit code and its termination message."""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from kinema_api.exits import Exit, StageError, Termination
from kinema_api.names import TERMINATION_LOG, Stage
from kinema_stage.memory import GIB, Memory

logger = logging.getLogger(__name__)

ENV_LOG = "KINEMA_TERMINATION_LOG"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE})
_BY_CLASS = {
    "OutOfMemoryError": Exit.OUT_OF_MEMORY,
    "MemoryError": Exit.HOST_OUT_OF_MEMORY,
    "KeyboardInterrupt": Exit.INTERRUPTED,
    # torch.distributed's, known by name because this package does without torch.
    "DistError": Exit.COMMUNICATION,
}


_HOST_MEMORY = ("can't allocate memory", "cannot allocate memory", "is killed by signal: killed")
"""What torch says of the host's memory in a plain RuntimeError."""
_SMALLER = {
    Stage.TRAIN: "set stages.train.recompute, lower stages.train.batchPerDevice (and raise accumulate), or spread the"
    " model over more devices by nodes and devicesPerNode",
    Stage.FEATURES: "set stages.features.dtype to bfloat16, lower stages.prepare.video, or take a device with more"
    " memory",
    Stage.SAMPLE: "lower stages.sample.video, or take a device with more memory",
}
_BOILERPLATE = ("If reserved but unallocated memory", "See documentation for Memory Management")


class WorkerError(StageError):
    """A process of the stage ended badly; what it left is kept.

    Args:
        code: what the stage exits with.
        message: the sentence.
        stacks: address of its threads' stacks.
        tail: the last lines that it wrote.
    """

    def __init__(self, code: Exit, message: str, *, stacks: str | None = None, tail: str = "") -> None:
        super().__init__(code, message)
        self.stacks = stacks
        self.tail = tail


def log_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the termination message goes; None outside a container."""
    if named := environment.get(ENV_LOG):
        return Path(named)
    default = Path(TERMINATION_LOG)
    return default if default.exists() else None


def write(termination: Termination, *, environment: Mapping[str, str] = os.environ) -> None:
    """Leave the message where kubelet finds it."""
    path = log_path(environment)
    if path is None:
        return
    try:
        path.write_bytes(termination.encode())
    except OSError as error:
        logger.warning("no termination message: %s", error)


def failure(error: BaseException, *, workspace: Path | None, stage: Stage | None = None) -> Termination:
    """The message of a stage that raised.

    Args:
        error: what ended it.
        workspace: root of the workspace; a file error below it, or one without a name, is the storage's.
        stage: which one, for advice that fits.
    """
    for cause in _causes(error):
        if isinstance(cause, WorkerError):
            end = _failed(cause.code, cause.message)
            return end.model_copy(update={"stacks": cause.stacks, "log_tail": cause.tail})
        if isinstance(cause, StageError):
            return _failed(cause.code, cause.message)
        code = _code(cause, workspace)
        if code is not None:
            return _failed(code, _sentence(code, cause, workspace=workspace, stage=stage))
    return _failed(Exit.INTERNAL, _last_line(error))


def stalled(who: str, *, stacks: str | None) -> Termination:
    """The message of a stage that the watchdog ends."""
    return _failed(Exit.STALLED, who).model_copy(update={"stacks": stacks})


def host_memory(what: str, *, memory: Memory | None = None) -> str:
    """The sentence for a lack of the host's memory."""
    figures = str(memory or Memory.read())
    known = f" ({figures})" if figures else ""
    return f"{what}: the host's memory did not suffice{known}; raise the stage's resources.memory"


def _sentence(code: Exit, cause: BaseException, *, workspace: Path | None, stage: Stage | None) -> str:
    text = _last_line(cause)
    if code is Exit.STORAGE and isinstance(cause, OSError):
        return _storage(cause, workspace)
    if code is Exit.HOST_OUT_OF_MEMORY:
        return host_memory(text)
    if code is Exit.OUT_OF_MEMORY:
        figures = min((text.partition(word)[0] for word in _BOILERPLATE), key=len).strip()
        default = "take a device with more memory"
        advice = default if stage is None else _SMALLER.get(stage, default)
        return f"the device's memory did not suffice: {figures.rstrip('.')}; {advice}"
    return text


def _storage(error: OSError, workspace: Path | None) -> str:
    path = Path(os.fsdecode(error.filename)) if error.filename is not None else workspace
    inside = workspace is not None and path is not None and path.is_relative_to(workspace)
    place = f"the workspace {workspace}" if inside else f"the local disk at {path}" if path else "a disk"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{place} fails: {error}; free space or mend the volume"
    fix = "free space or enlarge the volume" if inside else "raise podTemplate.scratch or the node's ephemeral storage"
    return f"{place} is full{_room(path)}: {error}; {fix}"


def _room(path: Path | None) -> str:
    """Free and total space where a path is or would be."""
    for folder in () if path is None else (path, *path.parents):
        try:
            room = os.statvfs(folder)
        except OSError:
            continue
        free, total = room.f_bavail * room.f_frsize / GIB, room.f_blocks * room.f_frsize / GIB
        return f" ({free:.1f} of {total:.1f} GiB free)"
    return ""


def _failed(code: Exit, message: str) -> Termination:
    reason = "".join(word.capitalize() for word in code.name.split("_"))
    return Termination(code=code, reason=reason, message=message)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _code(error: BaseException, workspace: Path | None) -> Exit | None:
    if isinstance(error, OSError) and _is_storage(error, workspace):
        return Exit.STORAGE
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_CLASS:
            return _BY_CLASS[kind.__name__]
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return Exit.HOST_OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _HOST_MEMORY):
        return Exit.HOST_OUT_OF_MEMORY
    # torch_npu raises a plain RuntimeError.
    if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
        return Exit.OUT_OF_MEMORY
    return None


def _is_storage(error: OSError, workspace: Path | None) -> bool:
    if error.errno in _FULL:
        return True
    if error.errno not in _UNUSABLE or workspace is None:
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(workspace)


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error)).strip()
