# SPDX-License-Identifier: Apache-2.0
"""Log lines: JSON on stdout where programs read, plain text on a terminal."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import deque
from typing import Any

FIELDS = "kinema_fields"
"""Key of `extra` under which a record carries further fields of its line."""
TAIL_LINES = 20


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, stage, then the record's own fields, then the message."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "stage": self._stage,
            **{name: _plain(value) for name, value in getattr(record, FIELDS, {}).items()},
        }
        if message := record.getMessage():
            line["message"] = message
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class PlainFormatter(logging.Formatter):
    """For people: level (unless it is info), message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, FIELDS, {}).items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{level}{' '.join(part for part in (record.getMessage(), fields) if part)}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class Tail(logging.Handler):
    """Keeps the last lines of the log as people would read them."""

    def __init__(self, lines: int = TAIL_LINES) -> None:
        super().__init__()
        self.setFormatter(PlainFormatter())
        self._lines: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.add(self.format(record))

    def add(self, text: str) -> None:
        """Keep text that went elsewhere, for instance a traceback."""
        self._lines.extend(line for line in text.splitlines() if line.strip())

    @property
    def text(self) -> str:
        """The lines."""
        return "\n".join(tuple(self._lines))


TAIL = Tail()
"""Of this process."""


def set_up(stage: str) -> None:
    """Send every log record of the process to stdout, and keep the last ones."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainFormatter() if sys.stdout.isatty() else JsonFormatter(stage))
    root = logging.getLogger()
    root.handlers[:] = [handler, TAIL]
    root.setLevel(logging.INFO)
