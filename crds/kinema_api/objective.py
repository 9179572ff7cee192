# SPDX-License-Identifier: Apache-2.0
"""What training learns: rectified flow, with the numbers of published trainers by name.

The sign of the velocity (noise - data, or its opposite) is no setting: it is what a family's weights predict, see
`kinema_api.catalogue.Entry.velocity`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kinema_api.base import Model, Word

Fraction = Annotated[float, Field(ge=0, le=1)]
LARGEST_MODE_SCALE = 1.75
"""Just below 2 / (pi - 2), from where on the mode distribution is no longer one (arXiv 2403.03206, section 3.1)."""


class ObjectivePreset(Word):
    """Whose numbers count where nothing else is said."""

    DFM_PRETRAIN = "dfm-pretrain"
    DFM_FINETUNE = "dfm-finetune"
    MUG_V = "mug-v"
    MAXDIFFUSION = "maxdiffusion"


class TimestepSampling(Word):
    """The distribution of training timesteps before the shift."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit-normal"
    MODE = "mode"


class ShiftKind(Word):
    """constant: the same for every clip. size: times sqrt(height x width / 512^2 x latent frames), in pixels."""

    CONSTANT = "constant"
    SIZE = "size"


class Weighting(Word):
    """What a loss is multiplied by.

    none: 1. shift: 1 + shift sigma. bell: most at sigma 0.5, and 1 on average over 1000 fixed timesteps.
    """

    NONE = "none"
    SHIFT = "shift"
    BELL = "bell"


class Masks(Model):
    """Shares of samples some of whose latent frames are given as they are, at sigma 0, and carry no loss.

    In the other samples every frame is noisy.
    """

    random: Fraction = 0
    """10 to 90 percent of the frames, anywhere."""
    interpolate: Fraction = 0
    """Every second frame, from the first."""
    quarter_random: Fraction = 0
    """1 frame to a quarter of them, anywhere."""
    quarter_head: Fraction = 0
    """1 frame to a quarter of them, at the beginning."""
    quarter_tail: Fraction = 0
    """1 frame to a quarter of them, at the end."""
    quarter_head_tail: Fraction = 0
    """1 frame to a quarter of them at the beginning, and as many at the end."""
    image_random: Fraction = 0
    """One frame, anywhere."""
    image_head: Fraction = 0
    """The first frame."""
    image_tail: Fraction = 0
    """The last frame."""
    image_head_tail: Fraction = 0
    """The first and the last frame."""

    @property
    def shares(self) -> dict[str, float]:
        """The share of each strategy that is used, by name, in the order of the fields."""
        return {name: share for name in type(self).model_fields if (share := float(getattr(self, name))) > 0}


class Recipe(Model):
    """An objective with every number in place."""

    timesteps: TimestepSampling
    """How u is drawn."""
    logit_mean: float = 0.0
    """Of the logit-normal."""
    logit_std: float = 1.0
    """Of the logit-normal."""
    mode_scale: float = 1.29
    """Of the mode distribution."""
    uniform_mix: float = 0.0
    """Share of samples that draw u uniformly."""
    shift_kind: ShiftKind = ShiftKind.CONSTANT
    """What the shift follows."""
    shift: float
    """The shift, or what a clip's own is multiplied by."""
    sigma_min: float = 0.0
    """What sigma is at u = 0."""
    weighting: Weighting
    """What a sample's loss is multiplied by."""
    image_weight: float = 1.0
    """What the loss of a sample of one frame is multiplied by as well."""


PRESETS: dict[ObjectivePreset, Recipe] = {
    # NVIDIA-NeMo/DFM, dfm/src/automodel/flow_matching/flow_matching_pipeline.py, dfm/src/megatron/model/wan/wan_step.py
    ObjectivePreset.DFM_PRETRAIN: Recipe(
        timesteps=TimestepSampling.LOGIT_NORMAL, logit_std=1.5, uniform_mix=0.2, shift=2.5, weighting=Weighting.SHIFT
    ),
    ObjectivePreset.DFM_FINETUNE: Recipe(
        timesteps=TimestepSampling.UNIFORM, uniform_mix=0.1, shift=3.0, weighting=Weighting.SHIFT
    ),
    # Shopee-MUG/MUG-V-Megatron-LM-Training, examples/mugv/rectified_flow.py, which takes 10 latent frames for all clips
    ObjectivePreset.MUG_V: Recipe(
        timesteps=TimestepSampling.LOGIT_NORMAL,
        shift_kind=ShiftKind.SIZE,
        shift=1.0,
        weighting=Weighting.NONE,
        image_weight=0.3,
    ),
    # AI-Hypercomputer/maxdiffusion, src/maxdiffusion/schedulers/scheduling_flow_match_flax.py and trainers/wan
    ObjectivePreset.MAXDIFFUSION: Recipe(
        timesteps=TimestepSampling.UNIFORM, shift=3.0, sigma_min=0.003 / 1.002, weighting=Weighting.BELL
    ),
}


class Objective(Model):
    """Rectified flow: x_t = (1 - sigma) data + sigma noise; what is left out follows the preset."""

    preset: ObjectivePreset = ObjectivePreset.DFM_PRETRAIN
    """Whose numbers count: dfm-pretrain (logit-normal 0 and 1.5, a fifth uniform, shift 2.5, weight 1 + shift sigma),
    dfm-finetune (uniform, shift 3, the same weight), mug-v (logit-normal 0 and 1, shift by size, images 0.3),
    maxdiffusion (uniform, shift 3, sigma from 0.003, bell)."""
    timesteps: TimestepSampling | None = None
    """How u in (0, 1) is drawn for each sample."""
    logit_mean: float | None = Field(default=None, ge=-10, le=10)
    """Mean of the normal whose sigmoid is u (logit-normal only)."""
    logit_std: float | None = Field(default=None, gt=0, le=10)
    """Standard deviation of that normal (logit-normal only)."""
    mode_scale: float | None = Field(default=None, ge=-1, le=LARGEST_MODE_SCALE)
    """How much u gathers in the middle, or below 0 at the ends (mode only)."""
    uniform_mix: Fraction | None = None
    """Share of samples that draw u uniformly all the same (not with uniform)."""
    shift_kind: ShiftKind | None = None
    """What the shift follows: constant, or size (area and duration of the clip)."""
    shift: float | None = Field(default=None, ge=0.01, le=100)
    """t = shift u / (1 + (shift - 1) u): above 1 spends more steps on noisy inputs. With shiftKind size a factor of
    each clip's own shift."""
    sigma_min: float | None = Field(default=None, ge=0, lt=1)
    """sigma = sigmaMin + (1 - sigmaMin) t."""
    weighting: Weighting | None = None
    """What a sample's loss is multiplied by: none, shift (1 + shift sigma) or bell."""
    image_weight: float | None = Field(default=None, ge=0, le=100)
    """What the loss of a sample of one frame is multiplied by as well."""
    caption_dropout: Fraction = 0.1
    """Share of samples trained on the empty caption, for classifier-free guidance; no preset says it."""
    masks: Masks = Field(default_factory=Masks)
    """Clean frames within the clip, for t2v and v2v; {quarterHead: 1} for v2v when none is named."""

    @property
    def recipe(self) -> Recipe:
        """Every number: what is written here, over the preset's."""
        written = {name: getattr(self, name) for name in Recipe.model_fields}
        return PRESETS[self.preset].model_copy(
            update={name: value for name, value in written.items() if value is not None}
        )

    @property
    def filled(self) -> Objective:
        """The same objective with every number written out."""
        recipe = self.recipe
        return self.model_copy(update={name: getattr(recipe, name) for name in Recipe.model_fields})
