# SPDX-License-Identifier: Apache-2.0
"""What the features stage costs beside the encoders: clips a second of one worker against its parts called directly.

Ours is the stage as a pod runs it: claims, decoding, VAE, text encoder, shards, sidecars, progress, publishing. The
other side decodes by PyAV and calls diffusers' VAE and transformers' text encoder in a plain loop, and keeps the
results in memory. Both run in this process, on the same clips with the same threads, in turns, and both load their
encoders in each turn.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from bench.common import Goal, Side, report
from kinema_api.catalogue import entry
from kinema_api.inputs import Dataset, Storage, Weights
from kinema_api.job import Task
from kinema_api.names import Stage, artifact_folder
from kinema_api.settings import ClipVideo, FeaturesSettings, Video
from kinema_api.stage import FeaturesConfig, JobRef
from kinema_stage import artifact, clips, video
from kinema_stage.context import Context, make_context
from kinema_trainer import tiny
from kinema_trainer.data.shards import ShardIndex
from kinema_trainer.encoding.encoders import hide_loading_bars
from kinema_trainer.encoding.mp4 import write_mp4
from kinema_trainer.stages import features
from kinema_trainer.threads import cpu_threads

VIDEO = ClipVideo(frames=17, height=96, width=144, fps=16)
SOURCE = Video(frames=24, height=288, width=432, fps=16)
TEXT_LENGTH = 256
PER_SHARD = 4
SPEC = entry("wan2.1-tiny").model_copy(update={"text_length": TEXT_LENGTH})
VAE = {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
TEXT = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 8}
T = TypeVar("T")
R = TypeVar("R")
GOAL = Goal(at_least=0.9)


@dataclass(frozen=True, slots=True)
class Setting:
    """Videos and encoders in a folder."""

    root: Path
    captions: dict[str, str]

    @property
    def videos(self) -> Path:
        """The dataset."""
        return self.root / "videos"

    @property
    def weights(self) -> Path:
        """The encoders."""
        return self.root / "weights"


def make(root: Path, *, count: int) -> Setting:
    """Write videos, captions and random encoders."""
    torch.manual_seed(0)
    setting = Setting(root, {f"video-{n:03d}.mp4": f"clip {n} shows a bird by a river at noon" for n in range(count)})
    setting.videos.mkdir()
    for seed, name in enumerate(setting.captions):
        pixels = (tiny.synthetic_clip(SOURCE, seed=seed).permute(1, 2, 3, 0) + 1) * 127.5
        write_mp4(setting.videos / name, pixels.round().to(torch.uint8).numpy(), fps=SOURCE.fps)
    tokenizer = tiny.make_tokenizer(list(setting.captions.values()))
    tokenizer.save_pretrained(setting.weights / "tokenizer")
    vae: Any = AutoencoderKLWan(**VAE)
    vae.save_pretrained(setting.weights / "vae")
    UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), dropout_rate=0.0, feed_forward_proj="gated-gelu", **TEXT)
    ).save_pretrained(setting.weights / "text_encoder")
    return setting


def worker(setting: Setting) -> Context:
    """The surroundings of one features worker: a fresh workspace with the list of clips."""
    shutil.rmtree(setting.root / "workspace", ignore_errors=True)
    config = FeaturesConfig(
        job=JobRef(namespace="local", name="bench", uid="0123456789"),
        workspace=Storage(uri=f"file://{setting.root / 'workspace'}"),
        model=SPEC,
        task=Task.T2V,
        key="features",
        dataset=Dataset(uri=f"file://{setting.videos}"),
        prepare_key="prepare",
        encoder_key="encoder",
        weights=Weights(uri=f"file://{setting.weights}"),
        settings=FeaturesSettings(clips_per_shard=PER_SHARD),
    )
    context = make_context(config, interrupted=threading.Event(), environment={"KINEMA_METRICS_PORT": "0"})
    found: list[clips.Clip] = []
    for name, caption in setting.captions.items():
        info = video.probe(setting.videos / name)
        cut = clips.cut(video=name, tag=name, caption=caption, info=info, settings=VIDEO)
        assert isinstance(cut, clips.Cut), cut
        found += cut.clips
    folder = artifact_folder(Stage.PREPARE, "prepare")
    clips.write(context.workspace, folder, clips=found, quarantined=[])
    artifact.publish(
        context.workspace, folder, artifact.Manifest(stage=Stage.PREPARE, key="prepare", job="local/bench")
    )
    return context


def frames(path: Path) -> Tensor:
    """The clip of a video: [3, frames, height, width] in [-1, 1]."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        # One for the clip: a frame's own method would make new scaling tables for each frame.
        scaler = VideoReformatter()
        size: dict[str, Any] = {"width": VIDEO.width, "height": VIDEO.height}
        pictures = [
            scaler.reformat(frame, **size, format="rgb24", interpolation="LANCZOS").to_ndarray()
            for frame in itertools.islice(container.decode(stream), VIDEO.frames)
        ]
    return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


@torch.inference_mode()
def direct(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """Latents and text of every clip, by the libraries' own calls."""
    loaders: tuple[Any, Any, Any] = (AutoencoderKLWan, UMT5EncoderModel, AutoTokenizer)
    vae = loaders[0].from_pretrained(setting.weights / "vae", torch_dtype=torch.float32).eval()
    encoder = loaders[1].from_pretrained(setting.weights / "text_encoder", dtype=torch.float32).eval()
    tokenizer = loaders[2].from_pretrained(setting.weights / "tokenizer")
    mean = torch.tensor(vae.config.latents_mean).view(-1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(-1, 1, 1, 1)
    found = []
    for name, caption in setting.captions.items():
        latents = (vae.encode(frames(setting.videos / name)[None]).latent_dist.mode()[0] - mean) / std
        tokens = tokenizer(
            [caption], padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        found.append((latents, hidden[0, : int(tokens.attention_mask.sum())]))
    return found


def agree(context: Context, expected: list[tuple[Tensor, Tensor]]) -> None:
    """See that both sides did the same work."""
    folder = Path(context.config.workspace.uri.removeprefix("file://")) / context.folder
    samples = list(ShardIndex.open(folder))
    assert len(samples) == len(expected), f"{len(samples)} clips of {len(expected)}"
    for sample, (latents, text) in zip(samples, expected, strict=True):
        torch.testing.assert_close(sample.text, text, rtol=1e-3, atol=1e-4)
        # Pixels differ by up to two levels: the stage asks the scaler for exact rounding.
        difference = (sample.latents - latents).abs().mean() / latents.abs().mean()
        assert difference < 0.1, f"latents differ by {difference:.1%}"


def timed(work: Callable[[T], R], argument: T) -> tuple[tuple[float, float], R]:
    """Seconds and processor seconds of some work, and its result."""
    began, cpu = time.monotonic(), time.process_time()
    result = work(argument)
    return (time.monotonic() - began, time.process_time() - cpu), result


def side(what: str, rounds: list[tuple[float, float]], *, count: int) -> Side:
    """A side's median. Processor seconds tell more than time where other programs use the machine too."""
    raw = {
        "seconds": [round(wall, 3) for wall, _ in rounds],
        "processorSeconds": [round(cpu, 3) for _, cpu in rounds],
        "medianProcessorSeconds": round(statistics.median(cpu for _, cpu in rounds), 3),
    }
    return Side(what=what, value=count / statistics.median(wall for wall, _ in rounds), unit="clips a second", raw=raw)


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=16, help="clips of a round")
    parser.add_argument("--rounds", type=int, default=4, help="measured rounds of each side, after one of each")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    hide_loading_bars()
    torch.set_num_threads(cpu_threads(1))
    rounds: dict[str, list[tuple[float, float]]] = {"ours": [], "direct": []}
    with tempfile.TemporaryDirectory(prefix="kinema-bench-") as folder:
        setting = make(Path(folder), count=options.clips)
        for number in range(options.rounds + 1):
            for name in ("ours", "direct") if number % 2 else ("direct", "ours"):
                if name == "direct":
                    figures, expected = timed(direct, setting)
                else:
                    context = worker(setting)
                    figures, _ = timed(features.run, context)
                if number:
                    rounds[name].append(figures)
            agree(context, expected)
    holds = report(
        "encode",
        ours=side("one features worker", rounds["ours"], count=options.clips),
        reference=side("decode, VAE and text encoder called directly", rounds["direct"], count=options.clips),
        goal=GOAL,
        settings={
            "clips": options.clips,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            "clip": VIDEO.model_dump(include={"frames", "height", "width"}),
            "source": SOURCE.model_dump(include={"frames", "height", "width"}),
            "vae": VAE,
            "textEncoder": TEXT | {"tokens": TEXT_LENGTH},
            "clipsPerShard": PER_SHARD,
        },
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
