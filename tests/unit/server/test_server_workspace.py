# SPDX-License-Identifier: Apache-2.0
"""History and samples: a real reader process, started as a fake cluster's pod."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from kinema_api.names import ANNOTATION_CONFIG, LABEL_JOB_UID, run_folder
from kinema_server.reader_pod import NoReaderError, manifest, name_of

from tests.unit.kube.fake import Answer, Request, status
from tests.unit.server.conftest import JOB, World

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

ONE = "/v1alpha1/namespaces/team/videotrainingjobs/wan"
PODS = "/api/v1/namespaces/team/pods"
VIDEO = b"video" * 1000
SPEC = {
    "storage": {"uri": "pvc://training/kinema", "secretRef": {"name": "keys"}},
    "defaults": {"serviceAccountName": "trainer", "imagePullSecrets": ["registry"]},
}
STATUS = {"resolved": {"images": {"check": "kinema/stage@sha256:1"}}}


class Kubelet:
    """Runs the reader of a fake cluster's pod as a process, on a folder in place of the claim."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.processes: list[asyncio.subprocess.Process] = []
        self.created: list[dict[str, Any]] = []
        self._starting: set[asyncio.Task[None]] = set()
        world.fake.hooks.insert(0, self._answer)

    def _answer(self, request: Request) -> Answer | None:
        if request.path == PODS and request.method == "POST":
            self.created.append(request.body)
            path = f"{PODS}/{request.body['metadata']['name']}"
            self.world.fake.put(path, request.body)
            task = asyncio.get_running_loop().create_task(self._start(path))
            self._starting.add(task)
            return 201, self.world.fake.objects[path]
        if request.path.startswith(f"{PODS}/") and request.method == "DELETE":
            del self.world.fake.objects[request.path]
            return 200, status(200, "", "")
        return None

    async def _start(self, path: str) -> None:
        pod = self.world.fake.objects[path]
        config = json.loads(pod["metadata"]["annotations"][ANNOTATION_CONFIG])
        config |= {"port": 0, "workspace": {"uri": f"file://{self.folder}"}}
        file = self.folder / "reader.json"
        file.write_text(json.dumps(config))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kinema_stage.reader", "--config", str(file), stdout=asyncio.subprocess.PIPE
        )
        self.processes.append(process)
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.search(r"port (\d+)", line)
        assert found is not None, line
        pod["spec"]["containers"][0]["ports"][0]["containerPort"] = int(found[1])
        pod["status"] = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}

    async def stop(self) -> None:
        await asyncio.gather(*self._starting)
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def kubelet(world: World, tmp_path: Path) -> AsyncIterator[Kubelet]:
    world.fake.objects[JOB] |= {"spec": SPEC, "status": STATUS}
    run = tmp_path / run_folder(namespace="team", name="wan", uid=world.fake.objects[JOB]["metadata"]["uid"])
    (run / "samples").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "loss": {1 / n}}}\n' for n in range(1, 101)))
    (run / "samples" / "00-seed1.mp4").write_bytes(VIDEO)
    (run / "samples" / "samples.jsonl").write_text('{"prompt": "p", "seed": 1, "file": "00-seed1.mp4"}\n')
    running = Kubelet(world, tmp_path)
    yield running
    await running.stop()


async def test_a_reader_is_started_once_and_shows_the_workspace(world: World, kubelet: Kubelet) -> None:
    world.client.timeout = 60
    before = REGISTRY.get_sample_value("kinema_server_readers_total", {"result": "created"}) or 0
    answer = await world.get(f"{ONE}/history?points=20&series=loss")
    assert answer.status_code == 200, answer.text
    (loss,) = answer.json()["series"]
    assert (answer.json()["step"], len(loss["values"])) == (100, 20)
    (sample,) = (await world.get(f"{ONE}/samples")).json()["items"]
    assert (sample["round"], sample["file"], sample["size"]) == ("final", "00-seed1.mp4", len(VIDEO))
    video = await world.get(f"{ONE}/samples/final/00-seed1.mp4")
    assert (video.status_code, video.content, video.headers["content-type"]) == (200, VIDEO, "video/mp4")
    headers = {"Authorization": "Bearer good", "Range": "bytes=2-4"}
    part = await world.client.get(f"{ONE}/samples/final/00-seed1.mp4", headers=headers)
    assert (part.status_code, part.content) == (206, VIDEO[2:5])
    assert part.headers["content-range"] == f"bytes 2-4/{len(VIDEO)}"
    assert (await world.get(f"{ONE}/samples/final/absent.mp4")).status_code == 404
    assert len(kubelet.created) == 1
    assert REGISTRY.get_sample_value("kinema_server_readers_total", {"result": "created"}) == before + 1


async def test_a_reader_that_ended_or_has_another_token_is_replaced(world: World, kubelet: Kubelet) -> None:
    world.client.timeout = 60
    assert (await world.get(f"{ONE}/history")).status_code == 200
    (path,) = [path for path in world.fake.objects if "-reader-" in path]
    world.fake.objects[path]["status"] = {"phase": "Succeeded"}
    assert (await world.get(f"{ONE}/history")).status_code == 200
    world.fake.objects[path]["metadata"]["annotations"]["kinema.dev/reader-token-digest"] = "0" * 64
    assert (await world.get(f"{ONE}/samples")).status_code == 200
    assert len(kubelet.created) == 3


async def test_the_pod_has_the_jobs_account_and_may_only_read(world: World, kubelet: Kubelet) -> None:
    world.client.timeout = 60
    await world.get(f"{ONE}/samples")
    pod = kubelet.created[0]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == world.fake.objects[JOB]["metadata"]["uid"]
    # The operator takes every pod with this label for one of an attempt.
    assert LABEL_JOB_UID not in pod["metadata"]["labels"]
    spec = pod["spec"]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("trainer", False)
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    (container,) = spec["containers"]
    assert container["image"] == "kinema/stage@sha256:1"
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["workspace"] == {"name": "workspace", "mountPath": "/kinema/volumes/training", "readOnly": True}
    assert mounts["secret"]["readOnly"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    config = json.loads(pod["metadata"]["annotations"][ANNOTATION_CONFIG])
    assert config["workspace"]["uri"] == "file:///kinema/volumes/training/kinema"


async def test_a_job_that_has_not_started_has_nothing_to_read(world: World) -> None:
    answer = await world.get(f"{ONE}/history")
    assert (answer.status_code, answer.json()["reason"]) == (404, "NotFound")
    assert "has not started" in answer.json()["detail"]
    assert world.fake.sent("POST", PODS) == []


async def test_nothing_is_started_for_who_may_not_read(world: World) -> None:
    world.allowed = False
    for path in ("history", "samples", "samples/final/00-seed1.mp4"):
        assert (await world.get(f"{ONE}/{path}")).status_code == 403
    assert world.fake.sent("POST", PODS) == []


def test_a_reader_of_a_bucket_mounts_no_claim() -> None:
    job = {"metadata": {"name": "wan", "namespace": "team", "uid": "0123456789"}, "spec": {}, "status": STATUS}
    job["spec"] = {"storage": {"uri": "s3://training/kinema", "secretRef": {"name": "keys"}}}
    pod = manifest(job, digest="0" * 64, idle_seconds=300)
    assert pod["metadata"]["name"] == name_of(job) == "wan-reader-01234567"
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["config", "tmp", "scratch", "secret"]
    with pytest.raises(NoReaderError, match="has not started"):
        manifest({**job, "status": {}}, digest="0" * 64, idle_seconds=300)
