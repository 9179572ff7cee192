# SPDX-License-Identifier: Apache-2.0
"""What ends a command early."""

from __future__ import annotations

USER = 64
"""`kinema_api.exits.Exit.USER`, spelt out: `--help` must not wait for the models."""


class CommandError(Exception):
    """The command cannot go on; the message says what was wrong, where, and what to do."""

    def __init__(self, message: str, *, code: int = USER) -> None:
        super().__init__(message)
        self.code = int(code)
