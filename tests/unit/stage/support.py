# SPDX-License-Identifier: Apache-2.0
"""Tiny real videos, weight folders and configs for the tests of stages."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from kinema_api.catalogue import Entry, entry
from kinema_api.inputs import Dataset, Storage, Weights
from kinema_api.job import Task
from kinema_api.settings import FeaturesSettings, PrepareSettings
from kinema_api.stage import AnyStageConfig, CheckConfig, JobRef, PrepareConfig
from kinema_stage.context import Context, make_context

STEP = 4
"""Difference in brightness between two frames, so that a decoded frame tells its number."""


def make_video(
    path: Path,
    *,
    frames: int = 40,
    fps: int = 8,
    size: tuple[int, int] = (48, 32),
    codec: str = "libx264",
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write a video whose frame `i` is grey of brightness `STEP * i`.

    Args:
        path: where to; the suffix decides the container.
        frames: how many.
        fps: frames a second.
        size: width and height.
        codec: the encoder.
        milliseconds: when each frame is shown, for a rate that varies; `fps` decides when left out.
        options: of the container.
        aspect: width of a pixel over its height.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(str(path), "w", options=options or {}) as container:
        encoder = {"qp": "0", "g": "12"} if codec == "libx264" else {"qscale": "1"}
        stream: Any = container.add_stream(codec, rate=fps, options=encoder)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        base = Fraction(1, 1000) if milliseconds is not None else Fraction(1, fps)
        stream.codec_context.time_base = base
        for index in range(frames):
            frame: Any = grey(width, height, STEP * index)
            frame.pts = milliseconds[index] if milliseconds is not None else index
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(width: int, height: int, brightness: int) -> av.VideoFrame:
    """An even picture, in studio range: black is 16 and white is 235."""
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = 16 + round(brightness * 219 / 255)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def numbers(clip: np.ndarray[Any, Any]) -> list[int]:
    """Which frames of a video made by `make_video` these are."""
    return [round(float(frame.mean()) / STEP) for frame in clip]


def captioned(path: Path, caption: str = "a grey wall", **video: Any) -> Path:
    """A video with its caption beside it."""
    make_video(path, **video)
    path.with_suffix(".txt").write_text(caption)
    return path


def safetensors(path: Path, tensors: dict[str, int]) -> Path:
    """A safetensors file of float32 vectors of the given lengths."""
    header: dict[str, Any] = {}
    offset = 0
    for name, length in tensors.items():
        header[name] = {"dtype": "F32", "shape": [length], "data_offsets": [offset, offset + 4 * length]}
        offset += 4 * length
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def make_weights(root: Path, model: Entry) -> Path:
    """A pipeline folder whose configs fit a model; its tensors are of no use."""
    shape = model.transformer
    configs: dict[str, dict[str, Any]] = {
        "transformer": {
            "num_attention_heads": shape.heads,
            "attention_head_dim": shape.hidden // shape.heads,
            "num_layers": shape.layers,
            "ffn_dim": shape.ffn,
            "in_channels": shape.in_channels,
            "text_dim": shape.text_dim,
            "patch_size": list(shape.patch),
        },
        "vae": {"z_dim": model.vae.channels},
        "text_encoder": {"d_model": shape.text_dim},
    }
    if model.image is not None:
        configs["transformer"] |= {"image_dim": model.image.width, "added_kv_proj_dim": shape.hidden}
        configs["transformer"] |= {"pos_embed_seq_len": model.image.given} if model.image.positions else {}
        configs["image_encoder"] = {"hidden_size": model.image.width}
        (root / "image_processor").mkdir(parents=True)
        (root / "image_processor" / "preprocessor_config.json").write_text("{}")
    root.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": model.pipeline, **{name: ["diffusers", "Class"] for name in [*configs, "tokenizer"]}}
    (root / "model_index.json").write_text(json.dumps(index))
    for name, config in configs.items():
        safetensors(root / name / "model.safetensors", {"a": 3, "b": 5})
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    return root


TINY = entry("wan2.1-tiny")
PREPARE = PrepareSettings.model_validate({"video": {"frames": 17, "height": 16, "width": 32, "fps": 8}})


def common(workspace: Path, *, uid: str = "11111111-2222") -> dict[str, Any]:
    """Fields of every stage's config."""
    job = JobRef(namespace="local", name="demo", uid=uid)
    return {"job": job, "workspace": Storage(uri=f"file://{workspace}"), "model": TINY, "task": Task.T2V}


def check_config(
    tmp_path: Path, *, dataset: Dataset | None = None, prepare: PrepareSettings = PREPARE, uid: str = "11111111-2222"
) -> CheckConfig:
    """The config of check over `tmp_path`/{data,weights,work}; the weights are made if they are not there."""
    weights = tmp_path / "weights"
    if not weights.exists():
        make_weights(weights, TINY)
    return CheckConfig(
        **common(tmp_path / "work", uid=uid),
        dataset=dataset or Dataset(uri=f"file://{tmp_path / 'data'}"),
        weights=Weights(uri=f"file://{weights}"),
        prepare=prepare,
        features=FeaturesSettings(),
    )


def prepare_config(check: CheckConfig, key: str) -> PrepareConfig:
    """The config of prepare that follows a check."""
    return PrepareConfig(
        job=check.job,
        workspace=check.workspace,
        model=check.model,
        task=check.task,
        key=key,
        dataset=check.dataset,
        settings=check.prepare,
    )


def context_of(config: AnyStageConfig, *, interrupted: threading.Event | None = None) -> Context:
    """A context without a server or a metrics port."""
    return make_context(config, interrupted=interrupted or threading.Event(), environment={"KINEMA_METRICS_PORT": "0"})


def deadline(condition: Any, *, seconds: float = 20.0, what: str = "the condition") -> None:
    """Wait until a condition holds."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"{what} did not hold within {seconds} s")
