# SPDX-License-Identifier: Apache-2.0
"""The diffusers config of a catalogue entry's transformer, for whoever has no weights at hand."""

from __future__ import annotations

from typing import Any

from kinema_api.catalogue import Entry
from kinema_api.exits import Exit, StageError


def config(model: Entry) -> dict[str, Any]:
    """The config with which diffusers' class has the entry's dimensions.

    Raises:
        StageError: the native engine does not train the family.
    """
    if model.family != "wan2.1":
        raise StageError(Exit.USER, f"the native engine has no adapter for {model.family}")
    return _wan(model)


def _wan(model: Entry) -> dict[str, Any]:
    dims, image = model.transformer, model.image
    found: dict[str, Any] = {
        "patch_size": tuple(dims.patch),
        "num_attention_heads": dims.heads,
        "attention_head_dim": dims.hidden // dims.heads,
        "in_channels": dims.in_channels,
        "out_channels": model.vae.channels,
        "text_dim": dims.text_dim,
        "freq_dim": 256,
        "ffn_dim": dims.ffn,
        "num_layers": dims.layers,
        "rope_max_seq_len": 1024,
    }
    if image is not None:
        found |= {"image_dim": image.width, "added_kv_proj_dim": dims.hidden}
        found |= {"pos_embed_seq_len": 2 * image.tokens} if image.positions else {}
    return found
