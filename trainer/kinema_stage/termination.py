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
from kinema_api.names import TERMINATION_LOG

logger = logging.getLogger(__name__)

ENV_LOG = "KINEMA_TERMINATION_LOG"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE})
_BY_CLASS = {
    "OutOfMemoryError": Exit.OUT_OF_MEMORY,
    "MemoryError": Exit.OUT_OF_MEMORY,
    "KeyboardInterrupt": Exit.INTERRUPTED,
    # torch.distributed's, known by name because this package does without torch.
    "DistError": Exit.COMMUNICATION,
}


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


def failure(error: BaseException, *, workspace: Path | None) -> Termination:
    """The message of a stage that raised.

    Args:
        error: what ended it.
        workspace: root of the workspace; a file error below it, or one without a name, is the storage's.
    """
    for cause in _causes(error):
        if isinstance(cause, StageError):
            return _failed(cause.code, cause.message)
        code = _code(cause, workspace)
        if code is Exit.STORAGE:
            return _failed(code, f"the workspace {workspace or ''} fails: {cause}; free space or mend the volume")
        if code is not None:
            return _failed(code, _last_line(cause))
    return _failed(Exit.INTERNAL, _last_line(error))


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
