# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a job: refused where it is found first, in one sentence that says what to do.

No accelerator is booked, nothing is tried again, and nothing is left in the workspace that anybody could take for a
result.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from kinema_demo.kubectl import Kubectl
from kinema_demo.main import JOB
from kinema_demo.target import Target
from kinema_demo.workspace import Shell, inside

from kinema_api.exits import Exit
from kinema_api.names import LABEL_JOB_UID, Stage
from kinema_api.pipeline import merge
from kinema_api.status import AttemptState, JobStatus, Phase, StageState
from kinema_cluster.full import WORKSPACE

from tests.cluster.jobs import DATASET, WEIGHTS, Job, Jobs
from tests.cluster.node import fill, local, small_volume
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Spec = Mapping[str, Any]
FULL, READ_ONLY = "bad-full-SESSION", "bad-read-only-SESSION"
"""Claims that only this session uses."""
INPUTS = "pvc://INPUTS"
"""Stands for the folder with the bad inputs of this session."""


@dataclass(frozen=True, slots=True)
class Bad:
    """One mistake, and what must be said of it."""

    name: str
    spec: Spec
    """What is changed in a good job's spec."""
    reason: str
    """Of the condition `Failed`, or `Accepted` where the job waits."""
    sentence: str
    """Part of the one sentence in the status."""
    fix: str
    """What to do, in the same sentence."""
    stage: Stage | None = None
    """Where a pod finds it; None where the operator does, before there is any."""
    code: Exit | None = None
    """What the pod ends with."""
    phase: Phase = Phase.FAILED
    storage: str = ""
    """The workspace, where it is not a folder of its own on the test's volume."""
    leaves: tuple[str, ...] = field(default=())
    """What may lie in the workspace: for people, or for another attempt; it is no artifact."""


def dataset(folder: str) -> Spec:
    return {"dataset": {"uri": f"{INPUTS}/{folder}"}}


def weights(folder: str) -> Spec:
    return {"model": {"weights": {"uri": f"{INPUTS}/{folder}"}}}


def video(**parts: int) -> Spec:
    return {"stages": {"prepare": {"video": parts}}}


def bucket(secret: str) -> Spec:
    place = {"uri": "s3://videos/clips", "endpoint": "http://127.0.0.1:9", "secretRef": {"name": secret}}
    return {"dataset": place}


def at_check(name: str, spec: Spec, code: Exit, sentence: str, fix: str, storage: str = "") -> Bad:
    reason = {Exit.USER: "InvalidInput", Exit.DATA: "DataError", Exit.WEIGHTS: "WeightsError"}[code]
    return Bad(name, spec, reason, sentence, fix, stage=Stage.CHECK, code=code, storage=storage)


PLAN = (
    Bad(
        "unknown-model",
        {"model": {"name": "wan2.1-t2v-1.4b"}},
        "UnknownModel",
        "spec.model.name: model wan2.1-t2v-1.4b is not in the catalogue",
        "did you mean wan2.1-t2v-14b or wan2.1-t2v-1.3b",
    ),
    Bad(
        "task",
        {"model": {"task": "i2v"}},
        "TaskNotSupported",
        "spec.model.task: wan2.1-tiny cannot do i2v",
        "write t2v or v2v, or name a model that can do i2v",
    ),
    Bad("frames", video(frames=16), "InvalidVideo", "prepare.video.frames: 16 is not 4n+1", "use 13 or 17"),
    Bad("height", video(height=100), "InvalidVideo", "height: 100 does not divide by 16", "use 96 or 112"),
    Bad("width", video(width=250), "InvalidVideo", "width: 250 does not divide by 16", "use 240 or 256"),
    Bad(
        "devices",
        {"defaults": {"devicesPerNode": 8}},
        "NotEnoughDevices",
        "spec.stages.train.devicesPerNode: 8, but a node of pool cpu has 1",
        "ask for no more, spread the model over more nodes, or name a pool with larger nodes",
        phase=Phase.PENDING,
    ),
    Bad(
        "pool",
        {"defaults": {"pool": "h100"}},
        "UnknownPool",
        "there is no TrainingPool h100; this cluster has cpu",
        "name one of them, or let the administrator create it",
        phase=Phase.PENDING,
    ),
)
"""Found by the operator, which makes no pod. Where the administrator can help, the job waits for it."""

PODS = (
    at_check(
        "no-dataset",
        dataset("nowhere"),
        Exit.USER,
        f"dataset.uri: {INPUTS}/nowhere does not exist",
        "put the videos there or correct the address",
    ),
    at_check(
        "empty-dataset",
        dataset("empty"),
        Exit.DATA,
        f"dataset.uri: {INPUTS}/empty lists no videos",
        "each with a caption beside it (NAME.txt)",
    ),
    at_check(
        "no-captions",
        dataset("silent"),
        Exit.DATA,
        "none of the 1 videos of the dataset can be used: 1 MissingCaption",
        "there is no a.txt or .json beside it",
    ),
    at_check(
        "read-only",
        {},
        Exit.USER,
        f"storage.uri: pvc://{READ_ONLY}/work is mounted read-only",
        "mount it for reading and writing",
        storage=f"pvc://{READ_ONLY}/work",
    ),
    at_check(
        "closed",
        {},
        Exit.USER,
        "/closed cannot be written by user 65532, group 65532",
        "give it the folder",
        storage=f"{INPUTS}/closed",
    ),
    at_check(
        "full",
        {},
        Exit.USER,
        f"storage.uri: pvc://{FULL}/work is full",
        "free space or enlarge the volume",
        storage=f"pvc://{FULL}/work",
    ),
    at_check(
        "no-weights",
        weights("nowhere"),
        Exit.WEIGHTS,
        f"model.weights.uri: there is no folder {INPUTS}/nowhere",
        "correct the address",
    ),
    at_check("cut-weights", weights("cut"), Exit.WEIGHTS, " bytes are there", "download it again"),
    at_check(
        "other-weights",
        weights("other"),
        Exit.WEIGHTS,
        "transformer/config.json says num_layers = 8, but the catalogue's wan2.1-tiny has 4",
        "use that model's weights, or name the model that these weights are of",
    ),
    at_check(
        "no-secret",
        bucket("nobody-made-it"),
        Exit.USER,
        "dataset.secretRef: there is no Secret nobody-made-it in the namespace, or it has no AWS_ACCESS_KEY_ID",
        "create it with kubectl create secret generic nobody-made-it --from-literal=AWS_ACCESS_KEY_ID=...",
    ),
    at_check(
        "half-a-secret",
        bucket("half"),
        Exit.USER,
        "dataset.secretRef: there is no Secret half in the namespace, or it has no AWS_SECRET_ACCESS_KEY",
        "create it with kubectl create secret generic half",
    ),
    Bad(
        "undecodable",
        dataset("broken"),
        "DataError",
        "none of the 2 videos of the dataset gave a clip: 2 UnreadableVideo (for instance a.mp4: it cannot be decoded",
        "mend or replace them; all reasons are in ",
        stage=Stage.PREPARE,
        code=Exit.DATA,
        leaves=("artifacts/prepare/*/*", "artifacts/prepare/*/parts/*", "claims/artifacts/prepare/*/*"),
    ),
)
"""Found by a pod that needs no accelerator."""

MAKE_INPUTS = """
import json, pathlib, shutil, sys
inputs, weights, videos = map(pathlib.Path, sys.argv[1:])
for name in ("empty", "silent", "broken"):
    (inputs / name).mkdir(parents=True)
shutil.copy(next(iter(sorted(videos.glob("*.mp4")))), inputs / "silent" / "a.mp4")
for name in "ab":
    (inputs / "broken" / f"{name}.mp4").write_bytes(name.encode() * 100_000)
    (inputs / "broken" / f"{name}.txt").write_text("noise")
for name in ("cut", "other"):
    shutil.copytree(weights, inputs / name)
shard = next(iter(sorted((inputs / "cut" / "transformer").glob("*.safetensors"))))
shard.write_bytes(shard.read_bytes()[:-1000])
config = inputs / "other" / "transformer" / "config.json"
config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 8}))
"""
LIST = """
import pathlib, sys
root = pathlib.Path(sys.argv[1])
print(*sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()), sep="\\n")
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where bad inputs and workspaces of this session are."""

    inputs: str
    session: str

    def of(self, text: str) -> str:
        """Text of the table with the addresses of this session."""
        return text.replace(INPUTS, self.inputs).replace("SESSION", self.session)


@pytest.fixture(scope="module")
def places(cluster: Target, kubectl: Kubectl, jobs: Jobs, workspace: Shell) -> Iterator[Places]:
    """The bad inputs, and workspaces that cannot be used."""
    address = jobs.root("inputs")
    found = Places(address, jobs.session)
    workspace.run("python", "-c", MAKE_INPUTS, inside(address), inside(WEIGHTS), inside(DATASET))
    kubectl.run("create", "secret", "generic", "half", "--from-literal=AWS_ACCESS_KEY_ID=somebody")
    namespace = kubectl.namespace
    try:
        with contextlib.ExitStack() as stack:
            if cluster.cluster is not None:
                volume = local(cluster).layout.root / "volumes" / namespace / WORKSPACE
                (volume / address.removeprefix(f"pvc://{WORKSPACE}/") / "closed").mkdir(mode=0o755)
                fill(stack.enter_context(small_volume(cluster, found.of(FULL), namespace=namespace, mebibytes=1)))
                folder = stack.enter_context(
                    small_volume(cluster, found.of(READ_ONLY), namespace=namespace, mebibytes=1)
                )
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield found
    finally:
        kubectl.run("delete", "secret", "half")


@dataclass(frozen=True, slots=True)
class Started:
    """All jobs of the table, started together."""

    places: Places
    jobs: Mapping[str, Job]
    roots: Mapping[str, str]

    def told(self, bad: Bad) -> tuple[str, str]:
        """The sentence and what to do, with the addresses of this session."""
        return self.places.of(bad.sentence), bad.fix


@pytest.fixture(scope="module")
def started(cluster: Target, jobs: Jobs, places: Places) -> Iterator[Started]:
    """Every job of the table; a pod each, as many at a time as the node takes."""
    made: dict[str, Job] = {}
    roots: dict[str, str] = {}
    for bad in (*PODS, *PLAN):
        if bad.storage and cluster.cluster is None:
            continue
        roots[bad.name] = places.of(bad.storage or jobs.root(bad.name))
        spec = json.loads(places.of(json.dumps(bad.spec)))
        made[bad.name] = jobs.start(
            f"bad-{bad.name}", root=roots[bad.name], **{"stages": {}, "policy": {"restarts": {"limit": 3}}, **spec}
        )
    yield Started(places, made, roots)
    for job in made.values():
        job.delete(wait=False)


def children(job: Job) -> list[str]:
    """The Jobs and PyTorchJobs that the job ever had: it cleans up nothing."""
    labels = {LABEL_JOB_UID: job.uid}
    kinds = ("jobs.batch", "pytorchjobs.kubeflow.org")
    return sorted(item["metadata"]["name"] for kind in kinds for item in job.kubectl.list(kind, labels=labels))


def one_sentence(status: JobStatus, *parts: str) -> None:
    """Message and diagnosis say all of it, in one line."""
    for text in (status.message, status.diagnosis):
        assert [part for part in parts if part not in text] == [], text
        assert "\n" not in text and "Traceback" not in text
    assert "/kinema/volumes" not in status.message, "addresses are those of the job"


@pytest.mark.parametrize("bad", PLAN, ids=lambda bad: bad.name)
def test_the_operator_refuses_before_there_is_a_pod(started: Started, bad: Bad) -> None:
    job = started.jobs[bad.name]

    def answered() -> JobStatus | None:
        return job.status if job.status.message else None

    status = until(f"{bad.name} is answered", answered, seconds=60)
    assert status.phase is bad.phase
    one_sentence(status, *started.told(bad))
    kind, state = ("Failed", "True") if bad.phase is Phase.FAILED else ("Accepted", "False")
    condition = status.condition(kind)
    assert condition is not None
    assert (condition.status.value, condition.reason) == (state, bad.reason)
    assert children(job) == []
    assert status.resolved is None
    assert job.all_pods() == []


@pytest.mark.parametrize("bad", PODS, ids=lambda bad: bad.name)
def test_a_pod_without_an_accelerator_finds_it_once(started: Started, workspace: Shell, bad: Bad) -> None:
    if bad.name not in started.jobs:
        pytest.skip("a volume that cannot be used is made on the local cluster only")
    job, told = started.jobs[bad.name], started.told(bad)
    status = job.ended(Phase.FAILED, seconds=300)
    one_sentence(status, *told)
    failed = status.condition("Failed")
    assert failed is not None and (failed.status.value, failed.reason) == ("True", bad.reason)

    found = job.stage(bad.stage or Stage.CHECK)
    (attempt,) = found.attempts
    assert found.state is StageState.FAILED
    assert (attempt.state, attempt.exit_code, attempt.reason) == (AttemptState.FAILED, bad.code, bad.reason)
    assert all(part in attempt.message for part in told)
    assert status.restarts == 1

    later = [stage for stage in status.stages if list(Stage).index(stage.name) > list(Stage).index(found.name)]
    assert later and all(stage.state is StageState.PENDING and not stage.attempts for stage in later)
    ran = [stage.name for stage in status.stages if stage.name not in {stage.name for stage in later}]
    assert children(job) == sorted(f"{job.name}-{stage}-1" for stage in ran)
    assert len(job.all_pods()) == len(ran)
    leaves_nothing(job, workspace, started.roots[bad.name], bad)


def leaves_nothing(job: Job, workspace: Shell, root: str, bad: Bad) -> None:
    """Nothing of the job lies in its workspace but what the table allows; nothing is published."""
    if not root.startswith(f"pvc://{WORKSPACE}/"):
        # No other pod sees that volume.
        return
    files = [Path(line) for line in workspace.run("python", "-c", LIST, inside(root)).split()]
    assert [path for path in files if not any(path.match(pattern) for pattern in bad.leaves)] == []
    assert [path for path in files if path.name == "_SUCCESS.json"] == []
    assert bool(files) is bool(bad.leaves)


def test_volumes_that_cannot_be_written_hold_nothing_new(cluster: Target, started: Started) -> None:
    folder = local(cluster).layout.root / "volumes" / started.jobs["full"].kubectl.namespace
    for name, claim in (("full", FULL), ("read-only", READ_ONLY)):
        started.jobs[name].ended(Phase.FAILED, seconds=300)
        files = [path.name for path in (folder / started.places.of(claim)).rglob("*") if path.is_file()]
        assert files == (["taken"] if claim == FULL else [])


APPLY: dict[str, tuple[str, Spec, str]] = {
    "name too long": ("n" * 37, {}, "metadata.name: at most 36 characters, since names of pods are made of it"),
    "scheme of the dataset": (
        "bad-apply",
        {"dataset": {"uri": "file:///data"}},
        "dataset.uri: write pvc://CLAIM/PATH or s3://BUCKET/PREFIX",
    ),
    "reserved variable": (
        "bad-apply",
        {"defaults": {"podTemplate": {"env": [{"name": "MASTER_ADDR", "value": "me"}]}}},
        "is set by Kinema or by what it runs under; choose another name",
    ),
    "reserved label": (
        "bad-apply",
        {"stages": {"train": {"podTemplate": {"labels": {"training.kubeflow.org/job-role": "master"}}}}},
        "belong to controllers; choose other keys",
    ),
    "mistyped field": ("bad-apply", {"stages": {"train": {"step": 10}}}, 'unknown field "spec.stages.train.step"'),
}


@pytest.mark.parametrize("case", APPLY, ids=lambda case: case.replace(" ", "-"))
def test_the_api_server_refuses_at_apply(kubectl: Kubectl, case: str) -> None:
    name, spec, sentence = APPLY[case]
    base = yaml.safe_load(Path(JOB).read_text(encoding="utf-8"))
    manifest = {**base, "metadata": {"name": name}, "spec": merge(base["spec"], spec)}
    done = kubectl.attempt("apply", "-f", "-", text=json.dumps(manifest))
    assert done.returncode != 0
    assert sentence in done.stderr
    assert kubectl.get("vtj", name) is None
