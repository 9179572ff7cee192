# SPDX-License-Identifier: Apache-2.0
"""Jobs that live through faults, and what must be true of each at its end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from kinema_api.exits import Exit
from kinema_cluster.control_plane import ControlPlane

from tests.controlplane.kubelet import Kubelet, badly
from tests.controlplane.team import STAGES, Raw, Team, make_team
from tests.waiting import until

GONE_SECONDS = 120.0
"""The garbage collector may be busy."""
STEPS = 300
"""Of training, in examples/wan-job.yaml."""
FAILS_AT, SAVED = 170, 150
"""The step at which training fails, and that of its last checkpoint then."""
NO_VIDEO = "dataset.uri: none of the 3 videos can be decoded; see quarantine.jsonl"
LOST = "rank 1 lost its connection to rank 0"


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A job that meets a fate of its own, whatever else goes wrong."""

    name: str
    phase: str
    restarts: int
    attempts: dict[str, int]
    """Attempts of each stage."""
    diagnosis: str
    """What its diagnosis names at the end; empty when nothing is wrong."""
    failures: dict[str, tuple[Exit, str, int]] = field(default_factory=dict)
    """How the first attempt of a stage ends."""

    @property
    def trained(self) -> list[tuple[int, int]]:
        """Steps of each run of training."""
        if self.phase != "Succeeded":
            return []
        return [(1, FAILS_AT), (SAVED + 1, STEPS)] if "train" in self.failures else [(1, STEPS)]


ONCE = dict.fromkeys(STAGES, 1)
CALM = Kind("that meets no failure", "Succeeded", 0, ONCE, "")
UNLUCKY = Kind(
    "whose training fails once",
    "Succeeded",
    1,
    {**ONCE, "train": 2},
    "",
    {"train": (Exit.COMMUNICATION, LOST, FAILS_AT)},
)
HOPELESS = Kind(
    "without a usable video",
    "Failed",
    1,
    {"check": 1, "prepare": 1},
    NO_VIDEO,
    {"prepare": (Exit.DATA, NO_VIDEO, 0)},
)
KINDS = (CALM, UNLUCKY, HOPELESS)


@dataclass
class Life:
    """One job in a namespace of its own."""

    kind: Kind
    team: Team
    uid: str

    def ends(self) -> None:
        until(f"the job {self.kind.name} does not end", lambda: self.over, seconds=180)

    @property
    def over(self) -> bool:
        return self.team.status().get("phase") in ("Succeeded", "Failed")

    def judge(self) -> Outcome:
        """What has become of it; fails unless that is exactly what should."""
        status, kind = self.team.status(), self.kind
        outcome = Outcome.of(self)
        assert status["phase"] == kind.phase, status
        assert status["restarts"] == kind.restarts, status
        assert outcome.attempts == kind.attempts, status["stages"]
        children = self.team.children()
        owners = {item["metadata"]["ownerReferences"][0]["uid"] for item in children.values()}
        assert owners == {self.uid}, owners
        assert outcome.orphans == 0, (sorted(children), self._running())
        trained = self.team.kubelet.trained.get(self.uid, [])
        assert trained == kind.trained, f"{trained} instead of {kind.trained}"
        assert outcome.step == (STEPS if kind.phase == "Succeeded" else None), outcome
        assert kind.diagnosis in outcome.diagnosis and bool(kind.diagnosis) == bool(outcome.diagnosis), outcome
        assert outcome.repeated == 0, self.team.told()
        assert outcome.overlaps == 0, self.team.kubelet.overlaps
        if "train" in kind.failures:
            (failed, _) = next(entry for entry in status["stages"] if entry["name"] == "train")["attempts"]
            assert (failed["failure"], failed["message"]) == ("Communication", LOST), failed
        return outcome

    def named(self) -> set[str]:
        """The children that the status names."""
        return {entry["child"] for stage in self.team.status()["stages"] for entry in stage.get("attempts") or ()}

    def _running(self) -> list[str]:
        pods = self.team.pods()
        return [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]

    def left(self) -> list[str]:
        """Every child and pod."""
        return [*self.team.children(), *(pod["metadata"]["name"] for pod in self.team.pods())]

    def orphans(self) -> int:
        """Children that the status does not name, and pods that run although the job has ended."""
        return len(set(self.team.children()) ^ self.named()) + len(self._running())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job shows at its end."""

    phase: str
    step: int | None
    """The last step of training, in the status."""
    attempts: dict[str, int]
    overlaps: int
    """Times at which two attempts of a stage lived."""
    orphans: int
    repeated: int
    """Events that were told twice."""
    diagnosis: str

    @classmethod
    def of(cls, life: Life) -> Outcome:
        status = life.team.status()
        stages: dict[str, Raw] = {entry["name"]: entry for entry in status["stages"]}
        attempts = {name: len(entry["attempts"]) for name, entry in stages.items() if entry.get("attempts")}
        told = Counter(life.team.told())
        return cls(
            phase=status["phase"],
            step=(stages.get("train", {}).get("counts") or {}).get("steps"),
            attempts=attempts,
            overlaps=len([found for found in life.team.kubelet.overlaps if life.uid in found]),
            orphans=life.orphans(),
            repeated=sum(count - 1 for count in told.values()),
            diagnosis=status.get("diagnosis", ""),
        )


def begin(plane: ControlPlane, kubelet: Kubelet, kind: Kind) -> Life:
    """Apply a job of that kind."""
    team = make_team(plane, kubelet)
    for stage, (code, message, reached) in kind.failures.items():
        team.rules.failures[stage] = [badly(code, message, reached=reached)]
    job = team.apply()
    return Life(kind, team, job["metadata"]["uid"])


def gone(lives: list[Life]) -> None:
    """Delete the jobs; nothing of them may stay."""
    for life in lives:
        life.team.kubectl("delete", "vtj", "--all", "--wait=false")
    end = time.monotonic() + GONE_SECONDS
    while left := [name for life in lives for name in life.left()]:
        assert time.monotonic() < end, f"something is left: {left}"
        time.sleep(0.2)
