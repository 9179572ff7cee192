# SPDX-License-Identifier: Apache-2.0
"""What users may add to the pods of a stage, and what they may not touch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kinema_api import reserved
from kinema_api.settings import PodTemplate

RESERVED_ENV = re.compile(reserved.ENV)
_OWNED = re.compile(reserved.OWNED)
_LABEL = re.compile(reserved.LABEL)
_KEY = re.compile(reserved.KEY)
_AFFINITY = {
    "nodeAffinity": ("preferredDuringSchedulingIgnoredDuringExecution",),
    "podAffinity": (
        "preferredDuringSchedulingIgnoredDuringExecution",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ),
    "podAntiAffinity": (
        "preferredDuringSchedulingIgnoredDuringExecution",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ),
}
"""The fields of an affinity, and which of their rules are lists that Kinema may add to."""


def refusals(template: PodTemplate, where: str) -> list[str]:
    """Why a template cannot be used, a sentence each; nothing when it can."""
    found = [
        f"{where}.env: {variable.name} is set by Kinema or by what it runs under; choose another name"
        for variable in template.env
        if RESERVED_ENV.fullmatch(variable.name)
    ]
    for field, keys in (("labels", template.labels), ("annotations", template.annotations)):
        found += [
            f"{where}.{field}: {key} belongs to a controller; choose another key"
            for key in keys
            if _OWNED.fullmatch(key)
        ]
    found += _syntax(template, where)
    return found + _affinity(template.affinity or {}, f"{where}.affinity")


def _syntax(template: PodTemplate, where: str) -> list[str]:
    """Keys and values that the API server would refuse, but only when the pods are made."""
    maps = {
        "labels": template.labels,
        "nodeSelector": template.node_selector,
        "annotations": template.annotations,
    }
    found = [
        f"{where}.{field}: {key!r} is no key; write [DOMAIN/]NAME with letters, digits, '-', '_' and '.'"
        for field, entries in maps.items()
        for key in entries
        if not _KEY.fullmatch(key)
    ]
    return found + [
        f"{where}.{field}.{key}: {value!r} is no value of a label; write up to 63 letters, digits, '-', '_' and '.'"
        for field, entries in maps.items()
        if field != "annotations"
        for key, value in entries.items()
        if not _LABEL.fullmatch(value)
    ]


def _affinity(affinity: Mapping[str, Any], where: str) -> list[str]:
    """What could not be joined with Kinema's own rules."""
    found = []
    for field, rules in affinity.items():
        if field not in _AFFINITY:
            found.append(f"{where}.{field}: there is no such field; use {', '.join(_AFFINITY)}")
        elif rules is not None and not isinstance(rules, dict):
            found.append(f"{where}.{field}: write a mapping, as in a pod's spec")
        else:
            lists = [name for name in _AFFINITY[field] if not isinstance((rules or {}).get(name) or [], list)]
            found += [f"{where}.{field}.{name}: write a list, as in a pod's spec" for name in lists]
    return found


def merged(base: PodTemplate, over: PodTemplate) -> PodTemplate:
    """`over` laid on `base`: maps key by key, variables by name, tolerations added up, anything else replaced."""
    env = {variable.name: variable for variable in (*base.env, *over.env)}
    written = {name: getattr(over, name) for name in over.model_fields_set if getattr(over, name) is not None}
    return base.model_copy(
        update={
            **written,
            "labels": {**base.labels, **over.labels},
            "annotations": {**base.annotations, **over.annotations},
            "node_selector": {**base.node_selector, **over.node_selector},
            "tolerations": [*base.tolerations, *(item for item in over.tolerations if item not in base.tolerations)],
            "env": list(env.values()),
        }
    )
