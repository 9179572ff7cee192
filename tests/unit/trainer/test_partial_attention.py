# SPDX-License-Identifier: Apache-2.0
"""Attention over parts of the keys: the parts make the whole, by torch's kernel and by matrix products alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kinema_trainer.parallel import partial_attention
from kinema_trainer.parallel.partial_attention import attend, attend_backward, plain, plain_backward


def drawn(tokens: int, *, seed: int, width: int = 24) -> Tensor:
    return torch.randn(1, 3, tokens, width, generator=torch.Generator().manual_seed(seed))


def test_both_ways_agree() -> None:
    query, key, value, gradient = (drawn(tokens, seed=tokens) for tokens in (37, 51, 51, 37))
    value = value.flip(-1)
    for one, other in zip(attend(query, key, value), plain(query, key, value), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    out, lse = plain(query, key, value)
    ways = (
        attend_backward(gradient, query, key, value, out, lse),
        plain_backward(gradient, query, key, value, out, lse),
    )
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1 << 26, 200])
def test_gradients_are_autograds(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(partial_attention, "BLOCK_ELEMENTS", block)
    query, key, value = (drawn(tokens, seed=tokens).requires_grad_() for tokens in (13, 21, 22))
    value = drawn(21, seed=5).requires_grad_()
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    gradient = drawn(13, seed=9)
    wanted.backward(gradient)
    with torch.no_grad():
        out, lse = plain(query, key, value)
        torch.testing.assert_close(out, wanted.detach(), rtol=1e-5, atol=1e-6)
        found = plain_backward(gradient, query, key, value, out, lse)
    for leaf, one in zip((query, key, value), found, strict=True):
        torch.testing.assert_close(one, leaf.grad, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_its_number_format() -> None:
    query, key, value = (drawn(9, seed=seed).bfloat16() for seed in range(3))
    out, lse = plain(query, key, value)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert [g.dtype for g in plain_backward(out, query, key, value, out, lse)] == [torch.bfloat16] * 3


def test_bfloat16_rounds_operands_and_results_but_no_scores() -> None:
    """Scores of tens, of which bfloat16 would keep eighths: flash kernels have them in float32, and so has this."""
    query, key, value, gradient = (drawn(64, seed=seed).bfloat16() for seed in range(4))
    query, key = 3 * query, 3 * key
    leaves = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    scores = leaves[0] @ leaves[1].mT / math.sqrt(query.shape[-1])
    assert scores.max() > 20
    exact = scores.softmax(dim=-1) @ leaves[2]
    exact.backward(gradient.double())
    out, lse = plain(query, key, value)
    torch.testing.assert_close(lse.double(), scores.logsumexp(dim=-1), rtol=1e-6, atol=1e-5)
    assert (out - exact).norm() < 0.005 * exact.norm()
    for found, leaf in zip(plain_backward(gradient, query, key, value, out, lse), leaves, strict=True):
        assert leaf.grad is not None
        assert (found - leaf.grad).norm() < 0.01 * leaf.grad.norm()
