# SPDX-License-Identifier: Apache-2.0
"""Long work over many tensors or files: heard of now and then, and ended by SIGTERM between two of them."""

from __future__ import annotations

from kinema_stage.context import Context

_REPORTS = 20


class Tally:
    """Counts finished units; call it once for each.

    Args:
        context: the stage that works.
        total: all units.
    """

    def __init__(self, context: Context, total: int) -> None:
        self._context = context
        self._total = total
        self._done = 0
        context.progress.report(done=0, total=total)

    def __call__(self) -> None:
        """One more is done.

        Raises:
            StageError: SIGTERM came.
        """
        self._context.check_interrupted()
        self._done += 1
        if self._done * _REPORTS // self._total != (self._done - 1) * _REPORTS // self._total:
            self._context.progress.report(done=self._done, total=self._total)
