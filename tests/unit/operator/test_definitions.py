# SPDX-License-Identifier: Apache-2.0
"""The installed CRDs against the operator's own: what is said, and what is waited for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from kinema_api.crd import ANNOTATION_DIGEST, ANNOTATION_VERSION, job_definition, pool_definition
from kinema_kube.errors import ForbiddenError, UnreachableError
from kinema_kube.resources import CUSTOM_RESOURCE_DEFINITIONS as CRDS
from kinema_operator import definitions
from kinema_operator.definitions import ForeignDefinitionError, compare, confirm

from tests.unit.operator.fakes import FakeKube

HERE = {ANNOTATION_DIGEST: "d1", ANNOTATION_VERSION: "0.9.0"}


@pytest.fixture
def api() -> FakeKube:
    made = FakeKube()
    for definition in (job_definition(), pool_definition()):
        made.put(CRDS, definition)
    return made


def installed(**annotations: str) -> dict[str, Any]:
    return {"metadata": {"name": "videotrainingjobs.kinema.dev", "annotations": annotations}}


def test_its_own_definitions_are_confirmed_without_a_word(api: FakeKube, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(confirm(api.kube))
    assert api.verbs("customresourcedefinitions") == ["get", "get"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("annotations", "says", "run"),
    [
        ({}, "older than this operator 0.9.0, it carries no kinema.dev/definition-version", "kubectl apply"),
        ({ANNOTATION_DIGEST: "d0", ANNOTATION_VERSION: "0.8.1"}, "of 0.8.1 is older than", "kubectl apply"),
        ({ANNOTATION_DIGEST: "d2", ANNOTATION_VERSION: "0.10.0"}, "of 0.10.0 is newer than", "chart 0.10.0"),
        ({ANNOTATION_DIGEST: "d2", ANNOTATION_VERSION: "0.9.0"}, "of another build of 0.9.0", "kubectl apply"),
    ],
)
def test_another_definition_is_named_with_what_to_run(annotations: dict[str, str], says: str, run: str) -> None:
    sentence = compare(installed(**annotations), HERE)
    assert sentence.startswith("CRD videotrainingjobs.kinema.dev ")
    assert says in sentence
    assert run in sentence
    assert "\n" not in sentence


def test_the_same_digest_is_enough_whatever_the_release() -> None:
    assert compare(installed(**{ANNOTATION_DIGEST: "d1", ANNOTATION_VERSION: "0.8.0"}), HERE) == ""


def test_another_definition_ends_the_start(api: FakeKube) -> None:
    definition = pool_definition()
    definition["metadata"]["annotations"][ANNOTATION_DIGEST] = "changed"
    api.put(CRDS, definition)
    with pytest.raises(ForeignDefinitionError, match=r"trainingpools\.kinema\.dev is of another build"):
        asyncio.run(confirm(api.kube))


def test_a_missing_definition_is_waited_for_and_told_once(
    api: FakeKube, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "RETRY", 0)
    pools = api.objects.pop((CRDS.plural, None, "trainingpools.kinema.dev"))

    async def installs() -> None:
        waiting = asyncio.create_task(confirm(api.kube))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(api.calls) > 3
        assert not waiting.done()
        api.put(CRDS, pools)
        await waiting

    asyncio.run(installs())
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "CRD trainingpools.kinema.dev is not installed; run `kubectl apply" in said.getMessage()


def test_an_api_server_that_fails_is_asked_again(
    api: FakeKube, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "RETRY", 0)
    api.trouble["get", "customresourcedefinitions"] = [UnreachableError("refused")]
    asyncio.run(confirm(api.kube))
    assert "the CRDs cannot be read: UnreachableError: refused; trying again" in caplog.text


def test_without_the_right_to_read_them_the_operator_works_and_says_so(
    api: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    api.trouble["get", "customresourcedefinitions"] = [ForbiddenError("no", status=403)]
    asyncio.run(confirm(api.kube))
    assert "grant get on customresourcedefinitions" in caplog.text
