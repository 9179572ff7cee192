# SPDX-License-Identifier: Apache-2.0
"""The table of faults and outcomes: printed after a run, compared with docs/faults.md, written by UPDATE_DOCS=1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.controlplane.installation import ROOT
from tests.faults.lives import STEPS, Kind, Outcome

PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- faults on the control plane -->", "<!-- end of faults on the control plane -->"
HEAD = ("fault", "job", "jobs", "end", "last step", "attempts", "two at once", "orphans", "events twice", "diagnosis")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the jobs of one kind under one fault."""

    fault: str
    kind: str
    jobs: int
    end: str
    step: str
    attempts: str
    overlaps: int
    orphans: int
    repeated: int
    diagnosis: str

    @classmethod
    def of(cls, fault: str, kind: Kind, outcomes: list[Outcome]) -> Row:
        return cls(
            fault=fault,
            kind=kind.name,
            jobs=len(outcomes),
            end=_each(outcome.phase for outcome in outcomes),
            step=_each(f"{outcome.step} of {STEPS}" if outcome.step is not None else "none" for outcome in outcomes),
            attempts=_each(_attempts(outcome.attempts) for outcome in outcomes),
            overlaps=sum(outcome.overlaps for outcome in outcomes),
            orphans=sum(outcome.orphans for outcome in outcomes),
            repeated=sum(outcome.repeated for outcome in outcomes),
            diagnosis=_each(outcome.diagnosis or "none needed" for outcome in outcomes),
        )

    def line(self) -> str:
        cells = (
            *(self.fault, f"{self.kind}", self.jobs, self.end, self.step, self.attempts),
            *(self.overlaps, self.orphans, self.repeated, self.diagnosis),
        )
        return "| " + " | ".join(str(cell) for cell in cells) + " |"


@dataclass
class Table:
    """The rows of one run."""

    seen: dict[tuple[str, Kind], list[Outcome]] = field(default_factory=dict)
    injected: dict[str, str] = field(default_factory=dict)
    """By fault, what was done how often."""

    @property
    def rows(self) -> list[Row]:
        return [Row.of(fault, kind, outcomes) for (fault, kind), outcomes in self.seen.items()]

    def add(self, fault: str, kind: Kind, outcomes: list[Outcome]) -> None:
        self.seen.setdefault((fault, kind), []).extend(outcomes)

    def text(self) -> str:
        head = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        counts = [f"- {fault}: {what}" for fault, what in self.injected.items()]
        return "\n".join([*head, *(row.line() for row in self.rows), "", "Injected:", "", *counts])


def stable(line: str) -> str:
    """A line without how often something happened, which differs from run to run."""
    if line.startswith("- "):
        return re.sub(r"\d+", "N", line)
    cells = line.split(" | ")
    return " | ".join([*cells[:2], "N", *cells[3:]]) if len(cells) == len(HEAD) else line


def shown() -> list[str]:
    """The lines of the page's table."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()


def write(text: str) -> None:
    """Put the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(f"{page[:start]}\n\n{text}\n\n{page[end:]}", encoding="utf-8")


def _each(values: Iterable[str]) -> str:
    """What all say, or all that is said."""
    return "; ".join(sorted(set(values)))


def _attempts(attempts: dict[str, int]) -> str:
    more = [f"{count} of {stage}" for stage, count in attempts.items() if count > 1]
    return ", ".join(more) + ", else one a stage" if more else "one a stage"
