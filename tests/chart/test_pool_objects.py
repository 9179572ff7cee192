# SPDX-License-Identifier: Apache-2.0
"""Pools of the release: a hook's where the kind is not known yet, objects like all others where it is."""

from __future__ import annotations

import json

from kinema_api.names import API_VERSION, POOL_KIND

from tests.chart.conftest import VALUES, Object, Render, named, of_kind
from tests.chart.test_objects import check

KNOWS = (f"{API_VERSION}/{POOL_KIND}",)


def marks(pool: Object) -> dict[str, str]:
    found: dict[str, str] = pool["metadata"]["annotations"]
    return found


def own(objects: list[Object]) -> str:
    """The pools that the release says are its objects."""
    return marks(named(objects, "ConfigMap", "kinema-config"))["kinema.dev/pools"]


def test_on_a_first_install_a_hook_makes_the_pools(render: Render) -> None:
    objects = render(VALUES["pools"], namespace="mine")
    assert own(objects) == ""
    for pool in of_kind(objects, POOL_KIND):
        assert marks(pool)["helm.sh/hook"] == "post-install,post-upgrade,post-rollback"
        assert marks(pool)["meta.helm.sh/release-name"] == "kinema"
        assert marks(pool)["meta.helm.sh/release-namespace"] == "mine"
        assert pool["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm", "so that Helm takes it over later"


def test_where_the_kind_is_known_they_are_objects_that_stay(render: Render) -> None:
    objects = render(VALUES["pools"], knows=KNOWS)
    assert own(objects) == "cpu,h100"
    for pool in of_kind(objects, POOL_KIND):
        check(pool)
        assert not [name for name in marks(pool) if name.startswith("helm.sh/hook")]
        assert marks(pool)["helm.sh/resource-policy"] == "keep"
        assert json.loads(marks(pool)["kinema.dev/given"]) == pool["spec"]
