# SPDX-License-Identifier: Apache-2.0
"""prepare: probes each video and cuts it into clips; publishes `artifacts/prepare/<key>`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from kinema_api.base import Model
from kinema_api.exits import Exit, StageError, Termination
from kinema_api.inputs import Dataset, DatasetFormat
from kinema_api.keys import Inputs, resolve
from kinema_api.settings import FeaturesSettings
from kinema_api.stage import PrepareConfig
from kinema_stage import artifact, clips, dataset, logs, mock, parallel, video
from kinema_stage.assignment import Tally
from kinema_stage.claim import wait_or_claim
from kinema_stage.clips import Clip
from kinema_stage.context import Context
from kinema_stage.quarantine import Quarantined, Reason, summary

logger = logging.getLogger(__name__)

SAID = "said"
"""Name in the manifest's details of what became of the clips, in words."""
BUCKETS = "stages.prepare.video.buckets"
PART = 256
"""Videos probed between two savings; a killed attempt loses at most so many."""


class Probed(Model):
    """What a look into one video gave."""

    info: video.VideoInfo | None = None
    """What it holds."""
    fault: str = ""
    """Why it cannot be used."""


class Part(Model):
    """The results of up to `PART` videos, in the order of their names."""

    probed: list[Probed]
    """One for each."""


def run(context: Context) -> Termination:
    """The stage."""

    def done() -> bool:
        return artifact.published(context.workspace, context.folder) is not None

    claim = wait_or_claim(
        context.workspace,
        context.claim,
        holder=context.holder,
        done=done,
        interrupted=context.interrupted,
        moved=context.progress.moved,
    )
    if claim is None:
        end = artifact.existing(context.workspace, context.folder)
        assert end is not None
        return end
    with claim:
        manifest = _prepare(context)
    end = artifact.success(context.workspace, context.folder, manifest)
    said = manifest.details[SAID]
    return end.model_copy(update={"message": f"{end.message}; {said}"}) if said else end


def _prepare(context: Context) -> artifact.Manifest:
    config = context.config
    assert isinstance(config, PrepareConfig)
    listing = dataset.read(config.dataset, images=dataset.wants_images(config.settings.video))
    tags = dataset.tags(listing)
    _check_key(config, dataset.fingerprint(listing, tags))
    found, quarantined, tally = _cut(context, listing, tags)
    if tally.left_out.total():
        logger.warning("%s", tally.say(), extra={logs.FIELDS: {"leftOut": dict(tally.left_out)}})
    for entry in quarantined:
        logger.warning("%s is set aside: %s", entry.video, entry.message, extra={logs.FIELDS: {"cause": entry.reason}})
    clips.write(context.workspace, context.folder, clips=found, quarantined=quarantined)
    if not found and not quarantined:
        raise StageError(
            Exit.DATA, f"the buckets keep none of the {tally.left_out.total()} clips; raise keep in {BUCKETS}"
        )
    if not found:
        listed = context.workspace.uri(f"{context.folder}/{clips.QUARANTINE}")
        raise StageError(
            Exit.DATA,
            f"none of the {len(listing.items)} videos of the dataset gave a clip: {summary(quarantined)};"
            f" mend or replace them; all reasons are in {listed}",
        )
    context.workspace.delete(f"{context.folder}/parts")
    return artifact.publish(
        context.workspace,
        context.folder,
        artifact.Manifest(
            stage=config.stage,
            key=config.key,
            job=f"{config.job.namespace}/{config.job.name}",
            counts={
                "videos": len(listing.items),
                "clips": len(found),
                "quarantined": len(quarantined),
                **({"leftOut": tally.left_out.total()} if tally.left_out else {}),
            },
            details={"buckets": dict(tally.buckets), "leftOut": dict(tally.left_out), SAID: tally.say()},
            files=artifact.sizes(context.workspace, context.folder),
        ),
    )


def _check_key(config: PrepareConfig, fingerprint: str) -> None:
    """Refuse to publish under a key that belongs to other data: every job of the workspace would take it."""
    unused = "-"
    keys = resolve(
        inputs=Inputs(dataset=fingerprint, transformer=unused, vae=unused, text_encoder=unused),
        model=config.model,
        task=config.task,
        dataset=config.dataset,
        prepare=config.settings,
        features=FeaturesSettings(),
    )
    if keys.prepare != config.key:
        raise StageError(
            Exit.USER,
            f"the dataset {config.dataset.uri} changed after it was checked (key {keys.prepare}, not {config.key});"
            " let it be while a job starts, and create the job again",
        )


def _cut(
    context: Context, listing: dataset.Listing, tags: dict[str, str]
) -> tuple[list[Clip], list[Quarantined], Tally]:
    config = context.config
    assert isinstance(config, PrepareConfig)
    found: dict[str, Clip] = {}
    seen: dict[tuple[str, str], str] = {}
    tally = Tally()
    quarantined = [item.problem for item in listing.items if item.problem is not None]
    videos = sorted({item.video for item in listing.usable})
    looks = dict(zip(videos, _looks(context, config, videos), strict=True))
    for item in listing.usable:
        tag, probed = tags.get(item.video), looks[item.video]
        if tag is None or probed.info is None:
            reason = Reason.UNREADABLE if tag is not None else Reason.MISSING
            quarantined.append(
                Quarantined(video=item.video, reason=reason, message=probed.fault or "it cannot be read")
            )
            continue
        cut = clips.cut(
            video=item.video,
            tag=tag,
            caption=item.caption,
            info=probed.info,
            settings=config.settings.video,
        )
        same = (tag, item.caption)
        if isinstance(cut, Quarantined):
            quarantined.append(cut)
        elif same in seen:
            message = f"{seen[same]} has the same content and caption"
            quarantined.append(Quarantined(video=item.video, reason=Reason.DUPLICATE, message=message))
        else:
            seen[same] = item.video
            found.update((clip.key, clip) for clip in cut.clips)
            tally.buckets.update(str(clip.geometry) for clip in cut.clips)
            tally.left_out.update({why.value: count for why, count in cut.left_out.items()})
    return list(found.values()), quarantined, tally


def _looks(context: Context, config: PrepareConfig, videos: Sequence[str]) -> Iterable[Probed]:
    if config.dataset.format is DatasetFormat.MOCK:
        return [Probed(info=mock.info(name, config.settings.video)) for name in videos]
    return _probe_all(context, config.dataset, videos)


def _probe_all(context: Context, data: Dataset, videos: Sequence[str]) -> Iterator[Probed]:
    """One result for each video, in order; finished parts of a killed attempt are taken over."""
    context.progress.report(done=0, total=len(videos))
    for start in range(0, len(videos), PART):
        path = f"{context.folder}/parts/{start // PART:06d}.json"
        try:
            part = Part.model_validate_json(context.workspace.read(path))
        except FileNotFoundError:
            part = _probe_part(context, data, videos, start)
            context.workspace.write(path, part.model_dump_json(by_alias=True).encode())
        context.progress.report(done=start + len(part.probed), total=len(videos))
        yield from part.probed


def _probe_part(context: Context, data: Dataset, videos: Sequence[str], start: int) -> Part:
    batch = videos[start : start + PART]
    probed: dict[int, Probed] = {}
    results = parallel.processes(partial(probe, data), batch, workers=min(len(batch), parallel.cpus()))
    for index, result in results:
        context.check_interrupted()
        crash = Probed(fault="the decoder crashed")
        probed[index] = crash if isinstance(result, parallel.Crashed) else result
        context.progress.report(done=start + len(probed), total=len(videos))
    return Part(probed=[probed[index] for index in range(len(batch))])


def probe(data: Dataset, name: str) -> Probed:
    """Look into one video; runs in a process of its own."""
    try:
        with dataset.fetch(data, name) as path:
            if not path.is_file():
                return Probed(fault=f"there is no {path}")
            return Probed(info=video.probe(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        return Probed(fault=f"it cannot be opened: {error}")
    except video.VideoError as error:
        return Probed(fault=str(error))
