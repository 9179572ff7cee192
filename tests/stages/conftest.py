# SPDX-License-Identifier: Apache-2.0
"""The engine's workspace, as a fixture."""

from __future__ import annotations

from tests.engine import engine, train, weights

__all__ = ["engine", "train", "weights"]
