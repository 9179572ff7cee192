# SPDX-License-Identifier: Apache-2.0
"""Watches jobs and their pods from beside: what may never be even for a moment, and what the status said meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kinema_demo.follow import KIND
from kinema_demo.kubectl import Kubectl, Object

from kinema_api.names import LABEL_ATTEMPT, LABEL_JOB_UID, LABEL_STAGE
from kinema_api.status import AttemptState, JobStatus

RETRY = 0.5
"""Seconds before a broken watch is opened again."""


def live(pod: Object) -> bool:
    """Whether a container of the pod may run, now or later."""
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def doubled(pods: Iterable[Object]) -> list[str]:
    """The stages of jobs of which pods of more than one attempt live."""
    attempts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        if live(pod) and LABEL_JOB_UID in labels:
            attempts[labels[LABEL_JOB_UID], labels[LABEL_STAGE]].add(labels[LABEL_ATTEMPT])
    return [
        f"{uid}: pods of attempts {', '.join(sorted(found))} of {stage} lived at the same time"
        for (uid, stage), found in attempts.items()
        if len(found) > 1
    ]


@dataclass
class Witness:
    """Two watches, opened again as often as they break."""

    kubectl: Kubectl
    wrongs: list[str] = field(default_factory=list)
    """Moments at which two attempts of one stage lived."""
    _diagnoses: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _ended: set[str] = field(default_factory=set)
    _pods: dict[str, Object] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Witness:
        for kind, see in (("pods", self._see_pod), (KIND, self._see_job)):
            thread = threading.Thread(target=self._watch, args=(kind, see), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in list(self._processes.values()):
            process.terminate()
        for thread in self._threads:
            thread.join(10)

    def diagnoses(self, uid: str) -> list[str]:
        """Every diagnosis that a job's status has held, in order."""
        return list(self._diagnoses[uid])

    def saw_the_end_of(self, uid: str) -> bool:
        """Whether the watch has come to the job's end."""
        return uid in self._ended

    def doubles(self, uid: str) -> list[str]:
        """The moments at which two attempts of one of the job's stages lived."""
        return [wrong for wrong in self.wrongs if wrong.startswith(uid)]

    def _watch(self, kind: str, see: Callable[[Mapping[str, Object | str]], None]) -> None:
        while not self._stop.is_set():
            if kind == "pods":
                self._pods.clear()
            with self.kubectl.popen("get", kind, "-w", "-o", "json", "--output-watch-events") as process:
                self._processes[kind] = process
                for line in process.stdout or ():
                    if not line.endswith("\n"):
                        break  # kubectl was cut short
                    see(json.loads(line))
            self._stop.wait(RETRY)

    def _see_pod(self, event: Mapping[str, Object]) -> None:
        pod = event["object"]
        if pod.get("kind") != "Pod":
            return
        uid = pod["metadata"]["uid"]
        if str(event["type"]) == "DELETED":
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod
        self._note(doubled(self._pods.values()))

    def _see_job(self, event: Mapping[str, Object]) -> None:
        job = event["object"]
        if job.get("kind") != "VideoTrainingJob" or str(event["type"]) == "DELETED":
            return
        uid, status = job["metadata"]["uid"], JobStatus.model_validate(job.get("status") or {})
        said = self._diagnoses[uid]
        if status.diagnosis and status.diagnosis not in said:
            said.append(status.diagnosis)
        self._note(
            f"{uid}: the status has two running attempts of {stage.name}"
            for stage in status.stages
            if sum(attempt.state is AttemptState.RUNNING for attempt in stage.attempts) > 1
        )
        if status.phase.terminal:
            self._ended.add(uid)

    def _note(self, wrongs: Iterable[str]) -> None:
        self.wrongs += [wrong for wrong in wrongs if wrong not in self.wrongs]
