# SPDX-License-Identifier: Apache-2.0
"""Breaks one exchange of the engine, in one of several ways."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def broken(what: tuple[str, str] | None) -> Iterator[None]:
    """While this lasts, an exchange is broken."""
    yield
