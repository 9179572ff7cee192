# SPDX-License-Identifier: Apache-2.0
"""Held-out clips, the loss on them, and videos that are generated during training."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Weights
from kinema_api.stage import TrainConfig
from kinema_api.validation import TrainingSamples, Validation
from kinema_trainer.data.feed import Features
from kinema_trainer.data.heldout import held_out
from kinema_trainer.data.reader import Loader, pad
from kinema_trainer.data.shards import ShardIndex
from kinema_trainer.evaluation import previews, validation
from kinema_trainer.evaluation.judging import Bench, make_judge
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.parallel.mesh import Mesh

from tests.engine import FEATURES, SPEC, Engine, Train
from tests.stages.train.test_training import lines, losses, trained

KEYS = [f"clip-{number}" for number in range(1000)]
SIGMAS = [0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]


def held(keys: list[str], **settings: Any) -> set[str]:
    found = held_out(keys, Validation.model_validate({"everySteps": 1, **settings}))
    assert len(set(found)) == len(found)
    return {keys[place] for place in found}


def test_held_out_clips_follow_from_their_keys_alone() -> None:
    some = held(KEYS, share=0.1)
    assert len(some) == pytest.approx(100, abs=30)
    assert held(KEYS[::-1], share=0.1) == some
    assert held([*KEYS, *(f"new-{number}" for number in range(500))], share=0.1) >= some
    assert held(KEYS, share=0.2) > some
    assert some & set(KEYS[:500]) == held(KEYS[:500], share=0.1)


def test_a_number_of_clips_or_at_least_one() -> None:
    assert len(held(KEYS, clips=7)) == 7
    assert held(KEYS, clips=7) < held(KEYS, clips=8)
    assert len(held(KEYS[:3], share=0.001)) == 1
    assert held(KEYS, everySteps=0) == set()


def test_something_has_to_be_left() -> None:
    with pytest.raises(StageError, match="holds out 3 of 3 clips, so that none is left to train on") as caught:
        held(KEYS[:3], clips=3)
    assert caught.value.code is Exit.USER


def test_noise_levels_are_the_middles_of_equal_parts() -> None:
    assert list(validation.levels(8)) == SIGMAS


def by_hand(engine: Engine, config: TrainConfig) -> list[float]:
    """The mean at each noise level over the held-out clips, with diffusers' own forward pass."""
    model = ADAPTER.build(ADAPTER.load(engine.weights / "transformer").config)
    model.load_state_dict(trained(engine, config))
    samples = ShardIndex.open(engine.workspace.local(f"artifacts/features/{FEATURES}"))
    clips = [samples[place] for place in held_out(samples.keys, config.settings.validation)]
    means = []
    for sigma in SIGMAS:
        found = []
        for clip in clips:
            noise = torch.randn(clip.latents.shape, generator=validation.stream(clip.key))
            noisy = (1 - sigma) * clip.latents + sigma * noise
            with torch.no_grad():
                velocity = model(
                    noisy[None], torch.tensor([1000 * sigma]), pad(clip.text, length=SPEC.text_length)[None]
                ).sample[0]
            found.append(float((velocity - (noise - clip.latents)).square().mean()))
        means.append(sum(found) / len(found))
    return means


def test_the_validation_loss_is_the_mean_of_the_means(engine: Engine, train: Train) -> None:
    config = engine.config(validation={"everySteps": 4, "clips": 2}, objective={"preset": "mug-v"})
    train(engine, config)
    found = lines(engine, config)
    assert [line["step"] for line in found if "validation_loss" in line] == [4, 6], "every fourth step, and the last"
    last, wanted = found[-1], by_hand(engine, config)
    names = [f"validation_loss_at_{digits}" for digits in ("0625", "1875", "3125", "4375", "5625", "6875", "8125")]
    assert [last[name] for name in [*names, "validation_loss_at_9375"]] == pytest.approx(wanted, rel=1e-4)
    assert last["validation_loss"] == pytest.approx(sum(wanted) / 8, rel=1e-4)


def test_held_out_clips_are_never_trained_on_and_are_counted(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = Loader.batch

    def batch(self: Loader, *, start: int, micro: int) -> Any:
        found = original(self, start=start, micro=micro)
        seen.extend(example.key for example in found)
        return found

    monkeypatch.setattr(Loader, "batch", batch)
    config = engine.config(validation={"everySteps": 3, "clips": 2})
    train(engine, config)
    keys = ShardIndex.open(engine.workspace.local(f"artifacts/features/{FEATURES}")).keys
    away = held(keys, clips=2)
    assert set(seen) == set(keys) - away
    (event,) = [event for event in lines(engine, config, "events.jsonl") if event["event"] == "clips"]
    assert (event["trained"], event["held_out"]) == (3, 2)


def test_held_out_clips_are_read_when_they_are_tried(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be more of them than memory holds."""
    config = engine.config(validation={"everySteps": 1, "clips": 3})
    features = Features.open(config, workspace=engine.workspace)
    read: list[int] = []
    original = ShardIndex.__getitem__

    def getitem(self: ShardIndex, index: int) -> Any:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(ShardIndex, "__getitem__", getitem)
    nothing: Any = SimpleNamespace(leads=False)
    validator = make_judge(
        Bench(
            config=config,
            workspace=engine.workspace,
            features=features,
            adapter=ADAPTER,
            model=nothing,
            mesh=Mesh(),
            team=nothing,
            device=torch.device("cpu"),
            interrupted=lambda: False,
            moved=lambda: None,
            held_up=contextlib.nullcontext,
        )
    ).validator
    assert validator is not None and len(validator.clips) == 3 and read == []
    keys = [validator.clips[number].key for number in range(3) for _ in SIGMAS]
    assert keys[:: len(SIGMAS)] == [features.samples.keys[place] for place in features.held]
    assert read == list(features.held), "once for all noise levels"


def test_judging_changes_nothing_in_the_run(engine: Engine, train: Train) -> None:
    split = {"everySteps": 6, "clips": 2}
    seldom = engine.config("seldom", validation=split)
    often = engine.config(
        "often", validation={**split, "everySteps": 1, "samples": {"everySteps": 2, "steps": 2, "seeds": [1]}}
    ).model_copy(update={"weights": Weights(uri=f"file://{engine.weights}")})
    train(engine, seldom)
    train(engine, often)
    assert losses(engine, often) == losses(engine, seldom)
    one, two = trained(engine, seldom), trained(engine, often)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert lines(engine, often)[-1]["validation_loss"] == lines(engine, seldom)[-1]["validation_loss"]


def test_another_split_is_another_run(engine: Engine, train: Train) -> None:
    train(engine, engine.config(steps=2, validation={"everySteps": 1, "clips": 2}))
    with pytest.raises(StageError, match="written with another value of the number of clips"):
        train(engine, engine.config(steps=4, validation={"everySteps": 1, "clips": 1}))


def test_videos_of_the_same_prompts_and_seeds(engine: Engine, train: Train) -> None:
    samples = {"everySteps": 3, "steps": 2, "prompts": ["a rabbit", "a bird"], "seeds": [3, 4], "guidance": 2.0}
    config = engine.config(validation={"samples": samples}).model_copy(
        update={"weights": Weights(uri=f"file://{engine.weights}")}
    )
    train(engine, config)
    for step in (3, 6):
        folder = engine.workspace.local(f"{config.run}/training-samples/step-{step:08d}")
        names = sorted(path.name for path in folder.glob("*.mp4"))
        assert names == ["00-seed3.mp4", "00-seed4.mp4", "01-seed3.mp4", "01-seed4.mp4"]
        with av.open(str(folder / names[0])) as container:
            stream = container.streams.video[0]
            assert (stream.frames, stream.height, stream.width) == (5, 32, 32)
        listed = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert listed[1] == {"prompt": "a rabbit", "seed": 4, "file": "00-seed4.mp4"}


def test_the_sampler_is_eulers(engine: Engine) -> None:
    """Latents equal those of diffusers' pipeline with its own Euler scheduler, guidance and all."""
    settings = TrainingSamples(steps=4, guidance=3.0, shift=3.0, prompts=["a rabbit"], seeds=[5])
    pipeline: Any = WanPipeline.from_pretrained(engine.weights)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    stream = torch.Generator().manual_seed(5)
    noise = torch.randn((1, 16, 2, 4, 4), generator=stream)
    text, empty = (pipeline._get_t5_prompt_embeds(prompt, max_sequence_length=8) for prompt in ("a rabbit", ""))
    sigmas = previews.sigmas_of(settings)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1.0, 0.0, 5)
    expected = noise
    pipeline.scheduler.set_timesteps(sigmas=sigmas[:-1])
    with torch.no_grad():
        for timestep in pipeline.scheduler.timesteps:
            toward, away = (pipeline.transformer(expected, timestep[None], prompt).sample for prompt in (text, empty))
            expected = pipeline.scheduler.step(away + 3.0 * (toward - away), timestep, expected).prev_sample
    given = validation.Examples(objective=engine.config().settings.objective, text_length=8, images=0, temporal=4).of(
        ShardIndex.open(engine.workspace.local(f"artifacts/features/{FEATURES}"))[0], sigma=1.0
    )
    stubs: dict[str, Any] = {"workspace": None, "decode": None}
    previewer = previews.Previewer(
        settings=settings,
        shots=[],
        empty_text=empty[0],
        adapter=ADAPTER,
        model=ADAPTER.load(engine.weights / "transformer"),
        mesh=Mesh(),
        sign=1.0,
        device=torch.device("cpu"),
        dtype=torch.float32,
        fps=8,
        run="run",
        stops=lambda: False,
        moved=lambda: None,
        **stubs,
    )
    shot = previews.Shot(scene=previews.Scene(prompt="a rabbit", text=text[0], given=given), seed=5, file="x.mp4")
    with validation.judged(previewer.model):
        found = previewer._denoised(shot)
    assert found is not None
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=1e-4)


def test_v2v_gives_the_leading_frames(engine: Engine) -> None:
    samples = ShardIndex.open(engine.workspace.local(f"artifacts/features/{FEATURES}"))
    example = validation.Examples(objective=engine.config().settings.objective, text_length=8, images=0, temporal=4)
    clip = example.of(samples[0], sigma=1.0)
    clean = previews.given_by(clip, leading=True).condition.clean
    assert clean is not None and clean.tolist() == [True, False]
    assert previews.given_by(clip, leading=False).condition.clean is None
