# SPDX-License-Identifier: Apache-2.0
"""Reads the clips of a process ahead of the loop and draws what is drawn for each.

Which they are says `kinema_trainer.data.course`, and everything drawn for a clip follows from its position: what a
batch holds depends neither on who reads it nor on when.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema_api.objective import Objective
from kinema_trainer.batch import Batch, Example
from kinema_trainer.data.costs import Shape
from kinema_trainer.data.course import Course, Pack, Slot, Step
from kinema_trainer.data.shards import Sample
from kinema_trainer.objectives import flow
from kinema_trainer.objectives.conditions import condition_of

CACHE_BYTES = 512 << 20
WORKERS = 2
"""Threads of a process that read and draw; torch does both outside Python's lock."""
AHEAD = 4
"""Forward passes that are read ahead."""


class Cache:
    """The most recently read samples, up to a number of bytes. Any thread may ask."""

    def __init__(self, samples: Sequence[Sample], *, limit: int = CACHE_BYTES) -> None:
        self._samples = samples
        self._limit = limit
        self._held = 0
        self._kept: OrderedDict[int, Sample] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Sample:
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        sample = self._samples[index]
        with self._lock:
            if index not in self._kept:
                self._kept[index] = sample
                self._held += _bytes(sample)
            while self._held > self._limit and len(self._kept) > 1:
                self._held -= _bytes(self._kept.popitem(last=False)[1])
        return sample


class Chosen(Sequence[Sample]):
    """Some of the samples, in the order of their places; each is read when asked for."""

    def __init__(self, samples: Sequence[Sample] | Cache, places: Sequence[int]) -> None:
        self._samples = samples
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # slices have no use here
        return self._samples[self._places[index]]


def _bytes(sample: Sample) -> int:
    given = (tensor.nbytes for tensor in (sample.condition, sample.image) if tensor is not None)
    return sample.latents.nbytes + sample.text.nbytes + sum(given)


@dataclass(frozen=True, slots=True)
class Split:
    """One data coordinate's part of every optimizer step.

    Args:
        rank: which data coordinate.
        world: data coordinates.
        accumulate: forward passes of an optimizer step.
    """

    rank: int = 0
    world: int = 1
    accumulate: int = 1


class Loader:
    """Makes the batches of one data coordinate.

    Args:
        samples: the encoded clips.
        course: what is trained on when.
        empty_text: embedding of the empty caption, [tokens, width].
        text_length: tokens to which captions are padded with zeros (Wan attends to the padding).
        objective: what is drawn for each sample.
        seed: decides the draws.
        split: this data coordinate's part.
        spatial: pixels of a latent pixel, each way.
        images: frames that the task is given.
        temporal: frames of a latent frame, after the first.
        workers: threads that read and draw; their number changes nothing but the pace.
        ahead: forward passes that are read ahead.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        course: Course,
        empty_text: Tensor,
        text_length: int,
        objective: Objective,
        seed: int,
        split: Split,
        spatial: int = 8,
        images: int = 0,
        temporal: int = 4,
        workers: int = WORKERS,
        ahead: int = AHEAD,
    ) -> None:
        self.course = course
        self._samples = Cache(samples)
        self._shapes = dict(zip(course.table.places.tolist(), course.table.shapes, strict=True))
        self._empty = empty_text
        self._text_length = text_length
        self._objective = objective
        self._seed = seed
        self._split = split
        self._spatial = spatial
        self._images = images
        self._temporal = temporal
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="loader")
        self._steps: OrderedDict[int, Step] = OrderedDict()
        self._queue: deque[tuple[tuple[int, int], Future[Batch]]] = deque()

    def step(self, start: int) -> Step:
        """The optimizer step that begins at a position, the same in every process."""
        if start not in self._steps:
            self._steps[start] = self.course.step(start, passes=self._split.accumulate, width=self._split.world)
            while len(self._steps) > self._ahead + 2:
                self._steps.popitem(last=False)
        return self._steps[start]

    def shapes(self, step: Step) -> list[Shape]:
        """Latents of each clip of a step."""
        return [self._shapes[slot.sample] for pack in step.packs for slot in pack.slots]

    def weight(self, *, start: int) -> float:
        """What the summed loss of the step that begins at a position is divided by: the weights of all its clips."""
        return self.step(start).weight

    def batch(self, *, start: int, micro: int) -> Batch:
        """The input of forward pass `micro` of the step that begins at a position; the next ones are read ahead."""
        while self._queue and self._queue[0][0] != (start, micro):
            self._queue.popleft()[1].cancel()
        self._read_ahead((start, micro))
        _, current = self._queue.popleft()
        self._read_ahead(self._next((start, micro)))
        return current.result()

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self, first: tuple[int, int]) -> None:
        """Have `ahead` passes under way, `first` being the next that is asked for."""
        place = self._next(self._queue[-1][0]) if self._queue else first
        while len(self._queue) < max(1, self._ahead):
            start, micro = place
            pack = self.step(start).passes[micro][self._split.rank]
            self._queue.append((place, self._pool.submit(self._make, pack)))
            place = self._next(place)

    def _next(self, place: tuple[int, int]) -> tuple[int, int]:
        start, micro = place
        return (start, micro + 1) if micro + 1 < self._split.accumulate else (self.step(start).consumed, 0)

    def _make(self, pack: Pack) -> Batch:
        return tuple(self._example(slot) for slot in pack.slots)

    def _example(self, slot: Slot) -> Example:
        sample = self._samples[slot.sample]
        stream = flow.generator(seed=self._seed, position=slot.position)
        draw = flow.draw(self._objective, shape=sample.latents.shape, stream=stream, spatial=self._spatial)
        return Example(
            key=sample.key,
            latents=sample.latents.float(),
            noise=draw.noise,
            sigma=draw.sigma,
            text=pad(self._empty if draw.drop_caption else sample.text, length=self._text_length),
            condition=condition_of(
                latents=sample.condition,
                image=sample.image,
                clean=draw.clean,
                images=self._images,
                temporal=self._temporal,
            ),
            weight=slot.weight,
        )


def pad(text: Tensor, *, length: int) -> Tensor:
    """A text embedding [tokens, width] in float32 with zeros up to `length` tokens."""
    padded = torch.zeros(length, text.shape[1])
    kept = min(length, text.shape[0])
    padded[:kept] = text[:kept].float()
    return padded
