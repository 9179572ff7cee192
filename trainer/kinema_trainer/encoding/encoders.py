# SPDX-License-Identifier: Apache-2.0
"""Wan's encoders: the video VAE, the UMT5 text encoder and the CLIP image encoder of a pretrained pipeline folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionModel, UMT5EncoderModel

from kinema_api.exits import Exit, StageError
from kinema_api.settings import FeatureDtype

T = TypeVar("T")

DTYPES = {
    FeatureDtype.FLOAT32: torch.float32,
    FeatureDtype.BFLOAT16: torch.bfloat16,
    FeatureDtype.FLOAT16: torch.float16,
}


def hide_loading_bars() -> None:
    """Keep the libraries' bars out of a log of JSON lines."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def picture(frame: torch.Tensor) -> Image.Image:
    """A frame [3, height, width] in [-1, 1] as a picture."""
    pixels = ((frame + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


class Encoders:
    """Turns a clip and its caption into features. Each part is loaded when it is first needed.

    Args:
        folder: a pipeline folder with vae, text_encoder and tokenizer, and image_encoder and image_processor for tasks
            that are given an image.
        device: where the encoders run.
        dtype: the number format of what they return, and in which the text encoder runs. The VAE runs in float32,
            as diffusers advises for Wan: half precision inside costs latents more than the rounding of the result. So
            does the image encoder, which is small.
        text_length: most tokens of a caption; the rest is cut off.
    """

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype, text_length: int) -> None:
        self._folder = folder
        self._device = device
        self._dtype = dtype
        self._text_length = text_length
        hide_loading_bars()

    @torch.inference_mode()
    def latents(self, video: torch.Tensor) -> torch.Tensor:
        """The normalised latents of a clip: the posterior's mode, less the VAE's mean, over its deviation.

        Args:
            video: [3, frames, height, width] in [-1, 1].

        Returns:
            [channels, latent frames, latent height, latent width], on the CPU.
        """
        mode = self._vae.encode(video[None].to(self._device, torch.float32)).latent_dist.mode()[0]
        mean, std = (value.to(mode.device) for value in self._statistics)
        return ((mode - mean) / std).to(self._dtype).cpu()

    @torch.inference_mode()
    def text(self, caption: str) -> torch.Tensor:
        """The embedding of a caption, cleaned as Wan's pipeline does.

        Returns:
            [tokens, width] without padding, on the CPU.
        """
        tokens = self._tokenizer(
            [prompt_clean(caption)],
            padding="max_length",
            max_length=self._text_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask
        hidden = self._text_encoder(tokens.input_ids.to(self._device), mask.to(self._device)).last_hidden_state
        return hidden[0, : int(mask.sum())].to(self._dtype).cpu()

    @torch.inference_mode()
    def image(self, frames: torch.Tensor) -> torch.Tensor:
        """The tokens of given frames: the image encoder's last layer but one.

        Args:
            frames: [images, 3, height, width] in [-1, 1].

        Returns:
            [images x tokens, width], on the CPU.
        """
        inputs = self._image_processor(images=[picture(frame) for frame in frames], return_tensors="pt")
        states = self._image_encoder(inputs["pixel_values"].to(self._device), output_hidden_states=True).hidden_states
        return states[-2].flatten(0, 1).to(self._dtype).cpu()

    @torch.inference_mode()
    def video(self, latents: torch.Tensor) -> torch.Tensor:
        """The clip of normalised latents: undoes `latents`.

        Args:
            latents: [channels, latent frames, latent height, latent width].

        Returns:
            [3, frames, height, width] in [-1, 1], on the CPU.
        """
        mean, std = (value.to(self._device) for value in self._statistics)
        decoded = self._vae.decode((latents.to(self._device, torch.float32) * std + mean)[None]).sample[0]
        return decoded.clamp(-1, 1).cpu()

    @property
    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the latents, [channels, 1, 1, 1]."""
        config = self._vae.config
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, std

    @cached_property
    def _vae(self) -> Any:
        model = self._load(
            "vae",
            lambda: AutoencoderKLWan.from_pretrained(
                self._folder, subfolder="vae", dtype=torch.float32, local_files_only=True
            ),
        )
        return model.to(self._device).eval()

    @cached_property
    def _text_encoder(self) -> Any:
        model: Any = self._load(
            "text_encoder",
            lambda: UMT5EncoderModel.from_pretrained(
                self._folder, subfolder="text_encoder", dtype=self._dtype, local_files_only=True
            ),
        )
        return model.to(self._device).eval()

    @cached_property
    def _image_encoder(self) -> Any:
        model: Any = self._load(
            "image_encoder",
            lambda: CLIPVisionModel.from_pretrained(
                self._folder, subfolder="image_encoder", dtype=torch.float32, local_files_only=True
            ),
        )
        return model.to(self._device).eval()

    @cached_property
    def _image_processor(self) -> Any:
        return self._load(
            "image_processor",
            lambda: CLIPImageProcessorPil.from_pretrained(
                self._folder, subfolder="image_processor", local_files_only=True
            ),
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return self._load(
            "tokenizer",
            lambda: AutoTokenizer.from_pretrained(self._folder, subfolder="tokenizer", local_files_only=True),
        )

    def _load(self, part: str, load: Callable[[], T]) -> T:
        try:
            return load()
        except (OSError, ValueError, KeyError) as error:
            raise StageError(
                Exit.WEIGHTS, f"{self._folder / part}: cannot be loaded ({error}); see that the download is complete"
            ) from error
