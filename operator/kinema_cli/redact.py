# SPDX-License-Identifier: Apache-2.0
"""Takes secrets out of what is handed to others. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

GONE = "<left out>"
_SECRET_NAME = re.compile(
    r"(secret|token|passw|credential|private|api_?key|access_?key|authorization|cookie)", re.IGNORECASE
)
_HARMLESS = re.compile(r"(_FILE|_PATH|_DIR|_URL|_NAME|_SECONDS|_PARALLELISM)$", re.IGNORECASE)
_KEYED = re.compile(
    r"(?P<key>\b(?:[\w-]*(?:secret|password|passwd|api[_-]?key|access[_-]?key)|(?:[\w-]*[_-])?token|authorization)"
    r"[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"',;}&]{4,}",
    re.IGNORECASE,
)
_PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?<=X-Amz-Signature=)[0-9a-fA-F]+"),
    re.compile(r"(?<=[Bb]earer )[\w.~+/-]{8,}=*"),
)
_ANNOTATIONS = frozenset({"kubectl.kubernetes.io/last-applied-configuration"})


def text(said: str) -> str:
    """Text without what looks like a secret."""
    said = _KEYED.sub(lambda found: f"{found['key']}{GONE}", said)
    for pattern in _PATTERNS:
        said = pattern.sub(GONE, said)
    return said


def data(found: Any) -> Any:
    """An object without bookkeeping, values of secret variables, and what looks like a secret."""
    if isinstance(found, Mapping):
        if isinstance(found.get("name"), str) and "value" in found and _secret(found["name"]):
            return {**found, "value": GONE}
        return {key: data(value) for key, value in found.items() if key != "managedFields" and key not in _ANNOTATIONS}
    if isinstance(found, list):
        return [data(item) for item in found]
    return text(found) if isinstance(found, str) else found


def _secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS.search(name)
