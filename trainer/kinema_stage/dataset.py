# SPDX-License-Identifier: Apache-2.0
"""What a dataset lists: videos and captions, in a folder, a CSV or a JSONL file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kinema_api.exits import Exit, StageError
from kinema_api.inputs import Dataset, DatasetFormat
from kinema_api.keys import digest
from kinema_api.settings import ClipVideo
from kinema_stage import mock
from kinema_stage.mock import MockSource
from kinema_stage.parallel import threads
from kinema_stage.quarantine import Quarantined, Reason
from kinema_stage.source import FolderSource, Source, open_source

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif", ".ogv", ".3gp"}
)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_CAPTION_BYTES = 64 * 1024
_FIELD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """One video with its caption, or with why it is set aside."""

    video: str
    caption: str = ""
    problem: Quarantined | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All videos of a dataset. Paths of videos are relative to its folder."""

    source: Source
    items: tuple[Item, ...]

    @property
    def usable(self) -> tuple[Item, ...]:
        """Those with a caption."""
        return tuple(item for item in self.items if item.problem is None)


def wants_images(video: ClipVideo) -> bool:
    """Whether images count beside videos: there may be many that belong to none, such as previews."""
    return any(bucket.frames == 1 for bucket in video.buckets)


def read(dataset: Dataset, *, images: bool = False) -> Listing:
    """List a dataset; no video is opened.

    Args:
        dataset: where it lies.
        images: list the images of a folder too.

    Raises:
        StageError: it is not there, empty, or of another format.
    """
    if dataset.format is DatasetFormat.MOCK:
        nowhere = MockSource(dataset.mock.clips)
        return Listing(nowhere, tuple(Item(video=name, caption=mock.caption(name)) for name in nowhere.names()))
    source = _open(dataset)
    where = source.where if _is_folder(dataset) else source.place(_file_name(dataset))
    try:
        listing = _read(dataset, source, where, suffixes=VIDEO_SUFFIXES | (IMAGE_SUFFIXES if images else frozenset()))
    except FileNotFoundError:
        raise StageError(
            Exit.USER, f"dataset.uri: {where} does not exist; put the videos there or correct the address"
        ) from None
    except StageError:
        raise
    except OSError as error:
        raise StageError(Exit.USER, f"dataset.uri: cannot read {where}: {error}; user {os.getuid()} needs it") from None
    if not listing.items:
        raise StageError(Exit.DATA, f"dataset.uri: {where} lists no videos; {_expected(dataset)}")
    return listing


def fetch(dataset: Dataset, video: str) -> contextlib.AbstractContextManager[Path]:
    """A video on this machine, for as long as it is needed: the file itself on a volume, else a copy in scratch.

    Args:
        dataset: where it lies.
        video: its path, relative to the dataset's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    return _open(dataset).fetch(video)


def _open(dataset: Dataset) -> Source:
    try:
        return open_source(dataset, parent=not _is_folder(dataset))
    except ValueError as error:
        raise StageError(Exit.USER, f"dataset.uri: {error}") from None


def _is_folder(dataset: Dataset) -> bool:
    return dataset.format is DatasetFormat.FOLDER


def _file_name(dataset: Dataset) -> str:
    return dataset.uri.rstrip("/").rpartition("/")[2]


def tags(listing: Listing) -> dict[str, str]:
    """The content tag of every video that can be read, by its path."""
    return listing.source.tags(sorted({item.video for item in listing.usable}))


def fingerprint(listing: Listing, tags: dict[str, str]) -> str:
    """Digest of all that a dataset says: names, contents and captions."""
    return digest(
        sorted([item.video, tags.get(item.video, ""), item.caption, item.problem is None] for item in listing.items)
    )


def _read(dataset: Dataset, source: Source, where: str, *, suffixes: frozenset[str]) -> Listing:
    if _is_folder(dataset):
        if isinstance(source, FolderSource) and source.root.is_file():
            suffix = source.root.suffix
            kind = suffix.lstrip(".") if suffix in (".csv", ".jsonl") else "csv or jsonl"
            raise StageError(Exit.USER, f"dataset.uri: {where} is a file; set dataset.format to {kind}")
        names = source.names()
        videos = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
        beside = frozenset(names)
        items = threads(lambda video: _with_caption(source, video, beside), videos)
        return Listing(source=source, items=tuple(items))
    try:
        data = source.read(_file_name(dataset))
    except IsADirectoryError:
        raise StageError(
            Exit.USER,
            f"dataset.uri: {where} is a folder; name its {dataset.format} file, or set dataset.format to folder",
        ) from None
    rows = _csv_rows(data, where) if dataset.format is DatasetFormat.CSV else _jsonl_rows(data)
    return Listing(source=source, items=tuple(_rows_to_items(rows, dataset=dataset, source=source, where=where)))


def _expected(dataset: Dataset) -> str:
    if dataset.format is DatasetFormat.FOLDER:
        return f"it needs videos ({', '.join(sorted(VIDEO_SUFFIXES))}), each with a caption beside it (NAME.txt)"
    return f"it needs a row a video, with the columns {_columns(dataset)}"


def _columns(dataset: Dataset) -> str:
    return f"{dataset.captions.video_column} and {dataset.captions.caption_column}"


def _with_caption(source: Source, video: str, beside: frozenset[str]) -> Item:
    for suffix in (".txt", ".json"):
        path = PurePosixPath(video).with_suffix(suffix)
        if path.as_posix() not in beside:
            continue
        try:
            data = source.read(path.as_posix(), end=_CAPTION_BYTES + 1)
            if len(data) > _CAPTION_BYTES:
                return _set_aside(video, Reason.BAD_CAPTION, f"{path.name} has more than {_CAPTION_BYTES} bytes")
            text = data.decode("utf-8-sig")
            caption = json.loads(text)["caption"] if suffix == ".json" else text
        except FileNotFoundError:
            continue
        except StageError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            return _set_aside(video, Reason.BAD_CAPTION, f"{path.name}: {error}")
        except (json.JSONDecodeError, KeyError, TypeError):
            return _set_aside(video, Reason.BAD_CAPTION, f'{path.name} is not {{"caption": "..."}}')
        return _captioned(video, caption)
    return _set_aside(video, Reason.NO_CAPTION, f"there is no {PurePosixPath(video).stem}.txt or .json beside it")


def _captioned(video: str, caption: Any) -> Item:
    if not isinstance(caption, str):
        return _set_aside(video, Reason.BAD_CAPTION, f"its caption is not text: {caption!r}"[:200])
    if not caption.strip():
        return _set_aside(video, Reason.NO_CAPTION, "its caption is empty")
    return Item(video=video, caption=caption.strip())


def _set_aside(video: str, reason: Reason, message: str) -> Item:
    return Item(video=video, problem=Quarantined(video=video, reason=reason, message=message))


Row = tuple[str, dict[str, Any] | str]
"""Where a row stands, for people; and its columns, or why it has none."""


def _csv_rows(data: bytes, where: str) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_BYTES)
    reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""))
    try:
        for row in reader:
            yield f"line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise StageError(
            Exit.USER, f"dataset.uri: {where}, near line {reader.line_num}: {error}; it must be CSV in UTF-8"
        ) from None


def _jsonl_rows(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"line {number}", f"it is not JSON: {error}"
            continue
        yield f"line {number}", row if isinstance(row, dict) else "it is not a JSON object"


def _rows_to_items(rows: Iterator[Row], *, dataset: Dataset, source: Source, where: str) -> Iterator[Item]:
    columns = dataset.captions
    known = False
    for place, row in rows:
        if isinstance(row, str):
            yield _set_aside(place, Reason.BAD_ROW, row)
            continue
        if not known:
            _check_columns(row, dataset=dataset, where=where)
            known = True
        video = row.get(columns.video_column)
        if not isinstance(video, str) or not video.strip():
            yield _set_aside(place, Reason.BAD_ROW, f"it names no video in {columns.video_column}")
            continue
        yield _row_to_item(source.where, video.strip(), row.get(columns.caption_column))


def _check_columns(row: dict[str, Any], *, dataset: Dataset, where: str) -> None:
    for field, column in (
        ("videoColumn", dataset.captions.video_column),
        ("captionColumn", dataset.captions.caption_column),
    ):
        if column not in row:
            have = ", ".join(str(name) for name in row)
            raise StageError(
                Exit.USER, f"dataset.captions.{field}: {where} has no column {column}; it has: {have}; name one of them"
            )


def _row_to_item(root: str, video: str, caption: Any) -> Item:
    if video.startswith(f"{root}/"):
        video = video[len(root) + 1 :]
    relative = posixpath.relpath(video, root) if video.startswith("/") else posixpath.normpath(video)
    if relative == ".." or relative.startswith("../"):
        return _set_aside(video, Reason.OUTSIDE, f"it lies outside {root}; put it below the listing's folder")
    if caption is None:
        return _set_aside(relative, Reason.NO_CAPTION, "its row has no caption")
    return _captioned(relative, caption)
