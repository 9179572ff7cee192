# SPDX-License-Identifier: Apache-2.0
"""Log lines: JSON in a pod, text on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

job: ContextVar[str] = ContextVar("job", default="")
"""`namespace/name` of the job that the current task works on; part of every line that it writes."""


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, job, message, then whatever the call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **({"job": job.get()} if job.get() else {}),
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(about)s%(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.about = f"[{job.get()}] " if job.get() else ""
        return super().format(record)


def configure(*, level: str, stream: TextIO = sys.stderr) -> None:
    """Send every line to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if stream.isatty() else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The informer tells of every object that it sees; what goes wrong it says as a warning or error.
    for name in ("kopf", "asyncio", "aiohttp.access", "kubernetes"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
