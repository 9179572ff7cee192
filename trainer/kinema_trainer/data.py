# SPDX-License-Identifier: Apache-2.0
"""Which sample is trained on when: a pure function of the seed and the position in the run.

Positions count all samples of all processes from the start of the run, so that a run may be continued by another
number of processes.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema_api.exits import Exit, StageError
from kinema_api.settings import Objective
from kinema_trainer import objective as flow
from kinema_trainer.shards import Sample

CACHE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass.

    Shapes: latents and noise [batch, channels, frames, height, width]; sigma [batch]; text [batch, tokens, width].
    """

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            sigma=self.sigma.to(device),
            text=self.text.to(device),
        )


class Order:
    """The endless order of samples: every epoch is a new permutation."""

    def __init__(self, *, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._epochs: dict[int, Tensor] = {}

    def sample(self, position: int) -> int:
        """The index of the sample at a position."""
        epoch, place = divmod(position, self._size)
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._permutation(epoch)
        return int(self._epochs[epoch][place])

    def _permutation(self, epoch: int) -> Tensor:
        digest = hashlib.blake2b(struct.pack("<qq", self._seed, epoch), digest_size=8, person=b"kinema-order").digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randperm(self._size, generator=stream)


@dataclass(frozen=True, slots=True)
class Split:
    """How a step's samples are shared out: process r takes every world-th position, forward pass by forward pass."""

    rank: int
    world: int
    batch: int
    accumulate: int

    @property
    def step(self) -> int:
        """Samples of one optimizer step over all processes."""
        return self.world * self.batch * self.accumulate

    def positions(self, *, start: int, micro: int) -> list[int]:
        """This process's positions in forward pass `micro` of the step whose first position is `start`."""
        return [start + (micro * self.batch + index) * self.world + self.rank for index in range(self.batch)]


class Cache:
    """The most recently read samples, up to a number of bytes."""

    def __init__(self, samples: Sequence[Sample], *, limit: int = CACHE_BYTES) -> None:
        self._samples = samples
        self._limit = limit
        self._held = 0
        self._kept: OrderedDict[int, Sample] = OrderedDict()

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        sample = self._samples[index]
        self._kept[index] = sample
        self._held += _bytes(sample)
        while self._held > self._limit and len(self._kept) > 1:
            self._held -= _bytes(self._kept.popitem(last=False)[1])
        return sample


def _bytes(sample: Sample) -> int:
    return sample.latents.nbytes + sample.text.nbytes


class Loader:
    """Makes the batches of a process, one ahead of the loop.

    Args:
        samples: the encoded clips.
        empty_text: embedding of the empty caption, [tokens, width].
        text_length: tokens to which captions are padded with zeros (Wan attends to the padding).
        objective: what is drawn for each sample.
        split: this process's share.
        seed: decides order and draws.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        empty_text: Tensor,
        text_length: int,
        objective: Objective,
        split: Split,
        seed: int,
    ) -> None:
        if not len(samples):
            raise StageError(Exit.DATA, "the features artifact has no clips: see the quarantine of the prepare stage")
        self._samples = Cache(samples)
        self._order = Order(size=len(samples), seed=seed)
        self._empty = empty_text
        self._text_length = text_length
        self._objective = objective
        self._split = split
        self._seed = seed
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: dict[tuple[int, int], Future[Batch]] = {}
        self.shape = samples[0].latents.shape
        """[channels, frames, height, width] of every sample."""

    def batch(self, *, start: int, micro: int) -> Batch:
        """The input of forward pass `micro` of the step whose first position is `start`; reads the next one ahead."""
        following = (start, micro + 1) if micro + 1 < self._split.accumulate else (start + self._split.step, 0)
        current = self._ahead.pop((start, micro), None) or self._submit(start, micro)
        self._ahead = {following: self._submit(*following)}
        return current.result()

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, start: int, micro: int) -> Future[Batch]:
        return self._pool.submit(self._make, self._split.positions(start=start, micro=micro))

    def _make(self, positions: Sequence[int]) -> Batch:
        drawn: list[tuple[Tensor, flow.Draw, Tensor]] = []
        for position in positions:
            sample = self._samples[self._order.sample(position)]
            if sample.latents.shape != self.shape:
                raise StageError(
                    Exit.DATA,
                    f"clip {sample.key} has latents of shape {list(sample.latents.shape)}, others {list(self.shape)};"
                    " delete the features artifact and run the job again",
                )
            stream = flow.generator(seed=self._seed, position=position)
            draw = flow.draw(self._objective, shape=self.shape, stream=stream)
            drawn.append((sample.latents.float(), draw, self._empty if draw.drop_caption else sample.text))
        return Batch(
            latents=torch.stack([latents for latents, _, _ in drawn]),
            noise=torch.stack([draw.noise for _, draw, _ in drawn]),
            sigma=torch.stack([draw.sigma for _, draw, _ in drawn]),
            text=torch.stack([pad(text, length=self._text_length) for _, _, text in drawn]),
        )


def pad(text: Tensor, *, length: int) -> Tensor:
    """A text embedding [tokens, width] in float32 with zeros up to `length` tokens."""
    padded = torch.zeros(length, text.shape[1])
    kept = min(length, text.shape[0])
    padded[:kept] = text[:kept].float()
    return padded
