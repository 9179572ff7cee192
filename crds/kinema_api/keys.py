# SPDX-License-Identifier: Apache-2.0
"""Keys of shared artifacts: a digest of everything that decides their content.

A format number stands for the code; it is raised by hand when a stage starts to write something else, so that a
release does not encode the world again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from kinema_api.base import Model
from kinema_api.buckets import decisive
from kinema_api.catalogue import Entry
from kinema_api.inputs import Dataset
from kinema_api.job import Task
from kinema_api.settings import ClipVideo, FeaturesSettings, PrepareSettings

PREPARE_FORMAT = 1
FEATURES_FORMAT = 1
CONVERT_FORMAT = 1

KEY_LENGTH = 20


def digest(data: Any) -> str:
    """A key of JSON data: the same whatever the order of its fields."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Inputs(Model):
    """What `check` found: digests of everything that lies outside the job."""

    dataset: str
    """Fingerprint: names, sizes and content tags of all files, captions included."""
    transformer: str
    """Digest of the transformer's config and weight files."""
    vae: str
    """Digest of the VAE's config and weight files."""
    text_encoder: str
    """Digest of tokenizer and text encoder."""
    image_encoder: str = ""
    """Digest of image processor and image encoder; empty for a task without given frames."""


class Keys(Model):
    """The key of each shared artifact."""

    prepare: str = Field(min_length=1)
    """Clips of the dataset."""
    encoder: str = Field(min_length=1)
    """What turns a clip into features; part of the features key."""
    features: str = Field(min_length=1)
    """Encoded clips."""
    convert: str = Field(min_length=1)
    """The sharded checkpoint of the pretrained transformer."""


def resolve(
    *, inputs: Inputs, model: Entry, task: Task, dataset: Dataset, prepare: PrepareSettings, features: FeaturesSettings
) -> Keys:
    """The keys that follow from the inputs and the settings."""
    prepare_key = digest(
        {
            "format": PREPARE_FORMAT,
            "dataset": inputs.dataset,
            "columns": [dataset.format.value, dataset.captions.wire()],
            "video": _cut(prepare.video),
        }
    )
    encoder_key = digest(
        {
            "format": FEATURES_FORMAT,
            "vae": inputs.vae,
            "text": inputs.text_encoder,
            "length": model.text_length,
            "task": task.value if task.images else Task.T2V.value,
            "dtype": features.dtype.value,
        }
        | ({"image": inputs.image_encoder} if task.images else {})
    )
    return Keys(
        prepare=prepare_key,
        encoder=encoder_key,
        features=digest({"prepare": prepare_key, "encoder": encoder_key, "shard": features.clips_per_shard}),
        convert=digest({"format": CONVERT_FORMAT, "transformer": inputs.transformer}),
    )


def _cut(video: ClipVideo) -> dict[str, Any]:
    """What of the settings decides which clips there are."""
    settings = video.wire()
    buckets, seed = settings.pop("buckets"), settings.pop("seed")
    if not buckets:
        return settings
    return {**settings, "buckets": decisive(video.buckets), "seed": seed}
