# SPDX-License-Identifier: Apache-2.0
"""What the demo takes from disk and leaves there."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from kinema_demo.curve import draw, losses, smooth
from kinema_demo.errors import DemoError
from kinema_demo.install import POOLS, ROOT, values
from kinema_demo.videos import check, cut, key
from kinema_demo.workspace import inside

from kinema_api.job import JobSpec
from kinema_api.plan import freeze
from kinema_api.pool import PoolSpec

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def test_loss_by_step_the_last_line_of_a_step_counts() -> None:
    lines = ['{"step": 2, "loss": 3}', "", '{"step": 1, "loss": 4}', '{"step": 2, "loss": 1}', '{"event": "resumed"}']
    assert losses(lines) == {1: 4.0, 2: 1.0}


def test_smooth_is_a_mean_of_the_past() -> None:
    assert smooth([1, 2, 3, 4], window=2) == [1, 1.5, 2.5, 3.5]


def test_draw_writes_a_picture(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 40)))
    draw(metrics, tmp_path / "loss.png", title="loss")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_draw_says_when_there_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DemoError, match="holds no step with a loss"):
        draw(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="loss")


def test_every_video_needs_a_caption(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="is no folder"):
        check(tmp_path / "missing")
    with pytest.raises(DemoError, match="holds no video"):
        check(tmp_path)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.MP4").touch()
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(DemoError, match=r"no caption for a\.mp4"):
        check(tmp_path)
    (tmp_path / "a.json").write_text('{"caption": "a"}')
    assert [path.name for path in check(tmp_path)] == ["a.mp4", "b.MP4"]


def test_the_key_changes_with_what_it_is_of(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"1")
    first = key([video], "image:1")
    assert first == key([video], "image:1")
    assert first != key([video], "image:2")
    video.write_bytes(b"2")
    assert first != key([video], "image:1")
    assert key([video]) != key([video.rename(tmp_path / "b.mp4")])


def test_inside_is_where_pods_mount_a_claim() -> None:
    assert inside("pvc://kinema-workspace/demo/videos") == "/kinema/volumes/kinema-workspace/demo/videos"
    with pytest.raises(DemoError, match="pvc://"):
        inside("file:///data")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_jobs_can_be_planned_on_the_example_pools(path: Path) -> None:
    listed = [yaml.safe_load(pool.read_text()) for pool in POOLS.glob("*.yaml")]
    pools = {pool["metadata"]["name"]: PoolSpec.model_validate(pool["spec"]) for pool in listed}
    spec = JobSpec.model_validate(yaml.safe_load(path.read_text())["spec"])
    images = {name: name for name in ("stage", "wan2.1/cpu", "wan2.1/nvidia", "wan2.1/ascend")}
    resolved = freeze(spec=spec, pools=pools, images=images)
    assert resolved.stages["train"]["nodes"] == 2


def test_values_name_every_image() -> None:
    chosen = values({"control-plane": "a", "stage": "b", "wan2.1": "c"})
    assert (chosen["images"]["controlPlane"], chosen["images"]["stage"]) == ("a", "b")
    assert chosen["images"]["families"]["wan2.1"] == {"cpu": "c", "nvidia": "c", "ascend": ""}
    assert chosen["pools"]["cpu"]["accelerator"] == "cpu"


def test_cut_writes_the_frames_of_a_scene(tmp_path: Path) -> None:
    source, target = tmp_path / "source.mp4", tmp_path / "target.mp4"
    with av.open(str(source), "w") as writer:
        stream = writer.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in range(0, 200, 10):
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")))
        writer.mux(stream.encode(None))
    cut(source, target, first=5, last=15)
    with av.open(str(target)) as reader:
        means = [float(frame.to_ndarray(format="rgb24").mean()) for frame in reader.decode(video=0)]
    assert means == pytest.approx([grey * 10 for grey in range(5, 15)], abs=4)
