# SPDX-License-Identifier: Apache-2.0
"""What is refused before anything is created: one reason and one sentence each."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kinema_api.catalogue import entry
from kinema_api.job import JobSpec
from kinema_api.locations import HF_ADDRESS, LEAVES_ITS_ROOT, PVC_ADDRESS, S3_ADDRESS, check_address
from kinema_api.pipeline import settings_of
from kinema_api.plan import freeze
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.refusal import PlanError, check
from kinema_api.settings import PodTemplate

pytestmark = pytest.mark.unit

IMAGES = {"stage": "s", "wan2.1/cpu": "w"}
POOLS = {"cpu": PoolSpec(accelerator=Accelerator.CPU, devices_per_node=2, nodes=64)}
TINY = {"name": "wan2.1-tiny", "weights": {"uri": "pvc://models/tiny"}}
Spec = dict[str, Any]


def job(**parts: Any) -> Spec:
    """A small job, with parts of its spec replaced."""
    return {
        "model": TINY,
        "dataset": {"uri": "pvc://data/videos"},
        "storage": {"uri": "pvc://work/kinema"},
        "defaults": {"pool": "cpu"},
        **parts,
    }


def video(**parts: Any) -> Spec:
    return job(stages={"prepare": {"video": parts}})


def pods(**parts: Any) -> Spec:
    return job(defaults={"pool": "cpu", "podTemplate": parts})


WHERE = "spec.defaults.podTemplate"
REFUSED: dict[str, tuple[Spec, str, str]] = {
    "unknown model": (
        job(model={**TINY, "name": "wan2.1-t2v-15b"}),
        "UnknownModel",
        (
            "spec.model.name: model wan2.1-t2v-15b is not in the catalogue; did you mean wan2.1-t2v-14b or "
            "wan2.1-t2v-1.3b or wan2.1-i2v-14b-720p?"
        ),
    ),
    "task of another model": (
        job(model={**TINY, "task": "i2v"}),
        "TaskNotSupported",
        "spec.model.task: wan2.1-tiny cannot do i2v; write t2v or v2v, or name a model that can do i2v",
    ),
    "task of fewer frames": (
        job(model={**TINY, "name": "wan2.1-flf2v-14b-720p", "task": "i2v"}),
        "TaskNotSupported",
        "spec.model.task: wan2.1-flf2v-14b-720p cannot do i2v; write flf2v, or name a model that can do i2v",
    ),
    "masks of a model that is given frames": (
        job(
            model={**TINY, "name": "wan2.1-i2v-tiny"},
            stages={"train": {"objective": {"masks": {"quarterHead": 0.5}}}},
        ),
        "InvalidMasks",
        (
            "spec.stages.train.objective.masks: a model that does i2v is given frames beside the noise, not clean ones"
            " within it; remove masks"
        ),
    ),
    "masks of more than all samples": (
        job(stages={"train": {"objective": {"masks": {"quarterHead": 0.5, "random": 0.6}}}}),
        "InvalidMasks",
        (
            "spec.stages.train.objective.masks: the shares random 0.6, quarter_head 0.5 add up to 1.1; together they"
            " are at most 1"
        ),
    ),
    "images where the first frame is given": (
        job(
            model={**TINY, "name": "wan2.1-i2v-tiny"},
            stages={"prepare": {"video": {"buckets": [{"frames": 1, "height": 64, "width": 96}]}}},
        ),
        "InvalidVideo",
        (
            "spec.stages.prepare.video.buckets[0].frames: a clip of 1 is all given by the 1 that the task begins with;"
            " use more frames, or a model that does t2v"
        ),
    ),
    "samples of v2v": (
        job(model={**TINY, "task": "v2v"}, stages={"sample": {"enabled": True}}),
        "SampleNotSupported",
        (
            "spec.stages.sample.enabled: WanPipeline cannot be given the leading frames of v2v; remove the line, and"
            " let training generate videos with stages.train.validation.samples.everySteps"
        ),
    ),
    "frames": (video(frames=16), "InvalidVideo", "spec.stages.prepare.video.frames: 16 is not 4n+1; use 13 or 17"),
    "height": (
        video(height=100),
        "InvalidVideo",
        "spec.stages.prepare.video.height: 100 does not divide by 16; use 96 or 112",
    ),
    "width": (
        video(width=833),
        "InvalidVideo",
        "spec.stages.prepare.video.width: 833 does not divide by 16; use 832 or 848",
    ),
    "frames of a sample": (
        job(stages={"sample": {"video": {"frames": 8, "height": 64, "width": 96}}}),
        "InvalidVideo",
        "spec.stages.sample.video.frames: 8 is not 4n+1; use 5 or 9",
    ),
    "pool": (
        job(defaults={"pool": "gpu"}),
        "UnknownPool",
        (
            "stage features: there is no TrainingPool gpu; this cluster has cpu: name one of them, or let the"
            " administrator create it"
        ),
    ),
    "devices": (
        job(defaults={"pool": "cpu", "devicesPerNode": 8}),
        "NotEnoughDevices",
        (
            "spec.stages.train.devicesPerNode: 8, but a node of pool cpu has 2; ask for no more, spread the "
            "model over more nodes, or name a pool with larger nodes"
        ),
    ),
    "nodes": (
        job(defaults={"pool": "cpu", "nodes": 100}),
        "NotEnoughNodes",
        (
            "spec.stages.train.nodes: 100, but pool cpu has 64; ask for no more, or let the administrator "
            "raise nodes of the TrainingPool"
        ),
    ),
    "a sample that does not fit": (
        job(stages={"sample": {"video": {"frames": 9, "height": 40, "width": 96}}}),
        "InvalidVideo",
        "spec.stages.sample.video.height: 40 does not divide by 16; use 32 or 48",
    ),
    "a stage that others need": (
        job(stages={"features": {"enabled": False}}),
        "StageRequired",
        "spec.stages.features.enabled: later stages need features; remove the line",
    ),
    "a sample without an export": (
        job(stages={"export": {"enabled": False}}),
        "StageRequired",
        "spec.stages.sample needs export: enable export, or disable sample too",
    ),
    "warm-up longer than the run": (
        job(stages={"train": {"steps": 35, "schedule": {"warmupSteps": 40}}}),
        "InvalidSchedule",
        "spec.stages.train.schedule.warmupSteps: 40 steps of warm-up do not fit into 35 steps; set it to 3 or so",
    ),
    "warm-up": (
        job(stages={"train": {"steps": 10, "schedule": {"warmupSteps": 10}}}),
        "InvalidSchedule",
        ("spec.stages.train.schedule.warmupSteps: 10 steps of warm-up do not fit into 10 steps; set it to 1 or so"),
    ),
    "a decay that begins in the warm-up": (
        job(stages={"train": {"steps": 30, "schedule": {"kind": "wsd", "warmupSteps": 10, "decaySteps": 25}}}),
        "InvalidSchedule",
        (
            "spec.stages.train.schedule.decaySteps: 10 steps of warm-up and 25 of decay do not fit into 30 steps;"
            " set it to at most 20"
        ),
    ),
    "low-rank additions to a layer that is not there": (
        job(stages={"train": {"lora": {"enabled": True, "targets": ["attn1.to_q", "blocks.3.ffn.net.2", "to_qkv"]}}}),
        "InvalidLora",
        (
            "spec.stages.train.lora.targets: no linear layer's name ends with to_qkv; there are attn1.to_k,"
            " attn1.to_out.0, attn1.to_q, attn1.to_v, attn2.to_k, attn2.to_out.0, attn2.to_q, attn2.to_v,"
            " condition_embedder.text_embedder.linear_1, condition_embedder.text_embedder.linear_2,"
            " condition_embedder.time_embedder.linear_1, condition_embedder.time_embedder.linear_2,"
            " condition_embedder.time_proj, ffn.net.0.proj, ffn.net.2, proj_out"
        ),
    ),
    "a layout that does not divide": (
        job(defaults={"pool": "cpu", "devicesPerNode": 2}, stages={"train": {"layout": {"tensor": 3}}}),
        "InvalidLayout",
        (
            "spec.stages.train.layout: shard 1 x tensor 3 makes 3 processes, and there are 2; the nearest layout that"
            " works: shard 1, tensor 2"
        ),
    ),
    "attention of another accelerator": (
        job(stages={"train": {"attention": "cudnn"}}),
        "InvalidAttention",
        "spec.stages.train.attention: cudnn has no kernel on cpu; write one of native, flash, math",
    ),
    "attention of another number format": (
        job(stages={"train": {"attention": "flash", "precision": "fp32"}}),
        "InvalidAttention",
        "spec.stages.train.attention: flash does not take float32; set precision to bf16, or write native",
    ),
    "bucket": (
        job(dataset={"uri": "s3://A/b"}),
        "InvalidAddress",
        ("spec.dataset.uri: s3://A/b: write s3://BUCKET/PREFIX; a bucket's name has 3 to 63 of a-z, 0-9, '.' and '-'"),
    ),
    "path that leaves the volume": (
        job(storage={"uri": "pvc://work/../../etc"}),
        "InvalidAddress",
        "spec.storage.uri: pvc://work/../../etc: the path may not contain '..'",
    ),
    "repository": (
        job(model={**TINY, "weights": {"uri": "hf://tiny"}}),
        "InvalidAddress",
        ("spec.model.weights.uri: hf://tiny: write hf://ORGANISATION/REPOSITORY; a commit goes into revision"),
    ),
    "reserved variable": (
        pods(env=[{"name": "RANK", "value": "0"}]),
        "InvalidPodTemplate",
        f"{WHERE}.env: RANK is set by Kinema or by what it runs under; choose another name",
    ),
    "reserved label": (
        pods(labels={"kinema.dev/job": "mine"}),
        "InvalidPodTemplate",
        f"{WHERE}.labels: kinema.dev/job belongs to a controller; choose another key",
    ),
    "label's key": (
        pods(labels={"a b": "c"}),
        "InvalidPodTemplate",
        f"{WHERE}.labels: 'a b' is no key; write [DOMAIN/]NAME with letters, digits, '-', '_' and '.'",
    ),
    "label's value": (
        pods(labels={"team": "video lab"}),
        "InvalidPodTemplate",
        (f"{WHERE}.labels.team: 'video lab' is no value of a label; write up to 63 letters, digits, '-', '_' and '.'"),
    ),
    "selector's value": (
        pods(nodeSelector={"zone": "a" * 64}),
        "InvalidPodTemplate",
        (
            f"{WHERE}.nodeSelector.zone: 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' is"
            " no value of a label; write up to 63 letters, digits, '-', '_' and '.'"
        ),
    ),
    "affinity's field": (
        pods(affinity={"nodeAfinity": {}}),
        "InvalidPodTemplate",
        f"{WHERE}.affinity.nodeAfinity: there is no such field; use nodeAffinity, podAffinity, podAntiAffinity",
    ),
    "affinity's kind": (
        pods(affinity={"nodeAffinity": ["zone"]}),
        "InvalidPodTemplate",
        f"{WHERE}.affinity.nodeAffinity: write a mapping, as in a pod's spec",
    ),
    "affinity's rule": (
        pods(affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"a": 1}}}),
        "InvalidPodTemplate",
        (
            f"{WHERE}.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution: write a list, "
            "as in a pod's spec"
        ),
    ),
    "reserved variable of a stage": (
        job(stages={"train": {"podTemplate": {"env": [{"name": "PET_NNODES", "value": "9"}]}}}),
        "InvalidPodTemplate",
        (
            "spec.stages.train.podTemplate.env: PET_NNODES is set by Kinema or by what it runs under; choose "
            "another name"
        ),
    ),
}


@pytest.mark.parametrize(("written", "reason", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused_with_a_reason_and_a_sentence(written: Spec, reason: str, sentence: str) -> None:
    with pytest.raises(PlanError) as refused:
        freeze(spec=JobSpec.model_validate(written), pools=POOLS, images=IMAGES)
    assert refused.value.reason == reason
    assert str(refused.value) == sentence


def test_a_task_with_frames_needs_an_image_encoder() -> None:
    model = entry("wan2.1-i2v-tiny").model_copy(update={"image": None})
    spec = JobSpec.model_validate(job(model={**TINY, "name": "wan2.1-i2v-tiny"}))
    with pytest.raises(PlanError, match=r"wan2\.1-i2v-tiny has no image encoder, which i2v needs"):
        check(spec, settings_of(spec, model), model)


def test_what_kubernetes_takes_is_taken() -> None:
    template = {
        "labels": {"team": "video", "example.com/empty": ""},
        "annotations": {"example.com/note": "any text, of any length"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    }
    spec = JobSpec.model_validate(pods(**template))
    assert freeze(spec=spec, pools=POOLS, images=IMAGES).stages["train"]["podTemplate"]["labels"] == {}
    assert spec.defaults.pod_template == PodTemplate.model_validate(template)


ADDRESSES = {
    "pvc://claim": True,
    "pvc://claim/": True,
    "pvc://claim.of.many-parts/a/b": True,
    "pvc:///path": False,
    "pvc://Claim/path": False,
    "pvc://claim/../other": False,
    "pvc://claim/a/..": False,
    "pvc://claim/..hidden": True,
    "s3://bucket": True,
    "s3://bucket/": True,
    "s3://bucket/a/b/": True,
    "s3://bucket//a": True,
    "s3://ab/x": False,
    "s3://Bucket/x": False,
    "s3://bucket/a//b": False,
    "s3://bucket/./a": False,
    "s3://bucket/a/..": False,
    "s3://bucket/.a": True,
    "hf://Wan-AI/Wan2.1-T2V-1.3B-Diffusers": True,
    "hf://Wan-AI/x/": True,
    "hf://alone": False,
    "hf://a/b/c": False,
}


@pytest.mark.parametrize(("uri", "good"), ADDRESSES.items())
def test_the_api_server_and_the_plan_agree_on_addresses(uri: str, good: bool) -> None:
    taken = re.fullmatch(f"{PVC_ADDRESS}|{S3_ADDRESS}|{HF_ADDRESS}", uri) and not re.search(LEAVES_ITS_ROOT, uri)
    assert bool(taken) is good
    if good:
        check_address(uri)
    else:
        with pytest.raises(ValueError, match=re.escape(uri)):
            check_address(uri)
