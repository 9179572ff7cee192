# SPDX-License-Identifier: Apache-2.0
"""Which of this machine's training processes is frozen: one that is gives no sign of life, and cannot say so itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kinema_stage.pace import Phase
from kinema_stage.stacks import STATES
from kinema_trainer.numbers.reports import Beat, Failure

QUIET_SECONDS = 5.0
"""Signs of life come each second: one who gave none for so long, while others did, is the cause of a stall."""
SLACK_SECONDS = 2.0
"""How much longer than its limit the stage waits, so that processes that can speak do so first."""
SHARE = 0.6
"""Of the limit, after which a stage that is one of several nodes does not wait any longer: those that hang on the other
nodes must not speak first, since the end of one node ends all, and only this one knows who is frozen."""


@dataclass(slots=True)
class Roll:
    """When each process was last heard of, by the clock of who listens.

    Args:
        alone: no other node has processes of the run.
    """

    alone: bool = True
    _last: dict[int, tuple[Beat, float]] = field(default_factory=dict)

    def hear(self, beats: Mapping[int, Beat], *, now: float) -> None:
        """Take in the newest signs of life."""
        for rank, beat in beats.items():
            if rank not in self._last or self._last[rank][0].number != beat.number:
                self._last[rank] = (beat, now)

    def quiet(self, *, now: float) -> dict[int, float]:
        """Seconds since the last sign of life of those who owe one."""
        return {
            rank: now - at
            for rank, (beat, at) in self._last.items()
            if beat.phase is not Phase.ENDED and now - at > QUIET_SECONDS
        }

    def overdue(self, *, now: float) -> dict[int, float]:
        """Those of them that were quiet for longer than their own limit."""
        slack = SLACK_SECONDS if self.alone else 0.0
        return {rank: seconds for rank, seconds in self.quiet(now=now).items() if seconds > self.limit([rank]) + slack}

    def limit(self, ranks: Iterable[int]) -> float:
        """The shortest time that these processes may be quiet, by the limit that each last named.

        One that is frozen in a save has a longer one than the peers that wait for it.
        """
        share = 1.0 if self.alone else SHARE
        return share * min(self._last[rank][0].limit for rank in ranks if rank in self._last)

    def starting(self, rank: int) -> bool:
        """Whether a process is still on its way to its first step, by its last sign of life."""
        return rank in self._last and self._last[rank][0].phase is Phase.STARTING

    def first(self) -> Beat | None:
        """The newest sign of life of the lowest rank."""
        return self._last[min(self._last)][0] if self._last else None


def sentence(
    frozen: Mapping[int, float], *, limit: float, states: Mapping[int, str], stalled: Mapping[int, Failure]
) -> str:
    """Who did not answer, for how long, by which limit, and who waited for them.

    Args:
        frozen: seconds without a sign of life by rank; not empty.
        limit: what was allowed.
        states: the kernel's word for each process.
        stalled: the peers that found themselves hung.
    """
    names = " and ".join(
        f"rank {rank} ({STATES.get(states.get(rank, ''), 'it does not answer')})" for rank in sorted(frozen)
    )
    verb = "gave" if len(frozen) == 1 else "each gave"
    text = f"{names} {verb} no sign of life for {max(frozen.values()):.0f} s, the limit is {limit:.0f} s"
    waiting = sorted(set(stalled) - set(frozen))
    if not waiting:
        return text
    word = "rank" if len(waiting) == 1 else "ranks"
    return f"{text}; {word} {', '.join(map(str, waiting))} hung waiting for it"
