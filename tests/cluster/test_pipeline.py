# SPDX-License-Identifier: Apache-2.0
"""One job from videos to a clip, in namespaces that enforce the restricted standard."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from kinema_demo.curve import losses
from kinema_demo.workspace import Shell, inside

from kinema_api.names import Stage

from tests.cluster.jobs import Job, done
from tests.fresh import fresh_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FORWARD = """
import json, sys, torch
def forward(model, seed=7):
    stream = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, 16, 5, 8, 12), generator=stream)
    text = torch.randn((1, 16, model.config.text_dim), generator=stream)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # kernels sum in another order at the odd addresses of a mapped file
    with torch.no_grad():
        out = model.float().eval()(latents, timestep=torch.tensor([700]), encoder_hidden_states=text).sample
    return out.flatten().double().tolist()
"""
FROM_CHECKPOINT = """
from pathlib import Path
from diffusers import WanTransformer3DModel
from kinema_stage.workspace import FolderWorkspace
from kinema_trainer.checkpoints import dcp
from kinema_trainer.checkpoints.folders import require
from kinema_trainer.checkpoints.weights import read_into
root, run, weights = sys.argv[1:]
workspace = FolderWorkspace(f"file://{root}")
model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(Path(weights, "transformer")))
read_into(model, dcp.reader(workspace, require(workspace, f"{run}/checkpoints").folder), under="model")
print(json.dumps(forward(model)))
"""
FROM_EXPORT = """
import importlib.util
from diffusers import WanPipeline
assert not any(map(importlib.util.find_spec, ("kinema_api", "kinema_stage", "kinema_trainer"))), "not fresh"
print(json.dumps(forward(WanPipeline.from_pretrained(sys.argv[1]).transformer)))
"""


def test_it_succeeds_and_every_stage_ran_once(wan: Job) -> None:
    status = wan.succeeded()
    assert done(status.stages) == {stage.value: "Succeeded" for stage in Stage}
    assert {len(stage.attempts) for stage in status.stages} == {1}
    assert status.restarts == 0
    true = {condition.type for condition in status.conditions if condition.status == "True"}
    assert true == {"Accepted", "Succeeded"}
    assert status.resolved is not None
    assert set(status.resolved.keys) >= {"prepare", "features", "convert"}


def test_training_ran_on_two_nodes(wan: Job) -> None:
    wan.succeeded()
    # A worker that is still at its end when the master has succeeded is deleted, so that its pod need not be there.
    selector = "involvedObject.kind=PyTorchJob,involvedObject.name=wan-train-1,reason=SuccessfulCreatePod"
    events = wan.kubectl.run("get", "events", "--field-selector", selector, "-o", "jsonpath={.items[*].message}")
    assert all(f"wan-train-1-{role}-0" in events for role in ("master", "worker")), events
    counts = wan.stage(Stage.TRAIN).counts
    assert counts["samples"] == 2 * 2 * counts["steps"], "two nodes with two clips each a step"


def test_pods_had_neither_rights_nor_a_token_of_the_cluster(wan: Job) -> None:
    wan.succeeded()
    pods = wan.kubectl.list("pods", labels={"kinema.dev/job-uid": wan.uid})
    assert len(pods) >= len(Stage)
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_artifacts_are_published(wan: Job, workspace: Shell) -> None:
    status = wan.succeeded()
    for stage in (Stage.PREPARE, Stage.FEATURES, Stage.CONVERT, Stage.EXPORT, Stage.SAMPLE):
        artifact = wan.stage(stage).artifact
        assert artifact, stage
        path = inside(artifact)
        manifest = json.loads(workspace.run("cat", f"{path}/_SUCCESS.json"))
        for name, size in manifest["files"].items():
            assert workspace.run("stat", "-c", "%s", f"{path}/{name}").strip() == str(size)
    assert wan.stage(Stage.FEATURES).counts["clips"] == 4
    assert status.workspace is not None


def test_the_metrics_hold_every_step(wan: Job) -> None:
    wan.succeeded()
    steps = losses(json.dumps(line) for line in wan.lines("metrics.jsonl"))
    assert list(steps) == list(range(1, 31))
    assert all(np.isfinite(list(steps.values())))


def test_the_sampled_clips_can_be_played(wan: Job, workspace: Shell, tmp_path: Path) -> None:
    wan.succeeded()
    clips = workspace.fetch(f"{wan.folder}/samples", tmp_path, "*.mp4")
    assert len(clips) == 4, "one for each caption"
    for clip in clips:
        with av.open(str(clip)) as reader:
            frames = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
        assert len(frames) == 17
        assert frames[0].shape == (64, 96, 3)
        assert float(np.std(frames)) > 1, "not one flat colour"


def test_the_export_equals_the_checkpoint_in_a_fresh_environment(
    wan: Job, workspace: Shell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wan.succeeded()
    root, _, run = wan.folder.partition("/jobs/")
    weights = "/kinema/volumes/kinema-workspace/demo/wan2.1-tiny"
    code = FORWARD + FROM_CHECKPOINT
    wanted = json.loads(workspace.run("python", "-c", code, root, f"jobs/{run}", weights).splitlines()[-1])

    folder = tmp_path_factory.mktemp("export")
    workspace.fetch(wan.folder, folder, "export")
    command = [str(fresh_environment()), "-c", FORWARD + FROM_EXPORT, str(folder / "export")]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert printed.returncode == 0, printed.stderr
    found = json.loads(printed.stdout.splitlines()[-1])
    assert len(found) == len(wanted) == 16 * 5 * 8 * 12
    assert np.abs(np.subtract(found, wanted)).max() <= 1e-6
    assert np.std(found) > 1e-3, "zeros would be equal to anything"
