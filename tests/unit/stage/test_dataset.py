# SPDX-License-Identifier: Apache-2.0
"""Datasets: folders, CSV and JSONL, with everything that people get wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset
from kinema_stage import dataset
from kinema_stage.quarantine import Reason


def folder(path: Path) -> Dataset:
    return Dataset(uri=f"file://{path}")


def listed(path: Path, kind: str, **captions: str) -> Dataset:
    return Dataset.model_validate({"uri": f"file://{path}", "format": kind, "captions": captions})


def fault(data: Dataset) -> StageError:
    with pytest.raises(StageError) as caught:
        dataset.read(data)
    return caught.value


def put(path: Path, content: str | bytes = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems(listing: dataset.Listing) -> dict[str, Reason]:
    return {item.video: item.problem.reason for item in listing.items if item.problem is not None}


def captions(listing: dataset.Listing) -> dict[str, str]:
    return {item.video: item.caption for item in listing.usable}


def test_a_folder_is_walked_and_captions_lie_beside(tmp_path: Path) -> None:
    put(tmp_path / "b.mp4")
    put(tmp_path / "b.txt", "\ufeff a bird \n")
    put(tmp_path / "deep" / "a.MOV")
    put(tmp_path / "deep" / "a.json", json.dumps({"caption": "an ape", "more": 1}))
    put(tmp_path / "notes.md", "no video")
    put(tmp_path / "._b.mp4")
    put(tmp_path / ".cache" / "c.mp4")
    listing = dataset.read(folder(tmp_path))
    assert captions(listing) == {"b.mp4": "a bird", "deep/a.MOV": "an ape"}
    assert problems(listing) == {}


def test_captions_that_cannot_be_used_set_their_video_aside(tmp_path: Path) -> None:
    for name in ("none", "empty", "latin", "list", "json", "long", "number", "good"):
        put(tmp_path / f"{name}.mp4")
    put(tmp_path / "empty.txt", " \n")
    put(tmp_path / "latin.txt", "süß".encode("latin-1"))
    put(tmp_path / "list.json", "[]")
    put(tmp_path / "json.json", "{")
    put(tmp_path / "long.txt", "x" * 70_000)
    put(tmp_path / "number.json", '{"caption": 5}')
    put(tmp_path / "good.txt", "fine")
    listing = dataset.read(folder(tmp_path))
    assert captions(listing) == {"good.mp4": "fine"}
    assert problems(listing) == {
        "none.mp4": Reason.NO_CAPTION,
        "empty.mp4": Reason.NO_CAPTION,
        **{f"{name}.mp4": Reason.BAD_CAPTION for name in ("latin", "list", "json", "long", "number")},
    }


def test_csv_columns_may_have_any_name(tmp_path: Path) -> None:
    path = put(
        tmp_path / "list.csv",
        '\ufefffile,text,extra\nclips/a.mp4,"A cat, with\na hat",1\n./b.mp4,,2\n,"no video",3\n../up.mp4,x,4\n'
        f"{tmp_path}/c.mp4,absolute,5\n/etc/d.mp4,y,6\nshort.mp4\n",
    )
    listing = dataset.read(listed(path, "csv", videoColumn="file", captionColumn="text"))
    assert listing.source.where == str(tmp_path)
    assert captions(listing) == {"clips/a.mp4": "A cat, with\na hat", "c.mp4": "absolute"}
    assert problems(listing) == {
        "b.mp4": Reason.NO_CAPTION,
        "line 5": Reason.BAD_ROW,
        "../up.mp4": Reason.OUTSIDE,
        "/etc/d.mp4": Reason.OUTSIDE,
        "short.mp4": Reason.NO_CAPTION,
    }


def test_jsonl_lines_stand_alone(tmp_path: Path) -> None:
    rows: list[Any] = [{"video": "a.mp4", "caption": "one"}, [1], {"video": 7, "caption": "x"}, {"video": "b.mp4"}]
    lines = [json.dumps(row) for row in rows]
    path = put(tmp_path / "list.jsonl", "\n".join([*lines[:1], "", "{broken", *lines[1:]]))
    listing = dataset.read(listed(path, "jsonl"))
    assert captions(listing) == {"a.mp4": "one"}
    assert problems(listing) == {
        "line 3": Reason.BAD_ROW,
        "line 4": Reason.BAD_ROW,
        "line 5": Reason.BAD_ROW,
        "b.mp4": Reason.NO_CAPTION,
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_wrong_column_is_named_with_those_there_are(tmp_path: Path, kind: str) -> None:
    content = "path,caption\na.mp4,x\n" if kind == "csv" else '{"path": "a.mp4", "caption": "x"}\n'
    error = fault(listed(put(tmp_path / f"list.{kind}", content), kind))
    assert error.code is Exit.USER
    assert "dataset.captions.videoColumn" in error.message and "it has: path, caption" in error.message


def test_addresses_and_formats_that_do_not_fit_say_what_to_do(tmp_path: Path) -> None:
    listing = put(tmp_path / "list.csv", "video,caption\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    for data, code, text in [
        (folder(tmp_path / "gone"), Exit.USER, "does not exist; put the videos there"),
        (folder(listing), Exit.USER, "is a file; set dataset.format to csv"),
        (listed(tmp_path, "jsonl"), Exit.USER, "is a folder; name its jsonl file"),
        (folder(empty), Exit.DATA, "lists no videos; it needs videos (.3gp"),
        (listed(listing, "csv"), Exit.DATA, "a row a video, with the columns video and caption"),
        (listed(put(tmp_path / "l.csv", "video,caption\nä,b\n".encode("latin-1")), "csv"), Exit.USER, "CSV in UTF-8"),
        (Dataset(uri="pvc://claim/data"), Exit.USER, "write file:///"),
    ]:
        error = fault(data)
        assert error.code is code, error.message
        assert text in error.message


def test_a_fingerprint_changes_with_names_contents_and_captions(tmp_path: Path) -> None:
    def fingerprint() -> str:
        listing = dataset.read(folder(tmp_path))
        return dataset.fingerprint(listing, dataset.tags(listing))

    video = put(tmp_path / "a.mp4", b"x" * 3_000_000)
    caption = put(tmp_path / "a.txt", "one")
    seen = [fingerprint()]
    put(tmp_path / "notes.md", "not part of it")
    assert fingerprint() == seen[0]

    caption.write_text("two")
    seen.append(fingerprint())
    video.write_bytes(b"x" * 2_999_999 + b"y")
    seen.append(fingerprint())
    video.rename(tmp_path / "b.mp4")
    caption.rename(tmp_path / "b.txt")
    seen.append(fingerprint())
    put(tmp_path / "c.mp4")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_a_video_that_is_not_there_has_no_tag(tmp_path: Path) -> None:
    put(tmp_path / "a.mp4")
    path = put(tmp_path / "l.csv", "video,caption\na.mp4,x\ngone.mp4,y\n")
    assert set(dataset.tags(dataset.read(listed(path, "csv")))) == {"a.mp4"}
