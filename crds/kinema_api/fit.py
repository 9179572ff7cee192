# SPDX-License-Identifier: Apache-2.0
"""Whether a training can work at all, told before anything is booked or allocated; pure.

The trainer, the check stage and the operator's plan ask the same question in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kinema_api import geometry
from kinema_api.catalogue import Entry
from kinema_api.layout import Layout, LayoutError, Sizes, Widths, by_distance, resolve
from kinema_api.memory import Estimate, Work, estimate, gib
from kinema_api.pool import Accelerator, PoolSpec
from kinema_api.quantity import bytes_of
from kinema_api.recompute import Recompute, RecomputeMode
from kinema_api.settings import ClipVideo, TrainSettings

ROOM = 0.9
"""Share of a device's memory that whole copies may take where nobody asked for them: it holds more than tensors."""


@dataclass(frozen=True)
class Place:
    """What a training is to run on.

    Args:
        world: processes.
        accelerator: of what kind.
        memory: bytes of one device; None when nobody knows.
        name: whose device, for a sentence.
    """

    world: int
    accelerator: Accelerator = Accelerator.NVIDIA
    memory: int | None = None
    name: str = "the device"


def place_of(train: TrainSettings, pool: PoolSpec, *, name: str) -> Place:
    """What a pool gives a training whose nodes and devices are filled in."""
    return Place(
        world=(train.nodes or 1) * (train.devices_per_node or 1),
        accelerator=pool.accelerator,
        memory=None if pool.device_memory is None else bytes_of(pool.device_memory),
        name=f"a device of pool {name}",
    )


class FitError(ValueError):
    """The training cannot work; the message says why, and what is nearest to it that can."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def widths(model: Entry) -> Widths:
    """What of a model has to divide."""
    dims = model.transformer
    return Widths(heads=dims.heads, hidden=dims.hidden, ffn=dims.ffn)


def works(model: Entry, train: TrainSettings, video: ClipVideo) -> list[Work]:
    """The largest forward pass of each geometry.

    A pack is as full as clips of one geometry make it: the longest decide about attention, the number about the rest.
    """
    given = 0 if model.image is None else model.image.given
    found = []
    for index, clip in enumerate(geometry.geometries(video)):
        tokens = geometry.tokens(clip, model)
        if train.packing is not None:
            clips = max(1, train.packing.tokens // tokens)
        else:
            clips = video.buckets[index].batch if video.buckets else train.batch_per_device
        found.append(Work(tokens=clips * tokens, clips=clips, image=given))
    return found


@dataclass(frozen=True)
class Choice:
    """The layout of a training for which none was named.

    Args:
        train: the settings with the layout that was chosen; as they were where nothing was.
        why: a sentence; empty where there was nothing to choose.
    """

    train: TrainSettings
    why: str = ""


def choose(model: Entry, train: TrainSettings, video: ClipVideo, place: Place) -> Choice:
    """Choose a layout for low-rank training where none is named: a whole copy in every process, if that fits.

    Copies exchange the gradients of the additions once a step; of frozen weights that are cut, every block would be
    gathered in every pass. All other trainings cut their weights over all processes.
    """
    if not train.lora.enabled or train.layout != Layout() or place.world == 1:
        return Choice(train)
    if place.memory is None:
        return Choice(train, "no layout is named: weights are cut, since it is not known what a device holds")
    copies = train.model_copy(update={"layout": Layout(replicate=place.world, shard=1)})
    sizes = Sizes(replicate=place.world)
    need = needed(model, copies, sizes=sizes, passes=works(model, copies, video), place=place).total
    fits = need <= ROOM * place.memory
    what = "every process has a whole copy" if fits else "weights are cut"
    why = f"no layout is named: {what}, since a copy takes {gib(need)} of {gib(place.memory)}"
    return Choice(copies if fits else train, why)


def check(model: Entry, train: TrainSettings, video: ClipVideo, place: Place) -> Sizes:
    """The size of every axis.

    Raises:
        FitError: the layout cannot work, or the model does not fit into a device in it.
    """
    try:
        sizes = resolve(train.layout, world=place.world, model=widths(model))
    except LayoutError as error:
        raise FitError("InvalidLayout", f"stages.train.{error}") from None
    passes = works(model, train, video)
    need = needed(model, train, sizes=sizes, passes=passes, place=place)
    if place.memory is None or need.total <= place.memory:
        return sizes
    means = "; or ".join(_ways_out(model, train, passes, place)) or (
        f"no layout of {place.world} processes holds it: spread it over more devices, or train smaller clips"
    )
    raise FitError(
        "DoesNotFit",
        f"stages.train.layout: {sizes} needs {gib(need.total)} on each device ({need}), and {place.name} has"
        f" {gib(place.memory)}; {means}",
    )


def needed(model: Entry, train: TrainSettings, *, sizes: Sizes, passes: Iterable[Work], place: Place) -> Estimate:
    """What a process holds in the pass that takes most."""
    found = (estimate(model, train, sizes=sizes, work=work, accelerator=place.accelerator) for work in passes)
    return max(found, key=lambda one: one.total)


def _ways_out(model: Entry, train: TrainSettings, passes: list[Work], place: Place) -> Iterator[str]:
    """What fits, as parts of a sentence: another layout, then recomputation as it is asked for with it."""
    assert place.memory is not None
    limit = place.memory

    # Where one pass is too large the others are not looked at: of a thousand processes there are thousands of layouts.
    largest_first = sorted(passes, key=lambda work: -work.tokens)

    def fits(settings: TrainSettings, sizes: Sizes) -> bool:
        return all(
            estimate(model, settings, sizes=sizes, work=work, accelerator=place.accelerator).total <= limit
            for work in largest_first
        )

    def nearest(settings: TrainSettings) -> tuple[Sizes, Estimate] | None:
        for sizes in by_distance(settings.layout, world=place.world, model=widths(model)):
            if fits(settings, sizes):
                return sizes, needed(model, settings, sizes=sizes, passes=passes, place=place)
        return None

    found = nearest(train)
    if found is not None:
        yield f"the nearest layout that works: {found[0]} ({gib(found[1].total)})"
    if train.recompute.mode is not RecomputeMode.FULL:
        again = nearest(train.model_copy(update={"recompute": Recompute(mode=RecomputeMode.FULL)}))
        if again is not None:
            yield f"with recompute.mode: full the nearest that works is {again[0]} ({gib(again[1].total)})"
