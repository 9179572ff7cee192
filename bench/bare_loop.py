# SPDX-License-Identifier: Apache-2.0
"""A PyTorch training loop without anything around it: the other side of `train_overhead`.

The model is diffusers' own, the data lie in memory. Under torchrun the model is sharded by FSDP2, block by block.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.distributed.fsdp import fully_shard


def step(model: Any, adam: torch.optim.AdamW, *, latents: Tensor, text: Tensor, shift: float, clip: float) -> float:
    """One step of rectified flow on latents [batch, channels, frames, height, width]; the loss.

    u is uniform, and a sample's loss is multiplied by 1 + shift sigma.
    """
    noise = torch.randn_like(latents)
    u = torch.rand(latents.shape[0])
    sigma = shift * u / (1 + (shift - 1) * u)
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * latents + level * noise
    output = model(hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=text, return_dict=False)[0]
    error = (output - (noise - latents)).square().flatten(1).mean(dim=1)
    loss = (error * (1 + shift * sigma)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return float(loss.detach())


def main() -> None:
    """Run as a program; it ends when it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="pipeline folder")
    parser.add_argument("--samples", type=Path, required=True, help="file with latents and text")
    parser.add_argument("--steps", type=Path, required=True, help="file for a line a step")
    parser.add_argument("--numbers", type=json.loads, required=True, help="AdamW's, and batch, clipNorm and shift")
    options = parser.parse_args()
    numbers = options.numbers
    data = torch.load(options.samples, weights_only=True)
    loader: Any = WanTransformer3DModel
    model: Any = loader.from_pretrained(options.weights / "transformer", torch_dtype=torch.float32).train()
    lead = os.environ.get("RANK", "0") == "0"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=numbers["learningRate"],
        betas=(numbers["beta1"], numbers["beta2"]),
        eps=numbers["epsilon"],
        weight_decay=numbers["weightDecay"],
        fused=True,
    )
    with options.steps.open("a", encoding="utf-8") as lines:
        while True:
            chosen = torch.randint(len(data["latents"]), (numbers["batch"],))
            loss = step(
                model,
                adam,
                latents=data["latents"][chosen],
                text=data["text"][chosen],
                shift=numbers["shift"],
                clip=numbers["clipNorm"],
            )
            if lead:
                lines.write(json.dumps({"time": round(time.time(), 4), "loss": loss}) + "\n")
                lines.flush()


if __name__ == "__main__":
    main()
