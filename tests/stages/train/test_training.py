# SPDX-License-Identifier: Apache-2.0
"""Whole runs of one process: resume, accumulation, precision, interruption, failure."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save

from kinema_api.exits import Exit, StageError
from kinema_api.names import Stage
from kinema_api.stage import TrainConfig
from kinema_stage.artifact import Manifest
from kinema_stage.pace import NEVER
from kinema_stage.watchdog import Watchdog
from kinema_trainer import loop
from kinema_trainer.checkpoints import dcp, folders, lora_file, saver, staging
from kinema_trainer.checkpoints.folders import Position, complete, folder_of, newest
from kinema_trainer.checkpoints.saver import Saver
from kinema_trainer.checkpoints.weights import read_config, read_into
from kinema_trainer.models.wan import ADAPTER
from kinema_trainer.stages import export

from tests.engine import Engine, Train
from tests.waiting import until


def lines(engine: Engine, config: TrainConfig, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in engine.workspace.read(f"{config.run}/{name}").splitlines()]


def losses(engine: Engine, config: TrainConfig) -> list[float]:
    return [line["loss"] for line in lines(engine, config)]


def trained(engine: Engine, config: TrainConfig, *, under: str = "model") -> dict[str, torch.Tensor]:
    """The weights of a run's newest checkpoint."""
    found = newest(engine.workspace, f"{config.run}/checkpoints")
    assert found is not None
    model = ADAPTER.build(read_config(engine.weights / "transformer"))
    read_into(model, dcp.reader(engine.workspace, found.folder), under=under)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


def before_pass(monkeypatch: pytest.MonkeyPatch, look: Callable[[loop.Trainer, int], object]) -> None:
    """Do something before each forward pass."""
    original = loop.Trainer._accumulate

    def accumulate(self: loop.Trainer, micro: int) -> torch.Tensor:
        look(self, micro)
        return original(self, micro)

    monkeypatch.setattr(loop.Trainer, "_accumulate", accumulate)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> threading.Event:
    """An event that a SIGTERM during the first pass of `step` would set."""
    event = threading.Event()

    def look(trainer: loop.Trainer, micro: int) -> None:
        if trainer.position.step + 1 == step:
            event.set()

    before_pass(monkeypatch, look)
    return event


def test_a_run_leaves_what_it_should(engine: Engine, train: Train) -> None:
    config = engine.config(checkpoint={"everySteps": 2, "keep": 2})
    train(engine, config)
    found = lines(engine, config)
    assert [line["step"] for line in found] == list(range(1, 7))
    wanted = {"loss", "learning_rate", "grad_norm", "samples_per_second", "step_seconds", "tflops_per_second"}
    assert wanted <= found[0].keys()
    assert "mfu" not in found[0]
    kept = complete(engine.workspace, f"{config.run}/checkpoints")
    assert [one.position.step for one in kept] == [4, 6]
    assert kept[-1].position.consumed == 12
    events = EventAccumulator(str(engine.workspace.local(f"{config.run}/tensorboard")))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 6
    before = ADAPTER.load(engine.weights / "transformer")
    assert difference(trained(engine, config), dict(before.named_parameters())) > 1e-3


def test_a_resumed_run_is_the_run_that_was_never_broken(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema = {"enabled": True, "decay": 0.9}
    whole, broken = engine.config("whole", ema=ema), engine.config("broken", ema=ema)
    train(engine, whole)
    with monkeypatch.context() as patch, pytest.raises(StageError, match="saved step 3 of 6") as caught:
        train(engine, broken, interrupted=interrupt_after(patch, 3))
    assert caught.value.code is Exit.INTERRUPTED
    train(engine, broken.model_copy(update={"attempt": 2}))
    assert losses(engine, broken) == losses(engine, whole)
    for part in ("model", "ema"):
        assert difference(trained(engine, broken, under=part), trained(engine, whole, under=part)) == 0
    assert difference(trained(engine, whole), trained(engine, whole, under="ema")) > 0


def test_an_interruption_waits_for_no_further_pass_and_writes_nothing_twice(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"batchPerDevice": 1, "accumulate": 3}
    whole, broken = engine.config("whole", **sizes), engine.config("broken", **sizes)
    train(engine, whole)
    passes: list[tuple[int, int]] = []
    writes: list[Path] = []

    def async_save(state: Any, *, storage_writer: FileSystemWriter, **rest: Any) -> Any:
        writes.append(Path(storage_writer.path))
        return dcp_async_save(state, storage_writer=storage_writer, **rest)

    with monkeypatch.context() as patch, pytest.raises(StageError, match="saved step 2 of 6"):
        patch.setattr(saver, "async_save", async_save)
        before_pass(patch, lambda trainer, micro: passes.append((trainer.position.step, micro)))
        train(engine, broken, interrupted=interrupt_after(patch, 3))
    assert passes[-2:] == [(1, 2), (2, 0)]
    assert [path.name for path in writes] == ["step-00000002"]
    train(engine, broken)
    assert losses(engine, broken) == losses(engine, whole)
    assert difference(trained(engine, broken), trained(engine, whole)) == 0


@pytest.mark.parametrize(("steps", "message"), [(0, "made no step yet of 6"), (4, "saved step 4 of 6")])
def test_an_interruption_before_the_first_pass_leaves_all_as_it_was(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch, steps: int, message: str
) -> None:
    config = engine.config()
    if steps:
        with monkeypatch.context() as patch, pytest.raises(StageError):
            train(engine, config, interrupted=interrupt_after(patch, steps))
    root = engine.workspace.local(f"{config.run}/checkpoints")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    interrupted = threading.Event()
    interrupted.set()
    with pytest.raises(StageError, match=message) as caught:
        train(engine, config, interrupted=interrupted)
    assert caught.value.code is Exit.INTERRUPTED
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_checkpoint_counts_as_soon_as_it_is_written(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = engine.config()
    written = engine.workspace.local(f"{folder_of(f'{config.run}/checkpoints', 2)}/_SUCCESS.json")

    def look(trainer: loop.Trainer, micro: int) -> None:
        if trainer.position.step == 2:
            until("the stacks are written", written.exists)

    before_pass(monkeypatch, look)
    train(engine, config)
    assert len(losses(engine, config)) == 6


def test_the_watchdog_sees_each_pass(engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(rule=NEVER, on_stall=print)
    moves: list[int] = []
    monkeypatch.setattr(watchdog, "moved", lambda *, work=True: moves.append(1) if work else None)
    train(engine, engine.config(steps=2, batchPerDevice=1, accumulate=4), watchdog=watchdog)
    assert len(moves) >= 8


def test_the_watchdog_sees_a_checkpoint_grow_and_a_stuck_one_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look finds more bytes for a while, then none; then the write ends."""
    written: Future[None] = Future()
    file = engine.workspace.local(f"{folder_of('run', 2)}/__0_0.distcp")
    looks: list[int] = []
    moves: list[int] = []

    def slow(futures: list[Future[None]], *, timeout: float) -> Any:
        looks.append(1)
        if len(looks) <= 3:
            file.write_bytes(b"w" * len(looks))
        elif len(looks) == 6:
            written.set_result(None)
            return wait(futures)
        return wait(futures, timeout=0)

    monkeypatch.setattr(saver, "wait", slow)
    monkeypatch.setattr(saver, "async_save", lambda *_, **__: written)
    one = Saver(
        workspace=engine.workspace,
        root="run",
        group=cast(Any, None),
        leads=True,
        keep=1,
        manifest=Manifest(stage=Stage.TRAIN, key="k", job="j"),
        saved=Position(),
        moved=lambda: moves.append(1),
    )
    one.save({}, Position(step=2, consumed=4), wait=True)
    assert (len(looks), len(moves)) == (6, 3)
    assert [found.position.step for found in complete(engine.workspace, "run")] == [2]


def test_steps_that_a_kill_lost_are_made_again_and_counted(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = engine.config(checkpoint={"everySteps": 2, "asynchronous": False})
    whole = engine.config("whole")
    train(engine, whole)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        original = loop.Trainer._accumulate

        def accumulate(self: loop.Trainer, micro: int) -> torch.Tensor:
            if self.position.step == 5:
                raise ZeroDivisionError
            return original(self, micro)

        patch.setattr(loop.Trainer, "_accumulate", accumulate)
        train(engine, config)
    assert [line["step"] for line in lines(engine, config)] == [1, 2, 3, 4, 5]
    # As a kill in the middle of a line leaves it.
    path = engine.workspace.local(f"{config.run}/metrics.jsonl")
    path.write_bytes(path.read_bytes() + b'{"step": 6, "lo')
    train(engine, config.model_copy(update={"attempt": 2}))
    assert losses(engine, config) == losses(engine, whole)
    told = [line for line in lines(engine, config, "events.jsonl") if line["event"] in ("started", "resumed", "ended")]
    events = [(line["event"], line["step"], line.get("repeats")) for line in told]
    assert events == [("started", 0, 0), ("ended", 5, None), ("resumed", 4, 1), ("ended", 6, None)]


def test_a_truncated_checkpoint_is_passed_over(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, whole = engine.config(), engine.config("whole")
    train(engine, whole)
    with monkeypatch.context() as patch, pytest.raises(StageError):
        train(engine, config, interrupted=interrupt_after(patch, 5))
    root = f"{config.run}/checkpoints"
    (data,) = engine.workspace.local(folder_of(root, 5)).glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-100])
    engine.workspace.write(f"{folder_of(root, 6)}/__0_0.distcp", b"half")
    with caplog.at_level(logging.WARNING):
        train(engine, config)
    assert "step-00000005 is damaged" in caplog.text
    assert losses(engine, config) == losses(engine, whole)
    assert difference(trained(engine, config), trained(engine, whole)) == 0


def test_a_finished_run_makes_no_step(engine: Engine, train: Train) -> None:
    config = engine.config()
    train(engine, config)
    before = lines(engine, config)
    train(engine, config)
    assert lines(engine, config) == before


def test_another_recipe_does_not_go_on_from_old_checkpoints(engine: Engine, train: Train) -> None:
    train(engine, engine.config(steps=2))
    with pytest.raises(StageError, match="another model, dataset, seed or objective") as caught:
        train(engine, engine.config(steps=4, seed=5))
    assert caught.value.code is Exit.USER


def test_accumulation_gives_the_step_of_the_large_batch(engine: Engine, train: Train) -> None:
    large, small = engine.config("large", batchPerDevice=4), engine.config("small", batchPerDevice=1, accumulate=4)
    train(engine, large)
    train(engine, small)
    assert losses(engine, small) == pytest.approx(losses(engine, large), rel=1e-4)
    assert difference(trained(engine, small), trained(engine, large)) < 1e-4


@pytest.mark.parametrize("mode", ["full", "selective", "interval", "none"])
def test_recomputation_and_offload_change_not_a_bit(engine: Engine, train: Train, mode: str) -> None:
    plain = engine.config("plain")
    sparing = engine.config("sparing", recompute={"mode": mode, "offload": mode in ("none", "selective")})
    train(engine, plain)
    train(engine, sparing)
    assert losses(engine, sparing) == losses(engine, plain)
    assert difference(trained(engine, sparing), trained(engine, plain)) == 0


def test_bfloat16_computes_close_to_float32_and_keeps_float32_weights(engine: Engine, train: Train) -> None:
    exact, fast = engine.config("exact"), engine.config("fast", precision="bf16")
    train(engine, exact)
    train(engine, fast)
    assert losses(engine, fast) != losses(engine, exact)
    assert losses(engine, fast) == pytest.approx(losses(engine, exact), rel=0.02)
    weights = trained(engine, fast)
    rounded = max(float((weight - weight.bfloat16().float()).abs().max()) for weight in weights.values())
    assert rounded > 0


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ADAPTER.forward

    def forward(*batch: Any, **rest: Any) -> torch.Tensor:
        calls.append(1)
        output = original(*batch, **rest)
        return output * float("nan") if len(calls) == 4 else output

    calls: list[int] = []
    monkeypatch.setattr(ADAPTER, "forward", forward)
    config = engine.config()
    with pytest.raises(StageError, match="the loss is nan at step 4") as caught:
        train(engine, config)
    assert caught.value.code is Exit.NUMERICS
    assert [one.position.step for one in complete(engine.workspace, f"{config.run}/checkpoints")] == [2]
    assert [line["step"] for line in lines(engine, config)] == [1, 2, 3]


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while a checkpoint is written: the write must not see later steps."""
    slow = engine.config("slow", checkpoint={"everySteps": 3, "asynchronous": False})
    train(engine, slow)
    original = Saver.save

    def save(self: Saver, state: Any, position: Any, *, wait: bool) -> None:
        original(self, state, position, wait=False)
        self.settle()
        if not wait:
            for tensors in (state["model"], *state["optimizer"].values()):
                for tensor in tensors.values():
                    tensor.add_(1000.0)
            self.finish()
            raise InterruptedError

    monkeypatch.setattr(Saver, "save", save)
    fast = engine.config("fast", checkpoint={"everySteps": 3})
    with pytest.raises(InterruptedError):
        train(engine, fast)
    monkeypatch.undo()
    root = f"{fast.run}/checkpoints"
    assert newest(engine.workspace, root) is not None
    slow_model, fast_model = (ADAPTER.build(read_config(engine.weights / "transformer")) for _ in range(2))
    read_into(slow_model, dcp.reader(engine.workspace, folder_of(f"{slow.run}/checkpoints", 3)), under="model")
    read_into(fast_model, dcp.reader(engine.workspace, folder_of(root, 3)), under="model")
    assert difference(dict(slow_model.named_parameters()), dict(fast_model.named_parameters())) == 0


def test_the_loop_changes_nothing_before_it_is_copied(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of a checkpoint begins only when the loop waits for it, or far too late."""
    plain, slow = engine.config("plain"), engine.config("slow")
    train(engine, plain)
    asked = threading.Event()
    copy, settle = staging.HostCopy._copy, Saver.settle
    waited: list[bool] = []

    def late(self: staging.HostCopy, *arguments: Any) -> Any:
        waited.append(asked.wait(5))
        return copy(self, *arguments)

    def ask(self: Saver) -> None:
        asked.set()
        settle(self)
        asked.clear()

    monkeypatch.setattr(staging.HostCopy, "_copy", late)
    monkeypatch.setattr(Saver, "settle", ask)
    train(engine, slow)
    assert waited == [True, True]
    for step in (2, 4):
        states = []
        for run in (plain, slow):
            model = ADAPTER.build(read_config(engine.weights / "transformer"))
            folder = folder_of(f"{run.run}/checkpoints", step)
            read_into(model, dcp.reader(engine.workspace, folder), under="model")
            states.append(dict(model.named_parameters()))
        assert difference(*states) == 0


def test_a_corrupt_checkpoint_of_the_right_size_is_passed_over(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, whole = engine.config(), engine.config("whole")
    train(engine, whole)
    with monkeypatch.context() as patch, pytest.raises(StageError):
        train(engine, config, interrupted=interrupt_after(patch, 5))
    (data,) = engine.workspace.local(folder_of(f"{config.run}/checkpoints", 5)).glob("*.distcp")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        train(engine, config)
    assert "step-00000005 is damaged (__0_0.distcp)" in caplog.text
    assert losses(engine, config) == losses(engine, whole)
    assert difference(trained(engine, config), trained(engine, whole)) == 0


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(engine: Engine, train: Train) -> None:
    config = engine.config(steps=4)
    train(engine, config)
    root = engine.workspace.local(f"{config.run}/checkpoints")
    files = sorted(root.rglob("*.distcp"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(StageError, match="none of the 2 checkpoints has the content that was written") as caught:
        train(engine, engine.config(steps=6))
    assert caught.value.code is Exit.STORAGE
    assert sorted(root.rglob("*.distcp")) == files
    for folder in root.iterdir():
        shutil.rmtree(folder)
    train(engine, engine.config(steps=6))
    assert len(losses(engine, config)) == 6


def test_another_recipe_is_refused_before_a_checkpoint_is_read(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(engine, engine.config(steps=2))
    monkeypatch.setattr(folders, "file_digest", lambda *_, **__: pytest.fail("a checkpoint is read"))
    with pytest.raises(StageError, match="another model, dataset, seed or objective"):
        train(engine, engine.config(steps=4, seed=5))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora": {"enabled": True, "targets": ["to_qq"]}}, "no linear layer's name ends with to_qq"),
        ({"recompute": {"mode": "selective", "save": ["aten.nothing.default"]}}, "aten.nothing.default"),
    ],
    ids=["targets", "operations"],
)
def test_what_cannot_be_trained_so_is_refused_before_data_is_touched(
    engine: Engine, train: Train, settings: dict[str, Any], says: str
) -> None:
    shutil.rmtree(engine.workspace.local("artifacts/features"))
    with pytest.raises(StageError, match=re.escape(says)) as caught:
        train(engine, engine.config(**settings))
    assert caught.value.code is Exit.USER
    assert not engine.workspace.local(engine.config().run).exists()


@pytest.mark.parametrize("ema", [False, True])
def test_the_export_is_a_pipeline_with_the_trained_weights(engine: Engine, train: Train, ema: bool) -> None:
    config = engine.config(ema={"enabled": ema, "decay": 0.9})
    train(engine, config)
    end = export.run(engine.context(engine.export_config(ema=ema)))
    assert end.counts == {"step": 6}
    folder = engine.workspace.local(f"{config.run}/export")
    assert {"model_index.json", "_SUCCESS.json", "vae", "tokenizer"} <= {path.name for path in folder.iterdir()}
    pipeline: Any = WanPipeline.from_pretrained(folder)
    exported = dict(pipeline.transformer.named_parameters())
    assert difference(trained(engine, config, under="ema" if ema else "model"), exported) == 0
    assert export.run(engine.context(engine.export_config(ema=ema))).reason == "ArtifactExists"


@pytest.mark.parametrize("ema", [False, True])
def test_lora_trains_resumes_and_loads_in_diffusers(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch, ema: bool
) -> None:
    settings: dict[str, Any] = {
        "lora": {"enabled": True, "rank": 3, "alpha": 6, "dropout": 0.2},
        "ema": {"enabled": ema, "decay": 0.9},
    }
    whole, broken = engine.config("whole", **settings), engine.config("run", **settings)
    train(engine, whole)
    with monkeypatch.context() as patch, pytest.raises(StageError, match="saved step 3 of 6"):
        train(engine, broken, interrupted=interrupt_after(patch, 3))
    train(engine, broken.model_copy(update={"attempt": 2}))
    assert losses(engine, broken) == losses(engine, whole)
    additions = [newest_additions(engine, run, under="ema" if ema else "model") for run in (broken, whole)]
    assert additions[0].keys() == additions[1].keys()
    assert all(torch.equal(additions[0][name], additions[1][name]) for name in additions[0])
    export.run(engine.context(engine.export_config(ema=ema)))
    folder = engine.workspace.local(f"{broken.run}/export")
    before: Any = WanPipeline.from_pretrained(folder)
    pipeline: Any = WanPipeline.from_pretrained(folder)
    pretrained = ADAPTER.load(engine.weights / "transformer")
    assert difference(dict(before.transformer.named_parameters()), dict(pretrained.named_parameters())) == 0
    assert lora_file.use(pipeline, folder)
    layer = pipeline.transformer.blocks[0].attn1.to_q
    assert torch.equal(layer.lora_A["default_0"].weight, additions[0]["blocks.0.attn1.to_q.lora_A.weight"])
    assert layer.scaling["default_0"] == 2.0


def newest_additions(engine: Engine, config: TrainConfig, *, under: str) -> dict[str, torch.Tensor]:
    found = newest(engine.workspace, f"{config.run}/checkpoints")
    assert found is not None
    additions = lora_file.read(dcp.reader(engine.workspace, found.folder), under=under)
    assert len(additions) == 2 * 2 * 2 * 4
    assert any(tensor.any() for name, tensor in additions.items() if "lora_B" in name)
    return additions


def test_weights_do_not_go_on_from_additions(engine: Engine, train: Train) -> None:
    train(engine, engine.config(steps=2, lora={"enabled": True, "rank": 2}))
    with pytest.raises(StageError, match="another model, dataset, seed or objective"):
        train(engine, engine.config(steps=4))


def test_an_export_of_a_longer_run_replaces_the_old_one(engine: Engine, train: Train) -> None:
    train(engine, engine.config(steps=2))
    export.run(engine.context(engine.export_config()))
    leftover = engine.workspace.local(f"{engine.config().run}/.kinema-tmp-export-dead")
    leftover.mkdir()
    train(engine, engine.config(steps=4))
    end = export.run(engine.context(engine.export_config()))
    assert end.counts == {"step": 4}
    assert not leftover.exists()


def test_an_export_that_differs_in_one_bit_is_refused(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(engine, engine.config(steps=2))
    original = ADAPTER.save

    def save(model: Any, folder: Path) -> None:
        original(model, folder)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        bias = tensors["blocks.1.ffn.net.2.bias"]
        bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))
        save_file(tensors, file)

    monkeypatch.setattr(ADAPTER, "save", save)
    config = engine.export_config()
    with pytest.raises(StageError, match=r"tensor blocks\.1\.ffn\.net\.2\.bias read back differs") as caught:
        export.run(engine.context(config))
    assert caught.value.code is Exit.STORAGE
    assert not engine.workspace.exists(f"{config.run}/export")


def test_an_export_hears_sigterm_between_two_files(
    engine: Engine, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(engine, engine.config(steps=2))
    config = engine.export_config()
    context = engine.context(config)
    copied: list[Path] = []
    copy = shutil.copy2

    def interrupt(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(source)
        context.interrupted.set()

    monkeypatch.setattr(shutil, "copy2", interrupt)
    with pytest.raises(StageError) as caught:
        export.run(context)
    assert caught.value.code is Exit.INTERRUPTED
    assert len(copied) == 1
    folder = engine.workspace.local(config.run)
    assert not [path for path in folder.iterdir() if "export" in path.name], "half an export is no use"
