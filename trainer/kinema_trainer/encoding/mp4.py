# SPDX-License-Identifier: Apache-2.0
"""Writing frames as an mp4 that browsers play."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

H264, FALLBACK = "libx264", "mpeg4"


def codec() -> str:
    """H.264 where this build of FFmpeg can write it."""
    return H264 if H264 in av.codecs_available else FALLBACK


def write_mp4(path: Path, frames: NDArray[np.uint8], *, fps: float) -> None:
    """Write a video.

    Args:
        path: where to.
        frames: [frames, height, width, 3] RGB; height and width are even.
        fps: frames a second.
    """
    _, height, width, _ = frames.shape
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = cast("av.VideoStream", container.add_stream(codec(), rate=Fraction(fps).limit_denominator(1001)))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if stream.codec_context.name == H264:
            stream.options = {"crf": "18"}
        else:
            stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
