# SPDX-License-Identifier: Apache-2.0
"""PromQL: what a query asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import promql_parser
from promql_parser import VectorSelector

RATE_INTERVAL = "$__rate_interval"
VARIABLE = re.compile(r"\$\{?([A-Za-z_]+)(?::[a-z]+)?\}?")
NOT_EMPTY = '!=""'
GENERAL: Mapping[str, str] = MappingProxyType({"__rate_interval": "5m", "__range": "1h", "__interval": "1m"})
"""Grafana's own variables, as durations that a parser takes."""


def filled(expr: str, values: Mapping[str, str] = GENERAL) -> str:
    """A query with its variables filled in; those that have no value match everything."""
    return VARIABLE.sub(lambda found: values.get(found[1], GENERAL.get(found[1], ".*")), expr)


def parsed(expr: str) -> Any:
    """The syntax tree of a query; ValueError when it is none."""
    return promql_parser.parse(filled(expr))


def selectors(expr: str) -> Iterator[VectorSelector]:
    """Every selection of series in a query."""
    found: list[VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(parsed(expr), visit)
    return iter(found)


def names(expr: str) -> set[str]:
    """The names of the metrics that a query asks for."""
    return {str(selector.name) for selector in selectors(expr)}


def made_of(expr: str) -> list[str]:
    """The series that a query selects, each as a query of its own that asks for its labels but for no values."""
    return sorted({_shape(selector) for selector in selectors(expr)})


def _shape(selector: VectorSelector) -> str:
    labels = sorted({matcher.name for matcher in selector.matchers.matchers})
    return f"{selector.name}{{{', '.join(label + NOT_EMPTY for label in labels)}}}"
