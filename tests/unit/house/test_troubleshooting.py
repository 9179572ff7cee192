# SPDX-License-Identifier: Apache-2.0
"""The tree of docs/how-to/troubleshooting.md has a leaf for all that the operator may say, and none that it cannot."""

from __future__ import annotations

import re
from pathlib import Path

from kinema_operator.conditions import REASONS
from kinema_operator.diagnosis import FIXES, OTHERWISE, fix_for

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "troubleshooting.md"
FINE = {"Accepted", "StageRunning", "NotSuspended", "Completed", "Cancelled", "Retried"}
"""Reasons of a job with which nothing is wrong."""
ELSEWHERE = {"CreateContainerConfigError", "ErrImagePull", "FailedAttachVolume", "FailedMount", "ImagePullBackOff"} | {
    "InvalidImageName", "KinemaQueueTooLong", "NoStatus", "NodeNotReady", "ReadWriteMany", "ResourceQuota"
}  # fmt: skip
"""Words of Kubernetes' that look like reasons."""
CODE = re.compile(r"`([^`\n]+)`")
WAITS = re.compile(r"^## It waits\n(.*?)^## ", re.DOTALL | re.MULTILINE)


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_every_reason_has_a_leaf() -> None:
    named = set(CODE.findall(text()))
    assert sorted(REASONS.keys() - FINE - named) == []


def test_every_leaf_is_a_reason() -> None:
    words = {word for word in CODE.findall(text()) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", word)}
    assert sorted(words - REASONS.keys() - ELSEWHERE) == []


def test_every_wait_with_a_cure_has_a_leaf() -> None:
    found = WAITS.search(text())
    assert found is not None
    cured = {fix_for(word) for word in CODE.findall(found[1])} - {OTHERWISE}
    # Of a webhook whose name nobody knows there is nothing to say but what the diagnosis says.
    unnamed = {fix for pattern, fix in FIXES if pattern.pattern == "failed calling webhook"}
    assert [fix for _, fix in FIXES if fix not in cured | unnamed] == []
