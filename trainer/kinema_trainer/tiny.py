# SPDX-License-Identifier: Apache-2.0
"""A pipeline folder at toy size: what stands for pretrained weights where there is no accelerator.

`python -m kinema_trainer.tiny OUT [--model NAME] [--videos DIR] [--seed N]` writes a folder that diffusers loads, with
the dimensions of a catalogue entry. All weights are random and follow from the seed. The VAE's `latents_mean` and
`latents_std` are measured on clips, so that normalised latents have mean 0 and standard deviation 1 in every channel,
which is what the flow-matching objective and the sampler assume.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from kinema_api.catalogue import Entry, ImageEncoder, entry
from kinema_api.settings import Stages, Video

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi"})
CALIBRATION_CLIPS = 12
VOCABULARY = 512
_WORDS = """
a an the of and in on at to with over under near beside behind through across from into by for
one two three many several small big large young old little white black grey red green blue yellow orange brown dark
bright man woman child boy girl person people rabbit bunny cat dog bird horse animal bike bikes bicycle motorbike car
phone road street city house tree forest grass meadow field sky cloud sun sea river water mountain room window
wakes stands sits walks runs rides drives talks speaks moves turns looks jumps plays rolls falls flies slow slowly fast
quickly camera close view wide cartoon animated video clip scene morning evening night day light shadow
"""


def make(out: Path, *, spec: Entry, videos: Path | None = None, seed: int = 0) -> Any:
    """Write the pipeline folder.

    Args:
        out: where to; replaced when it is there.
        spec: the catalogue entry that gives the dimensions.
        videos: clips to calibrate the VAE on, with captions in .txt files; synthetic ones when left out.
        seed: decides every weight.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(captions(videos))
    kind: Any = getattr(diffusers, spec.pipeline)
    pipeline: Any = kind(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(spec, vocabulary=len(tokenizer)),
        vae=calibrate(make_vae(spec), clips(videos, geometry(spec))),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=make_transformer(spec),
        **({} if spec.image is None else make_image_encoder(spec.image)),
    )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return pipeline


def geometry(spec: Entry) -> Video:
    """The clip geometry that jobs of this model use when they say nothing."""
    return Stages.model_validate(spec.defaults).prepare.video


def make_transformer(spec: Entry) -> Any:
    """The transformer with Wan's own initialisation: small embeddings, and a head that predicts zero."""
    dims = spec.transformer
    model: Any = WanTransformer3DModel(
        patch_size=dims.patch,
        num_attention_heads=dims.heads,
        attention_head_dim=dims.hidden // dims.heads,
        in_channels=dims.in_channels,
        out_channels=spec.vae.channels,
        text_dim=dims.text_dim,
        freq_dim=256,
        ffn_dim=dims.ffn,
        num_layers=dims.layers,
        rope_max_seq_len=1024,
        **({} if spec.image is None else _image_dimensions(spec.image, hidden=dims.hidden)),
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.xavier_uniform_(model.patch_embedding.weight.flatten(1))
    torch.nn.init.zeros_(model.patch_embedding.bias)
    for name in ("text_embedder", "time_embedder"):
        for module in model.condition_embedder.get_submodule(name).modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
    if spec.image is not None and spec.image.positions:
        torch.nn.init.normal_(model.condition_embedder.image_embedder.pos_embed, std=0.5)
    torch.nn.init.zeros_(model.proj_out.weight)
    return model.eval()


def _image_dimensions(image: ImageEncoder, *, hidden: int) -> dict[str, int]:
    """What the transformer's config says of the image encoder's tokens."""
    dimensions = {"image_dim": image.width, "added_kv_proj_dim": hidden}
    return dimensions | ({"pos_embed_seq_len": image.given} if image.positions else {})


def make_image_encoder(image: ImageEncoder) -> dict[str, Any]:
    """A random image encoder of the wanted tokens, a square of patches and one more, and its processor."""
    side = math.isqrt(image.tokens - 1)
    if side * side != image.tokens - 1:
        raise ValueError(f"an image of {image.tokens} tokens is no square of patches and one more")
    pixels = 8 * side
    config = CLIPVisionConfig(
        hidden_size=image.width,
        intermediate_size=2 * image.width,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=pixels,
        patch_size=8,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels})
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": processor}


def make_text_encoder(spec: Entry, *, vocabulary: int) -> UMT5EncoderModel:
    """A random encoder. Its last norm gives every token unit variance, so that captions stay far apart."""
    width = spec.transformer.text_dim
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config).eval()


def make_vae(spec: Entry) -> Any:
    """A random VAE of Wan's stride and channels."""
    vae: Any = AutoencoderKLWan(
        base_dim=8,
        z_dim=spec.vae.channels,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * spec.vae.channels,
        latents_std=[1.0] * spec.vae.channels,
    )
    return vae.eval()


@torch.no_grad()
def calibrate(vae: Any, samples: Iterator[Tensor]) -> Any:
    """Write the mean and standard deviation of every latent channel into the VAE's config.

    Args:
        vae: the autoencoder.
        samples: clips, each [3, frames, height, width] in [-1, 1].
    """
    latents = torch.cat([vae.encode(clip[None]).latent_dist.mode()[0].flatten(1).double() for clip in samples], dim=1)
    mean, std = latents.mean(dim=1), latents.std(dim=1).clamp_min(1e-6)
    vae.register_to_config(
        latents_mean=[round(value, 6) for value in mean.tolist()],
        latents_std=[round(value, 6) for value in std.tolist()],
    )
    return vae


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the captions and some everyday words: every text has tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sorted(texts), _WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def captions(videos: Path | None) -> list[str]:
    """The captions beside the videos."""
    return [] if videos is None else [path.read_text(encoding="utf-8") for path in sorted(videos.rglob("*.txt"))]


def clips(videos: Path | None, video: Video) -> Iterator[Tensor]:
    """Clips to calibrate on, each [3, frames, height, width] in [-1, 1]."""
    files = [] if videos is None else sorted(p for p in videos.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    found = 0
    for file in files[:CALIBRATION_CLIPS]:
        for clip in _cut(file, video, limit=max(1, CALIBRATION_CLIPS // len(files))):
            found += 1
            yield clip
    if not found:
        yield from (synthetic_clip(video, seed=seed) for seed in range(CALIBRATION_CLIPS))


def _cut(file: Path, video: Video, *, limit: int) -> Iterator[Tensor]:
    frames: list[np.ndarray] = []
    try:
        with av.open(str(file)) as container:
            rate = float(container.streams.video[0].average_rate or video.fps)
            stride = max(1, round(rate / video.fps))
            for index, frame in enumerate(container.decode(video=0)):
                if len(frames) >= limit * video.frames:
                    break
                if index % stride == 0:
                    frames.append(frame.reformat(width=video.width, height=video.height, format="rgb24").to_ndarray())
    except (av.FFmpegError, IndexError):
        print(f"{file}: not a video, left out of the calibration", file=sys.stderr)
    for start in range(0, len(frames) - video.frames + 1, video.frames):
        pixels = torch.from_numpy(np.stack(frames[start : start + video.frames]))
        yield pixels.permute(3, 0, 1, 2).float() / 127.5 - 1


def synthetic_clip(video: Video, *, seed: int) -> Tensor:
    """A smooth moving pattern, [3, frames, height, width] in [-1, 1]: a few drifting waves and a wandering disc."""
    random = np.random.default_rng(seed)
    t, y, x = np.meshgrid(
        np.linspace(0, 1, video.frames), np.linspace(0, 1, video.height), np.linspace(0, 1, video.width), indexing="ij"
    )
    waves = np.zeros((3, *t.shape))
    for channel in range(3):
        for _ in range(3):
            fy, fx, ft = (random.normal(0, spread) for spread in (2.0, 2.0, 0.7))
            waves[channel] += random.normal(0, 0.35) * np.cos(2 * np.pi * (fy * y + fx * x + ft * t + random.random()))
    (y0, y1), (x0, x1) = random.random((2, 2))
    disc = ((y - y0 - (y1 - y0) * t) ** 2 + (x - x0 - (x1 - x0) * t) ** 2) < random.uniform(0.02, 0.06)
    colour = random.uniform(-1, 1, (3, 1, 1, 1))
    return torch.from_numpy(np.clip(np.where(disc, colour, waves + random.normal(0, 0.4, (3, 1, 1, 1))), -1, 1)).float()


def main(arguments: list[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m kinema_trainer.tiny", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--videos", type=Path, help="videos to calibrate the VAE on, captions beside them")
    parser.add_argument("--model", default="wan2.1-tiny", help="catalogue entry that gives the dimensions")
    parser.add_argument("--seed", type=int, default=0, help="decides every weight")
    options = parser.parse_args(arguments)
    if options.videos is not None and not options.videos.is_dir():
        parser.error(f"--videos {options.videos}: not a folder")
    pipeline = make(options.out, spec=entry(options.model), videos=options.videos, seed=options.seed)
    count = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    print(f"{options.out}: {options.model}, transformer of {count:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
