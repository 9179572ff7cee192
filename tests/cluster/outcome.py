# SPDX-License-Identifier: Apache-2.0
"""What a fault came to: judged alike for every fault, and tabled in docs/faults.md. UPDATE_DOCS=1 writes it there."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kinema_demo.install import ROOT

from kinema_api.names import Stage
from kinema_api.status import Attempt, AttemptState, JobStatus, Phase

from tests.cluster.jobs import CHILDREN, Job
from tests.cluster.witness import Witness, live
from tests.waiting import until

PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- faults on the cluster -->", "<!-- end of faults on the cluster -->"
HEAD = ("fault", "attempts of train", "last step", "end", "what the status says of it", "told after", "ended after")
MEASURED = 4
"""The columns from here on differ from run to run."""
TITLE = f"""# Faults

## Cluster

{BEGIN}
{END}
"""
# What differs from run to run in a sentence, and how it is written.
VARIABLE = (
    (re.compile(r"\b[\w-]+-(?:train|features)-(\d)-(master|worker)-(\d)\b"), r"wan-train-\1-\2-\3"),
    (re.compile(r"process \d+"), "process PID"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    attempts: str
    step: str
    end: str
    said: str
    told: str
    ended: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns in order."""
        return (self.fault, self.attempts, self.step, self.end, self.said, self.told, self.ended)


@dataclass
class Clock:
    """Takes the time from a fault on."""

    began: float = field(default_factory=time.monotonic)
    told: float | None = None

    def tell(self) -> float:
        """The status tells of the fault now; seconds since it."""
        self.told = time.monotonic() - self.began
        return self.told


def last_step(records: Iterable[Mapping[str, Any]]) -> int:
    """The step up to which the log of training goes, each step in it once and in order."""
    steps = [record["step"] for record in records]
    assert steps == list(range(1, len(steps) + 1)), steps
    return len(steps)


def story(attempts: Iterable[Attempt]) -> str:
    """How the attempts of a stage ended, in order."""
    return ", ".join(
        f"{attempt.state.value} ({attempt.reason})" if attempt.state is AttemptState.FAILED else attempt.state.value
        for attempt in attempts
    )


def judge(
    job: Job,
    witness: Witness,
    *,
    phase: Phase = Phase.SUCCEEDED,
    steps: int | None,
    log: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
) -> JobStatus:
    """What must hold after every fault: the end, the exact last step, nothing that still runs, never two attempts.

    Args:
        job: it has ended, or will.
        witness: watched it from its start.
        phase: the end that should be.
        steps: the last step; None where training cannot have begun.
        log: reads metrics.jsonl; through the workspace's pod when left out.
    """
    status = job.ended(phase)
    if steps is not None:
        assert last_step(job.lines("metrics.jsonl") if log is None else log()) == steps
        if phase is Phase.SUCCEEDED:
            assert job.stage(Stage.TRAIN).counts["steps"] == steps
    until("nothing of it runs", lambda: not any(live(pod) for pod in job.all_pods()), seconds=60)
    known = {attempt.child for stage in status.stages for attempt in stage.attempts}
    made = {child.partition("/")[2] for child in job.children() if not child.startswith("Pod/")}
    assert made <= known, f"orphans of {job.name}: {made - known}"
    until("the watch has come to the end", lambda: witness.saw_the_end_of(job.uid), seconds=30)
    assert witness.doubles(job.uid) == []
    return status


def gone(job: Job) -> None:
    """Delete the job; nothing that it owned may stay."""
    job.delete(wait=False)
    until(f"everything of {job.name} is gone", lambda: not job.children(), seconds=120)
    left = job.kubectl.run("get", ",".join((*CHILDREN, "services", "configmaps")), "-o", "name").splitlines()
    assert not [name for name in left if name.partition("/")[2].startswith(f"{job.name}-")]


def about(witness: Witness, job: Job, words: str) -> str:
    """The first diagnosis of the job that matches; fails when there was none."""
    said = witness.diagnoses(job.uid)
    found = next((sentence for sentence in said if re.search(words, sentence, re.IGNORECASE)), None)
    assert found is not None, f"no diagnosis of {job.name} matches {words!r}; there were: {said}"
    return found


def generic(sentence: str) -> str:
    """A sentence without what differs from run to run."""
    for pattern, word in VARIABLE:
        sentence = pattern.sub(word, sentence)
    return sentence.replace("|", "/")


@dataclass
class Table:
    """The rows of this run."""

    rows: list[Row] = field(default_factory=list)

    def add(self, fault: str, *, job: Job, clock: Clock, said: str, attempts: list[Attempt] | None = None) -> None:
        """Take up the outcome of a fault; a page that has it must say the same of it."""
        status = job.status
        train = job.stage(Stage.TRAIN)
        row = Row(
            fault=fault,
            attempts=story(attempts or train.attempts),
            step=str(train.counts["steps"]) if "steps" in train.counts else "none",
            end=status.phase.value,
            said=generic(said) or "nothing: the job was not hit",
            told="" if clock.told is None else f"{clock.told:.0f} s",
            ended=f"{time.monotonic() - clock.began:.0f} s",
        )
        self.rows.append(row)
        if os.environ.get("UPDATE_DOCS"):
            write([row])
            return
        assert documented().get(fault, row.cells)[1:MEASURED] == row.cells[1:MEASURED], (
            f"docs/faults.md says something else of '{fault}'; UPDATE_DOCS=1 writes what was seen: {row.cells}"
        )

    def text(self) -> str:
        """The table as it is printed."""
        return table(row.cells for row in self.rows)


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table of Markdown."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def documented() -> dict[str, tuple[str, ...]]:
    """The rows of the page, by fault."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return {row[0]: row for row in cells}


def write(rows: Iterable[Row]) -> None:
    """Put rows into the page's table, in the place of those of the same faults."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else TITLE
    assert BEGIN in text and END in text, f"{PAGE} has lost the line {BEGIN} or {END}"
    every = documented() | {row.fault: row.cells for row in rows}
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(every.values())}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
