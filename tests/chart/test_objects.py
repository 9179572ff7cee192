# SPDX-License-Identifier: Apache-2.0
"""Every object that the chart renders is what its kind allows: checked without a cluster."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from kinema_api.names import API_VERSION, POOL_KIND
from kinema_api.pool import PoolSpec

from tests.chart.conftest import KUBE_VERSION, VALUES, Object, Render, Values
from tests.chart.shapes import FOREIGN


def check(item: Object) -> None:
    """Strict: an unknown field is refused.

    Raises:
        ValueError: the object is not what its kind allows.
    """
    shape = FOREIGN.get(item["apiVersion"], {}).get(item["kind"])
    if shape is not None:
        shape.model_validate(item)
    elif (item["apiVersion"], item["kind"]) == (API_VERSION, POOL_KIND):
        PoolSpec.model_validate(item["spec"])
    else:
        _check_kubernetes(json.dumps(item, sort_keys=True))


@cache
def _check_kubernetes(text: str) -> None:
    item = json.loads(text)
    try:
        kubernetes_validate.validate(item, KUBE_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise ValueError(f"{item['kind']} {item['metadata']['name']}: {error}") from error


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_object_is_what_its_kind_allows(render: Render, values: Values) -> None:
    for item in render(values):
        check(item)


@pytest.mark.parametrize(
    "changed",
    [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "x"}, "spec": {"rules": {}}},
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": {"name": "x", "namespace": "y", "labels": {}},
            "spec": {"selector": {}, "endpoints": []},
        },
        {"apiVersion": API_VERSION, "kind": POOL_KIND, "metadata": {"name": "x"}, "spec": {"accelerator": "tpu"}},
    ],
    ids=lambda item: item["kind"],
)
def test_the_check_finds_what_is_wrong(changed: Object) -> None:
    with pytest.raises(ValueError):
        check(changed)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_object_is_rendered_twice(render: Render, values: Values) -> None:
    keys: list[tuple[Any, ...]] = [
        (item["apiVersion"], item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in render(values)
    ]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_namespaced_object_says_where(render: Render, values: Values) -> None:
    everywhere = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", POOL_KIND}
    nowhere = [
        item for item in render(values) if item["kind"] not in everywhere and "namespace" not in item["metadata"]
    ]
    assert not nowhere
