# SPDX-License-Identifier: Apache-2.0
"""Reads pods: how one ended, and why one does not start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from kinema_api.exits import Termination
from kinema_api.names import CONTAINER
from kinema_operator.observed import PodEnd, Raw

SENTENCE_LIMIT = 512

_NANOSECONDS = re.compile(r"(\.\d{6})\d+")
"""Python knows microseconds."""
_ENDED = frozenset({"Succeeded", "Failed"})
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
"""What kubelet calls the normal way to a start."""
_NO_WORD = 2
"""Rank of a pod that only says that it starts."""


def time_of(text: Any) -> datetime | None:
    """A time of the API; None when there is none."""
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def log_time(text: str) -> datetime | None:
    """When the last line of a log with times was written; None when there is no such line."""
    stamp = text.strip().rpartition("\n")[2].partition(" ")[0]
    try:
        found = datetime.fromisoformat(_NANOSECONDS.sub(r"\1", stamp))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def condition(item: Raw, kind: str) -> Mapping[str, Any]:
    """The condition of a type when it holds, else nothing. Conditions have no order."""
    for entry in (item.get("status") or {}).get("conditions") or ():
        if entry.get("type") == kind and entry.get("status") == "True":
            return dict(entry)
    return {}


def end_of(pod: Raw) -> PodEnd:
    """How a pod stands."""
    status: Raw = pod.get("status") or {}
    ended = _terminated(status.get("containerStatuses"), CONTAINER)
    disruption = condition(pod, "DisruptionTarget")
    code = ended.get("exitCode")
    said = ended.get("message") or ""
    termination = termination_of(said)
    init = _failed_init(status)
    return PodEnd(
        name=pod["metadata"]["name"],
        node=(pod.get("spec") or {}).get("nodeName") or "",
        live=status.get("phase") not in _ENDED,
        failed=status.get("phase") == "Failed" or bool(code),
        exit_code=code if isinstance(code, int) else None,
        # The pod's own word comes first: of an evicted pod the container only says that it was killed.
        reason=status.get("reason") or disruption.get("reason") or ended.get("reason") or _waiting_reason(status),
        message=_one_line(status.get("message") or disruption.get("message") or _init_sentence(init)),
        finished_at=time_of(ended.get("finishedAt")),
        termination=termination,
        started_at=_started(status, CONTAINER),
        init=init.get("name") or "",
        # With FallbackToLogsOnError kubelet puts the end of the log there when the process left no message.
        log_tail=said if termination is None and code else "",
    )


def termination_of(text: str) -> Termination | None:
    """What a stage left in its termination log; None when that is nothing or no such message.

    Fields of a newer stage are passed over. kubelet puts the end of the container's log there when the stage wrote
    nothing, and keeps 4,096 bytes, so anything may come.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    known = {field.alias or name for name, field in Termination.model_fields.items()}
    try:
        return Termination.model_validate({key: value for key, value in data.items() if key in known})
    except ValidationError:
        return None


def running(pod: Raw) -> bool:
    """Whether the stage's container runs, or has run."""
    return (pod.get("status") or {}).get("phase") not in (None, "Pending")


def waiting_of(pods: Iterable[Raw]) -> str:
    """Why pods do not start, in the words of the scheduler or kubelet; the worst reason of all pods, or empty."""
    reasons = sorted((_reason(pod) for pod in pods if not running(pod)), key=lambda reason: reason[0])
    if not reasons:
        return ""
    _, name, sentence = reasons[0]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{name}: {sentence}{more}"


def silent(pods: Iterable[Raw]) -> Raw | None:
    """A pod that does not run and whose status does not say why; None when each says."""
    return next((pod for pod in pods if not running(pod) and _reason(pod)[0] >= _NO_WORD), None)


def _reason(pod: Raw) -> tuple[int, str, str]:
    """Rank (0 is the worst), pod, sentence."""
    name = pod["metadata"]["name"]
    status: Raw = pod.get("status") or {}
    for entry in status.get("conditions") or ():
        if entry.get("type") == "PodScheduled" and entry.get("status") == "False":
            return 0, name, _sentence(entry)
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(entry.get("state") or {}).get("waiting") or {} for entry in containers]
    for state in states:
        if state.get("reason") and state["reason"] not in _STARTING:
            return 1, name, _sentence(state)
    for state in states:
        if state.get("reason"):
            return _NO_WORD, name, _sentence(state)
    return _NO_WORD + 1, name, "not started yet"


def _sentence(entry: Mapping[str, Any]) -> str:
    reason, message = entry.get("reason") or "", _one_line(entry.get("message") or "")
    return ": ".join(part for part in (reason, message) if part) or "no reason given"


def _terminated(statuses: Any, container: str) -> Mapping[str, Any]:
    for entry in statuses or ():
        if entry.get("name") == container:
            return (entry.get("state") or {}).get("terminated") or {}
    return {}


def _started(status: Raw, container: str) -> datetime | None:
    for entry in status.get("containerStatuses") or ():
        if entry.get("name") == container:
            state: Raw = entry.get("state") or {}
            return time_of((state.get("terminated") or state.get("running") or {}).get("startedAt"))
    return None


def _waiting_reason(status: Raw) -> str:
    for entry in status.get("containerStatuses") or ():
        reason = ((entry.get("state") or {}).get("waiting") or {}).get("reason")
        if entry.get("name") == CONTAINER and reason and reason not in _STARTING:
            return str(reason)
    return ""


def _failed_init(status: Raw) -> Mapping[str, Any]:
    """The init container that failed, with its end; empty when none did."""
    for entry in status.get("initContainerStatuses") or ():
        ended = (entry.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return {"name": entry.get("name"), **ended}
    return {}


def _init_sentence(ended: Mapping[str, Any]) -> str:
    if not ended:
        return ""
    said = f": {ended['message']}" if ended.get("message") else ""
    return f"init container {ended['name']} ended with code {ended['exitCode']}{said}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SENTENCE_LIMIT else line[: SENTENCE_LIMIT - 3] + "..."
