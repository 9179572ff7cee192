# SPDX-License-Identifier: Apache-2.0
"""One job: its stages as a tree, with progress, attempts and what it used. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.text import Text

from kinema_cli.view.jobs import moving, phase_of, progress_of
from kinema_cli.view.table import hanging, pairs
from kinema_cli.view.text import MARKS, STYLES, Raw, between, cut, duration, money, plural

_BAR = 16
_LOST = ("lost", "starting", "data", "checkpoint")


def tree(job: Raw, *, now: datetime, width: int | None = None) -> list[Text]:
    """One job, whole, for people."""
    status = job.get("status") or {}
    lines = [_head(job, now), *pairs(_facts(job), indent=2, width=width), Text("")]
    for stage in status.get("stages") or []:
        lines += _stage(job, stage, now=now, width=width)
    if not status.get("stages"):
        lines.append(Text(f"  {status.get('message') or 'the operator has not looked at it yet'}"))
    if used := _used(job):
        lines += [Text(""), *pairs(used, indent=2, width=width)]
    if diagnosis := status.get("diagnosis"):
        lines += [Text(""), *hanging(Text("! "), diagnosis, width=width, style=STYLES["Failed"])]
    return lines


def _head(job: Raw, now: datetime) -> Text:
    status, metadata, phase = job.get("status") or {}, job["metadata"], phase_of(job)
    line = Text()
    line.append(f"{metadata.get('namespace')}/{metadata['name']}", style="bold")
    line.append("  ")
    line.append(phase, style=STYLES.get(phase, ""))
    if status.get("startedAt"):
        word = "after" if status.get("finishedAt") else "for"
        line.append(f" {word} {between(status['startedAt'], status.get('finishedAt'), now)}")
    if status.get("restarts"):
        line.append(f", {plural(status['restarts'], 'failed attempt')}")
    return line


def _facts(job: Raw) -> list[tuple[str, str]]:
    spec, status = job.get("spec") or {}, job.get("status") or {}
    train = (((status.get("resolved") or {}).get("stages") or {}).get("train")) or {}
    defaults = spec.get("defaults") or {}
    pool = train.get("pool") or defaults.get("pool") or ""
    nodes, devices = train.get("nodes") or defaults.get("nodes") or 1, train.get("devicesPerNode")
    size = plural(nodes, "node") + (f" x {plural(devices, 'device')}" if devices else "")
    return [
        ("model", str((spec.get("model") or {}).get("name") or "")),
        ("pool", f"{pool}, {size}" if pool else ""),
        ("workspace", str(status.get("workspace") or (spec.get("storage") or {}).get("uri") or "")),
    ]


def _stage(job: Raw, stage: Mapping[str, Any], *, now: datetime, width: int | None) -> Iterator[Text]:
    attempts: list[Mapping[str, Any]] = stage.get("attempts") or []
    state = _state(job, stage)
    line = Text("  ")
    line.append(f"{MARKS.get(state, '?')} ", style=STYLES.get(state, ""))
    line.append(f"{stage['name']:<9}")
    line.append(f"{state:<10}", style=STYLES.get(state, ""))
    line.append(f"{_took(attempts, now):>7}  ")
    moves = _moves(job, stage, state)
    fits = width is None or len(line) + len(moves) <= width
    line.append(moves if moves and fits else "" if moves else cut(stage.get("message") or "", _room(line, width)))
    line.rstrip()
    yield line
    if moves and not fits:
        yield Text(f"    {cut(moves, (width or 0) - 4)}")
    if len(attempts) > 1 or stage.get("failures"):
        for attempt in attempts:
            yield _attempt(attempt, last=attempt is attempts[-1], now=now, width=width)


def _state(job: Raw, stage: Mapping[str, Any]) -> str:
    """Where a stage stands; one whose attempt was stopped by a pause does not run."""
    attempts = stage.get("attempts") or []
    if stage["state"] == "Pending" and attempts and attempts[-1]["state"] == "Stopped":
        return "Stopped"
    return str(stage["state"])


def _took(attempts: list[Mapping[str, Any]], now: datetime) -> str:
    return between(attempts[0]["startedAt"], attempts[-1].get("finishedAt"), now) if attempts else ""


def _moves(job: Raw, stage: Mapping[str, Any], state: str) -> str:
    """How far a stage is that runs and has nothing else to say."""
    progress, attempts = progress_of(job), stage.get("attempts") or []
    if state != "Running" or progress is None or stage.get("message") or not attempts:
        return ""
    if progress["stage"] != stage["name"] or attempts[-1]["number"] != progress.get("attempt", 1):
        return ""
    return f"{_bar(int(progress.get('percentage') or 0))} {moving(job)}"


def _bar(percentage: int) -> str:
    done = _BAR * max(0, min(100, percentage)) // 100
    return f"[{'#' * done}{'.' * (_BAR - done)}]"


def _attempt(attempt: Mapping[str, Any], *, last: bool, now: datetime, width: int | None) -> Text:
    state = attempt["state"]
    line = Text(f"    {'└' if last else '├'} attempt {attempt['number']} ")
    line.append(f"{state:<10}", style=STYLES.get(state, ""))
    line.append(f"{between(attempt['startedAt'], attempt.get('finishedAt'), now):>6}  ")
    parts = [attempt.get("reason") or "", f"on {attempt['node']}" if attempt.get("node") else ""]
    if state != "Succeeded":
        parts.append(attempt.get("message") or "")
    line.append(
        cut(": ".join(part for part in (" ".join(filter(None, parts[:2])), *parts[2:]) if part), _room(line, width))
    )
    line.rstrip()
    return line


def _room(line: Text, width: int | None) -> int:
    return max(20, (width or 10_000) - len(line))


def _used(job: Raw) -> list[tuple[str, str]]:
    usage = (job.get("status") or {}).get("usage") or {}
    hours = {name: float(value) for name, value in (usage.get("acceleratorHours") or {}).items()}
    if hours:
        total = sum(hours.values())
        share = f", {100 * hours.get('productive', 0) / total:.0f} % productive" if total else ""
        cost = cost_of(job, total)
        return [("used", f"{total:.1f} accelerator-hours{share}"), ("cost", cost or "")]
    seconds = usage.get("seconds") or {}
    total = sum(seconds.values())
    if not total:
        return []
    parts = [f"{duration(seconds[name])} {name}" for name in ("productive", "queued", *_LOST) if seconds.get(name)]
    return [("used", ", ".join(parts))]


def cost_of(job: Raw, hours: float) -> str | None:
    """What accelerator-hours of a job cost; None where its pools have no one price."""
    resolved = (job.get("status") or {}).get("resolved") or {}
    pools = [pool for pool in (resolved.get("pools") or {}).values() if pool.get("accelerator") != "cpu"]
    prices = {
        (pool["prices"]["deviceHour"], pool["prices"].get("currency", "USD")) for pool in pools if pool.get("prices")
    }
    if len(prices) != 1 or not all(pool.get("prices") for pool in pools):
        return None
    price, currency = prices.pop()
    return money(hours * price, currency)
