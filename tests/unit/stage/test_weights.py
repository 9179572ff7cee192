# SPDX-License-Identifier: Apache-2.0
"""Weights: every file there and whole, every dimension that of the catalogue."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kinema_api.catalogue import entry
from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Weights
from kinema_stage import weights

from tests.unit.stage.support import TINY, make_weights, safetensors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "weights", TINY)


def fault(root: Path) -> str:
    with pytest.raises(StageError) as caught:
        weights.check(Weights(uri=f"file://{root}"), TINY)
    assert caught.value.code is Exit.WEIGHTS
    return caught.value.message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sharded(root: Path) -> Path:
    """The transformer in two shards."""
    folder = root / "transformer"
    (folder / "model.safetensors").unlink()
    safetensors(folder / "m-00001-of-00002.safetensors", {"a": 3})
    safetensors(folder / "m-00002-of-00002.safetensors", {"b": 5, "c": 1})
    shards = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return folder


def test_a_whole_folder_passes(root: Path) -> None:
    assert weights.check(Weights(uri=f"file://{root}"), TINY).where == str(root)
    sharded(root)
    assert weights.check(Weights(uri=f"file://{root}"), TINY).where == str(root)


def cut_off(path: Path, *, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: cut_off(root / "vae/model.safetensors", keep=-4), r"is cut off: \d+ of \d+ bytes are there"),
        (lambda root: cut_off(root / "vae/model.safetensors", keep=20), "is cut off: 20 bytes, but its header alone"),
        (lambda root: cut_off(root / "vae/model.safetensors", keep=5), r"is no safetensors file \(5 bytes\)"),
        (lambda root: (root / "vae/model.safetensors").write_bytes(b"version https://git-lfs"), "no safetensors file"),
        (lambda root: (root / "vae/model.safetensors").write_bytes(b"\2" + bytes(7) + b"[]"), "damaged header"),
        (lambda root: (root / "vae/model.safetensors").unlink(), "no .safetensors file .it has no weights at all"),
        (lambda root: (root / "vae/config.json").unlink(), "there is no .*vae/config.json"),
        (lambda root: (root / "vae/config.json").write_text("{"), "is not JSON"),
        (lambda root: (root / "tokenizer/tokenizer.json").unlink(), "no tokenizer in"),
        (lambda root: (root / "model_index.json").unlink(), "no .*model_index.json: it must be a folder in diffusers'"),
        (
            lambda root: edit(root / "model_index.json", image_encoder=["a", "B"]),
            "names image_encoder, but there is",
        ),
        (
            lambda root: edit(root / "model_index.json", _class_name="FluxPipeline"),
            "holds a FluxPipeline, but wan2.1",
        ),
        (lambda root: edit(root / "transformer/config.json", num_layers=30), "says num_layers = 30, but .* has 4; use"),
        (
            lambda root: edit(root / "transformer/config.json", attention_head_dim=128),
            "num_attention_heads x attention_head_dim = 512, but the catalogue's wan2.1-tiny has 96",
        ),
        (lambda root: edit(root / "vae/config.json", z_dim=48), "z_dim = 48, but the catalogue's wan2.1-tiny has 16"),
        (lambda root: edit(root / "vae/config.json", scale_factor_spatial=16), "scale_factor_spatial = 16"),
        (lambda root: edit(root / "text_encoder/config.json", d_model=4096), "d_model = 4096"),
        (
            lambda root: (sharded(root) / "m-00002-of-00002.safetensors").unlink(),
            "m-00002-of-00002.safetensors is missing, but m.safetensors.index.json names it",
        ),
        (
            lambda root: safetensors(sharded(root) / "m-00002-of-00002.safetensors", {"c": 1}),
            "lacks 1 of the tensors that its index names, for instance b",
        ),
    ],
)
def test_what_is_wrong_is_named(root: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(root)
    text = fault(root)
    assert text.startswith("model.weights.uri: ")
    assert re.search(message, text), text


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    model = TINY.model_copy(update={"repository": "Wan-AI/Some"})
    with pytest.raises(StageError, match=r"no folder .*gone; download Wan-AI/Some there") as caught:
        weights.check(Weights(uri=f"file://{tmp_path}/gone"), model)
    assert caught.value.code is Exit.WEIGHTS


IMAGES = entry("wan2.1-flf2v-tiny")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: edit(root / "image_encoder/config.json", hidden_size=1280),
            "hidden_size = 1280, but the catalogue's wan2.1-flf2v-tiny has 32",
        ),
        (lambda root: cut_off(root / "image_encoder/model.safetensors", keep=-4), "image_encoder.* is cut off"),
        (lambda root: (root / "image_processor/preprocessor_config.json").unlink(), "no image processor in"),
        (lambda root: edit(root / "transformer/config.json", added_kv_proj_dim=None), "added_kv_proj_dim = None"),
        (lambda root: edit(root / "transformer/config.json", pos_embed_seq_len=17), "pos_embed_seq_len = 17"),
    ],
)
def test_a_model_that_is_given_frames_needs_an_image_encoder(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    root = make_weights(tmp_path / "weights", IMAGES)
    weights.check(Weights(uri=f"file://{root}"), IMAGES)
    damage(root)
    with pytest.raises(StageError, match=message) as caught:
        weights.check(Weights(uri=f"file://{root}"), IMAGES)
    assert caught.value.code is Exit.WEIGHTS
