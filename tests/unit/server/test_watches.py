# SPDX-License-Identifier: Apache-2.0
"""Jobs as they change: told once upstream, and to every reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from prometheus_client import REGISTRY

from kinema_operator import tls
from kinema_server.feeds import SELECTIONS, Feeds, Kind, Selection
from kinema_server.refusal import Refusal
from kinema_server.settings import ServerSettings

from tests import waiting
from tests.unit.kube.fake import fake_kube, status
from tests.unit.server.conftest import JOB, World, serving, trusting
from tests.unit.server.conftest import until as conditions
from tests.unit.server.upstream import Event, Watched, events, job, until

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

TEAM = "/v1alpha1/namespaces/team/videotrainingjobs?watch=true"
ONE = "/v1alpha1/namespaces/team/videotrainingjobs/wan?watch=true"
TEAMS = Selection("team")


@asynccontextmanager
async def reading(world: World, path: str = TEAM, *, last: str = "") -> AsyncIterator[AsyncIterator[Event]]:
    headers = {"Authorization": "Bearer good", **({"Last-Event-ID": last} if last else {})}
    async with world.client.stream("GET", path, headers=headers, timeout=20) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield events(answer)


async def test_what_there_is_comes_first_then_what_changes(world: World) -> None:
    watched = Watched(world.fake)
    watched.show(job("wan", 5, phase="Running"), job("cog", 7))
    async with reading(world) as stream:
        first = await until(stream, "synced")
        assert [(event.kind, event.id) for event in first] == [("added", ""), ("added", ""), ("synced", "10")]
        assert first[0].json["phase"] == "Running"
        watched.tell("MODIFIED", job("wan", 11, phase="Succeeded"))
        watched.tell("DELETED", job("cog", 12))
        modified, deleted = await until(stream, "deleted")
        assert (modified.id, modified.json["phase"]) == ("11", "Succeeded")
        assert (deleted.id, deleted.json["name"]) == ("12", "cog")


async def test_readers_share_one_watch_and_hear_every_event(world: World) -> None:
    watched = Watched(world.fake)
    versions = range(11, 31)

    async def read() -> list[str]:
        async with reading(world) as stream:
            await until(stream, "synced")
            ready.release()
            return [event.id for event in await until(stream, "deleted")]

    ready = asyncio.Semaphore(0)
    readers = [asyncio.create_task(read()) for _ in range(20)]
    async with asyncio.timeout(20):
        for _ in readers:
            await ready.acquire()
    assert REGISTRY.get_sample_value("kinema_server_streams") == len(readers)
    for version in versions:
        watched.tell("MODIFIED", job("wan", version))
    watched.tell("DELETED", job("wan", 31))
    assert await asyncio.gather(*readers) == [[*map(str, versions), "31"]] * len(readers)
    await asyncio.to_thread(
        waiting.until, "streams stay", lambda: REGISTRY.get_sample_value("kinema_server_streams") == 0, seconds=20
    )
    assert watched.begun == 1
    assert len(world.fake.sent("POST", "tokenreviews")) == 1


async def test_a_reader_goes_on_after_the_last_event_that_it_saw(world: World) -> None:
    watched = Watched(world.fake)
    async with reading(world) as stream:
        await until(stream, "synced")
        for version in (11, 12, 13):
            watched.tell("MODIFIED", job("wan", version))
        watched.tell("ADDED", job("cog", 14))
        await until(stream, "added")
    async with reading(world, last="12") as stream:
        assert [event.id for event in await until(stream, "added")] == ["13", "14"]
    assert watched.begun == 1


@pytest.mark.parametrize("last", ["3", "999999", "yesterday"])
async def test_a_place_that_is_not_kept_begins_anew(world: World, last: str) -> None:
    watched = Watched(world.fake)
    watched.show(job("wan", 5))
    async with reading(world, last=last) as stream:
        assert [event.kind for event in await until(stream, "synced")] == ["reset", "added", "synced"]


async def test_a_version_that_the_api_server_forgot_begins_anew(world: World) -> None:
    watched = Watched(world.fake)
    watched.show(job("wan", 5))
    async with reading(world) as stream:
        await until(stream, "synced")
        watched.version = 90
        watched.show(job("cog", 80))
        await conditions("nobody watches", lambda: bool(watched.watchers))
        watched.tell("ERROR", status(410, "Expired", "too old resource version"))
        again = await until(stream, "synced")
        assert [(event.kind, event.id) for event in again] == [("reset", ""), ("added", ""), ("synced", "90")]
        assert again[1].json["name"] == "cog"


async def test_a_watch_that_ends_is_begun_again_where_it_was(world: World) -> None:
    watched = Watched(world.fake)
    async with reading(world) as stream:
        await until(stream, "synced")
        watched.tell("MODIFIED", job("wan", 11))
        await until(stream, "modified")
        watched.stop()
        watched.tell("DELETED", job("wan", 12))
        await until(stream, "deleted")
    begun = [request for request in world.fake.sent("GET") if request.query.get("watch")]
    assert [request.query["resourceVersion"] for request in begun] == ["10", "11"]


async def test_one_job_comes_whole_and_ends_with_its_deletion(world: World) -> None:
    watched = Watched(world.fake)
    world.fake.objects[JOB]["status"] = {"phase": "Running"}
    async with reading(world, ONE) as stream:
        first = await until(stream, "synced")
        assert [event.kind for event in first] == ["added", "synced"]
        assert first[0].json["status"] == {"phase": "Running"}
        watched.tell("MODIFIED", job("other", 11))
        watched.tell("MODIFIED", job("wan", 12, phase="Failed"))
        watched.tell("DELETED", job("wan", 13))
        rest = await until(stream, "end")
        assert [(event.kind, event.id) for event in rest] == [("modified", "12"), ("deleted", "13"), ("end", "")]
        assert rest[0].json["status"]["phase"] == "Failed"


async def test_a_job_may_have_any_name(world: World) -> None:
    world.fake.put(JOB.replace("wan", "watch"), {"metadata": {"name": "watch", "namespace": "team"}})
    answer = await world.get(ONE.replace("wan?watch=true", "watch"))
    assert (answer.status_code, answer.json()["metadata"]["name"]) == (200, "watch")


async def test_what_is_selected_is_selected_by_the_api_server(world: World) -> None:
    watched = Watched(world.fake)
    watched.show(job("wan", 5, phase="Running"))
    async with reading(world, f"{TEAM}&phase=Running&labelSelector=team%3Dvideo") as stream, reading(world) as every:
        for one in (stream, every):
            await until(one, "synced")
        await conditions("both are not watched", lambda: watched.begun == 2)
    for verb in ("list", "watch"):
        asked = [request.query for request in world.fake.sent("GET") if ("watch" in request.query) == (verb == "watch")]
        selectors = {(query.get("labelSelector"), query.get("fieldSelector")) for query in asked}
        assert selectors == {("team=video", "status.phase=Running"), (None, None)}


async def test_a_selector_that_is_none_is_named(world: World) -> None:
    refused = (400, status(400, "BadRequest", "unable to parse requirement"))
    world.fake.hooks.insert(0, lambda request: refused if request.query.get("labelSelector") else None)
    for path in (f"{TEAM}&labelSelector=a%3D%3D%3D", f"{TEAM[:-11]}?labelSelector=a%3D%3D%3D"):
        answer = await world.get(path)
        assert (answer.status_code, answer.json()["detail"]) == (400, "unable to parse requirement")


async def test_jobs_of_all_namespaces_are_told_apart(world: World) -> None:
    watched = Watched(world.fake, path="/apis/kinema.dev/v1alpha1/videotrainingjobs")
    other = job("wan", 6)
    other["metadata"]["namespace"] = "research"
    watched.show(job("wan", 5), other)
    async with reading(world, "/v1alpha1/videotrainingjobs?watch=true") as stream:
        *added, _ = await until(stream, "synced")
    assert [event.json["namespace"] for event in added] == ["team", "research"]
    (review,) = world.fake.sent("POST", "subjectaccessreviews")
    attributes = review.body["spec"]["resourceAttributes"]
    assert (attributes["verb"], attributes.get("namespace")) == ("watch", None)


async def test_who_may_not_watch_hears_nothing(world: World) -> None:
    Watched(world.fake)
    world.allowed = False
    assert (await world.get(TEAM)).status_code == 403
    assert (await world.get(TEAM, token="bad")).status_code == 401
    assert world.fake.sent("GET") == []


async def test_a_job_that_is_not_there_cannot_be_watched(world: World) -> None:
    Watched(world.fake)
    assert (await world.get(ONE.replace("wan", "absent"))).status_code == 404


async def test_a_namespace_that_the_server_may_not_read_is_named(world: World) -> None:
    world.fake.hooks.insert(
        0, lambda request: (403, status(403, "Forbidden", "no")) if request.method == "GET" else None
    )
    answer = await world.get(TEAM)
    assert answer.status_code == 403
    assert "the server itself" in answer.json()["detail"]


async def test_a_server_that_goes_down_tells_its_readers(settings: ServerSettings, authority: tls.Pair) -> None:
    async with fake_kube() as fake, AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(settings, fake.kube))
        address = f"https://localhost:{port}"
        async with httpx.AsyncClient(base_url=address, verify=trusting(authority), timeout=20) as client:
            world = World(fake=fake, client=client)
            Watched(fake)
            async with reading(world) as team, reading(world, ONE) as one:
                for stream in (team, one):
                    await until(stream, "synced")
                stopping = asyncio.create_task(stack.aclose())
                for stream in (team, one):
                    assert (await until(stream, "end"))[-1].json["reason"].startswith("the server goes down")
        async with asyncio.timeout(settings.shutdown_seconds):
            await stopping


async def test_a_reader_that_is_too_slow_begins_anew_and_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema_server.feeds.KEPT_CHANGES", 5)
    async with fake_kube() as fake:
        watched = Watched(fake)
        feeds = Feeds(fake.kube)
        feed = await feeds.of(TEAMS)
        slow = feed.follow(since=None)
        assert (await anext(slow)).kind is Kind.SYNCED
        for version in range(11, 41):
            watched.tell("MODIFIED", job("wan", version))
        quick = feed.follow(since=10)
        async with asyncio.timeout(20):
            while (await anext(quick)).version != 40:
                pass
            found = [await anext(slow) for _ in range(3)]
        assert [(news.kind, news.version) for news in found] == [
            (Kind.RESET, None),
            (Kind.ADDED, None),
            (Kind.SYNCED, 40),
        ]
        assert len(feed._kept) == 5
        await feeds.close()


async def test_selections_are_no_way_to_use_up_the_server() -> None:
    async with fake_kube() as fake, AsyncExitStack() as stack:
        Watched(fake)
        feeds = Feeds(fake.kube)
        one, *others = (Selection("team", f"number={number}") for number in range(SELECTIONS))
        async with feeds.reading(one, await feeds.of(one)):
            for selection in others:
                await stack.enter_async_context(feeds.reading(selection, await feeds.of(selection)))
            with pytest.raises(Refusal, match="too many") as caught:
                await feeds.of(Selection("team", "number=-1"))
            assert caught.value.code == 429
            await feeds.of(TEAMS)
        # Nobody reads that one any more: it makes room.
        await feeds.of(Selection("team", "number=-1"))
        assert len(feeds) == SELECTIONS + 1
        await feeds.close()


async def test_a_feed_ends_when_nobody_has_read_it_for_a_while() -> None:
    async with fake_kube() as fake:
        Watched(fake)
        feeds = Feeds(fake.kube, linger=0.05)
        feed = await feeds.of(TEAMS)
        async with feeds.reading(TEAMS, feed):
            feeds._end_idle(TEAMS, feed)
            assert len(feeds) == 1
        await conditions("the feed lives for ever", lambda: len(feeds) == 0 and not feed.alive)
