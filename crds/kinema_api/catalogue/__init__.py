# SPDX-License-Identifier: Apache-2.0
"""The catalogue: what each model needs, one YAML file a family."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import Field

from kinema_api.base import Model, ModelName, Word
from kinema_api.job import Task

__all__ = [
    "Entry",
    "Family",
    "ImageEncoder",
    "Transformer",
    "UnknownModelError",
    "Velocity",
    "VideoVae",
    "entry",
    "families",
    "linears",
    "model_names",
]

Positive = Annotated[int, Field(ge=1)]


class VideoVae(Model):
    """The video autoencoder's geometry."""

    channels: Positive
    """Latent channels."""
    temporal: Positive
    """Frames of a latent frame, after the first."""
    spatial: Positive
    """Pixels of a latent pixel, each way."""

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip."""
        return (frames - 1) // self.temporal + 1


class Transformer(Model):
    """The diffusion transformer's dimensions."""

    hidden: Positive
    """Width of a token."""
    heads: Positive
    """Attention heads."""
    layers: Positive
    """Blocks."""
    ffn: Positive
    """Width inside the feed-forward network."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of a token."""
    in_channels: Positive
    """Channels of the input: noise, and conditions beside it."""
    text_dim: Positive
    """Width of a text embedding."""
    parameters: Positive
    """Number of parameters."""


class ImageEncoder(Model):
    """What turns the given frames into tokens that the transformer attends to beside the caption."""

    tokens: Positive
    """Tokens of one frame."""
    width: Positive
    """Width of a token."""
    positions: bool = False
    """Whether the transformer is given two frames, and adds a learned embedding to each token by its place."""

    @property
    def given(self) -> int:
        """Tokens that the transformer is given."""
        return self.tokens * (2 if self.positions else 1)


class Velocity(Word):
    """What a family's transformer predicts."""

    NOISE_MINUS_DATA = "noise-data"
    DATA_MINUS_NOISE = "data-noise"

    @property
    def sign(self) -> float:
        """1 for noise - data, -1 for its opposite."""
        return 1.0 if self is Velocity.NOISE_MINUS_DATA else -1.0


class Entry(Model):
    """What one model needs."""

    name: ModelName
    """The name a job uses."""
    family: ModelName
    """Models that share code, pins and one image an accelerator."""
    description: str
    """One line for people."""
    tasks: tuple[Task, ...]
    """What it does; the first is the default."""
    pipeline: str
    """The pipeline class of diffusers."""
    repository: str = ""
    """Where the pretrained weights are published."""
    vae: VideoVae
    """The video autoencoder's geometry."""
    transformer: Transformer
    """The transformer's dimensions."""
    text_length: Positive
    """Tokens to which a caption is padded."""
    velocity: Velocity = Velocity.NOISE_MINUS_DATA
    """What the transformer predicts."""
    image: ImageEncoder | None = None
    """The image encoder; None for a model that is given no image."""
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of stages that differ from the built-in ones, in the words of a job's `spec.stages`."""

    @property
    def stride(self) -> int:
        """Pixels that height and width must divide by."""
        return self.vae.spatial * self.transformer.patch[1]


class Family(Model):
    """One catalogue file."""

    family: ModelName
    """The family's name."""
    sources: tuple[str, ...] = ()
    """Where the numbers come from."""
    linears: tuple[str, ...] = ()
    """Names of the transformer's linear layers, `*` for the number of a block; empty where nobody has listed them."""
    image_linears: tuple[str, ...] = ()
    """Those that only models with an image encoder have."""
    models: dict[ModelName, dict[str, Any]]
    """Each model's entry, by name."""

    def entries(self) -> tuple[Entry, ...]:
        """The models of the family."""
        return tuple(
            Entry.model_validate({**model, "name": name, "family": self.family}) for name, model in self.models.items()
        )


class UnknownModelError(ValueError):
    """No catalogue file has the model."""

    def __init__(self, name: str) -> None:
        near = get_close_matches(name, model_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known models: {', '.join(model_names())}"
        super().__init__(f"model {name} is not in the catalogue; {hint}")


@cache
def families() -> tuple[Family, ...]:
    """Every catalogue file of the package."""
    files = sorted((file for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml")), key=str)
    return tuple(Family.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files)


@cache
def _entries() -> dict[str, Entry]:
    return {entry.name: entry for family in families() for entry in family.entries()}


def linears(model: Entry) -> tuple[str, ...]:
    """The names of a model's linear layers, `*` for the number of a block; empty where its family does not tell."""
    family = next((family for family in families() if family.family == model.family), None)
    if family is None:
        return ()
    return (*family.linears, *(family.image_linears if model.image is not None else ()))


def model_names() -> tuple[str, ...]:
    """Every model of the catalogue."""
    return tuple(_entries())


def entry(name: str) -> Entry:
    """The entry of a model.

    Raises:
        UnknownModelError: with the nearest names.
    """
    try:
        return _entries()[name]
    except KeyError:
        raise UnknownModelError(name) from None
